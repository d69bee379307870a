"""Layers of every kind, as arguments of Keras's class and the shape of an example: what tests of kinds share."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.checks import inputs_of
from tfp_bprune._keras import keras
from tfp_bprune.layers.kind import Kind, kind_of

L = keras.layers

Case = tuple[str, dict[str, Any], tuple[int, ...]]
CASES: dict[str, Case] = {
    "dense": ("Dense", {"units": 3}, (4,)),
    "dense at positions": ("Dense", {"units": 3}, (3, 4)),
    "convolution 1D": ("Conv1D", {"filters": 3, "kernel_size": 2, "strides": 2}, (6, 2)),
    "causal": ("Conv1D", {"filters": 3, "kernel_size": 2, "padding": "causal", "dilation_rate": 2}, (6, 2)),
    "convolution 2D": ("Conv2D", {"filters": 3, "kernel_size": 2, "padding": "same"}, (4, 4, 2)),
    "groups": ("Conv2D", {"filters": 6, "kernel_size": 2, "groups": 2, "padding": "same"}, (4, 3, 4)),
    "convolution 3D": ("Conv3D", {"filters": 2, "kernel_size": 2}, (3, 3, 3, 2)),
    "depthwise 1D": ("DepthwiseConv1D", {"kernel_size": 3, "depth_multiplier": 2, "dilation_rate": 2}, (7, 3)),
    "depthwise 2D": (
        "DepthwiseConv2D",
        {"kernel_size": (3, 2), "strides": 2, "padding": "same", "depth_multiplier": 2, "activation": "tanh"},
        (5, 4, 3),
    ),
    "separable 1D": (
        "SeparableConv1D",
        {"filters": 4, "kernel_size": 3, "padding": "causal", "depth_multiplier": 2},
        (6, 2),
    ),
    "separable 2D": (
        "SeparableConv2D",
        {"filters": 3, "kernel_size": 2, "depth_multiplier": 2, "strides": 2},
        (5, 5, 2),
    ),
    "transposed 1D": ("Conv1DTranspose", {"filters": 3, "kernel_size": 3, "strides": 2}, (4, 2)),
    "transposed 2D": (
        "Conv2DTranspose",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
        (3, 3, 2),
    ),
    "transposed 3D": ("Conv3DTranspose", {"filters": 2, "kernel_size": 2}, (2, 2, 3, 2)),
    "einsum, dense": ("EinsumDense", {"equation": "abc,cd->abd", "output_shape": (None, 3), "bias_axes": "d"}, (3, 4)),
    "einsum, heads": (
        "EinsumDense",
        {"equation": "abc,cde->abde", "output_shape": (None, 2, 3), "bias_axes": "de"},
        (3, 4),
    ),
    "einsum, steps": ("EinsumDense", {"equation": "abc,bd->adc", "output_shape": (4, 5), "bias_axes": "d"}, (3, 5)),
    "einsum, left": ("EinsumDense", {"equation": "...x,xy->...y", "output_shape": 4, "bias_axes": "y"}, (2, 5)),
    "einsum, right": ("EinsumDense", {"equation": "ab...,bc->ac...", "output_shape": 4, "bias_axes": "c"}, (5, 2)),
    "einsum, apart": ("EinsumDense", {"equation": "abc,bcd->abd", "output_shape": (2, 3), "bias_axes": None}, (2, 4)),
    "embedding": ("Embedding", {"input_dim": 5, "output_dim": 3}, (4,)),
}


def class_of(name: str) -> Any:
    """Keras's class of that name."""
    return getattr(L, name)


def layer_of(case: str, **options: Any) -> Any:
    """The plain layer of a case, not yet built."""
    name, arguments, _ = CASES[case]
    return class_of(name)(**{"name": "layer"} | arguments | options)


def kind_in(case: str) -> Kind:
    """The kind of a case."""
    found = kind_of(layer_of(case))
    assert found is not None
    return found


def plain_model(name: str, arguments: dict[str, Any], shape: tuple[int, ...], **options: Any) -> Any:
    """A model that is the plain layer alone, with random weights none of which is small."""
    inputs = keras.Input(shape)
    model = keras.Model(inputs, class_of(name)(name="layer", **(arguments | options))(inputs))
    randomize(model)
    return model


def randomize(model: Any, seed: int = 0) -> None:
    """Random weights, all of at least 0.2 in size, but those of batch normalization, which stay."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if not isinstance(layer, L.BatchNormalization):
            for weight in layer.weights:
                weight.assign(random.uniform(0.2, 1, weight.shape) * random.choice([-1, 1], weight.shape))


def inputs(case: str, batch: int = 4) -> np.ndarray:
    """Random inputs of a case."""
    return inputs_of(kind_in(case), CASES[case][2], batch)
