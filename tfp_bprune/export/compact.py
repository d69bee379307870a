"""Exact removal of dead units: a smaller ordinary network that computes the same function.

A unit (dense neuron or convolution filter) goes if nothing that is left reads it, or if it has the same value for
every input and its readers can take that value into their biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.layers import Variational
from tfp_bprune.models.channels import (
    ACTIVATIONS,
    ChannelLabels,
    is_elementwise,
    is_normalization,
    keeps_channels,
    positions,
)
from tfp_bprune.models.graph import Step, graph_of
from tfp_bprune.models.rebuild import rebuild

_L = keras.layers


@dataclass(frozen=True)
class Kernel:
    """A dense or convolution layer's weights: loc and scale [positions, in, out]; bias and its scale [out].

    Attributes:
      folds: whether a constant input can go into the bias.
    """

    loc: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    bias_scale: np.ndarray
    folds: bool

    @property
    def live(self) -> np.ndarray:
        """Whether any position of (in, out) is not exactly 0."""
        return ((self.loc != 0) | (self.scale != 0)).any(0)


def compact(model: Any) -> Any:
    """The model without its dead units, weights sliced; the model itself if there are none or its graph is not plain.

    Outputs equal the given model's to within float32 rounding. The inputs and outputs of the model keep their shapes.
    """
    graph = graph_of(model)
    if graph is None:
        return model
    labels = ChannelLabels(graph)
    kernels = {step.layer.name: kernel_of(step.layer) for step in labels.weighted}
    constants = _constants(labels, kernels)
    needed = _needed(labels, kernels, constants)
    sliced = [s for s in graph.steps if s.layer.name in kernels or is_normalization(s)]
    slices = {s.layer.name: _Slice.of(s, labels, needed, constants) for s in sliced}
    if all(s.kept_out.all() for s in slices.values()):
        return model
    return rebuild(
        model, lambda layer: _smaller(layer, slices.get(layer.name)), lambda old, new: _fill(old, new, slices[old.name])
    )


def kernel_of(layer: Any) -> Kernel:
    """The weights of a dense or convolution layer, Bayesian or plain, kernel positions flattened."""
    if isinstance(layer, Variational):
        q, bias_q = layer.kernel_posterior, layer.bias_posterior
        loc, scale = q.loc.numpy(), q.scale.numpy()
        bias = bias_q.loc if bias_q is not None else layer.bias
        bias_scale = bias_q.scale.numpy() if bias_q is not None else np.zeros(loc.shape[-1])
    else:
        loc, bias = layer.kernel.numpy(), layer.bias
        scale, bias_scale = np.zeros_like(loc), np.zeros(loc.shape[-1])
    # Zero padding breaks a constant at the borders, so only an unpadded layer can fold one into its bias.
    folds = bias is not None and getattr(layer, "padding", "valid") == "valid"
    flat, bias = (-1, *loc.shape[-2:]), np.zeros(loc.shape[-1]) if bias is None else bias.numpy()
    return Kernel(loc.reshape(flat), scale.reshape(flat), bias, bias_scale, folds)


def _constants(labels: ChannelLabels, kernels: dict[str, Kernel]) -> dict[int, np.ndarray]:
    """For each tensor, the value of each channel that is the same for all inputs and positions; NaN for the others."""
    found: dict[int, np.ndarray] = {}
    for step in labels.graph.steps:
        inputs = [found[tensor] for tensor in step.inputs]
        found[step.output] = _constant_output(step, inputs, kernels.get(step.layer.name), int(step.shape[-1] or 0))
    return found


def _constant_output(step: Step, inputs: list[np.ndarray], kernel: Kernel | None, width: int) -> np.ndarray:
    layer = step.layer
    if kernel is not None:
        return _constant_units(layer, inputs[0], kernel)
    if is_normalization(step):
        return _normalized(layer, inputs[0])
    if isinstance(layer, ACTIVATIONS) and is_elementwise(layer):
        return np.where(np.isnan(inputs[0]), np.nan, _called(layer, inputs[0]))
    if keeps_channels(step):
        return inputs[0]
    if isinstance(layer, _L.Flatten) and layer.data_format == "channels_last":
        return np.tile(inputs[0], positions(step, len(inputs[0])))
    if isinstance(layer, _L.Add) and len({len(constant) for constant in inputs}) == 1:
        return np.sum(inputs, axis=0)
    if isinstance(layer, _L.Concatenate) and layer.axis in (-1, len(step.shape) - 1):
        return np.concatenate(inputs)
    return np.full(width, np.nan)


def _constant_units(layer: Any, constant: np.ndarray, kernel: Kernel) -> np.ndarray:
    """The value of each unit that no varying input reaches, NaN for the others."""
    folded = _foldable(kernel, constant)
    fixed = ~kernel.live[~folded].any(0) & (kernel.bias_scale == 0)
    if not is_elementwise(layer):
        return np.full(len(fixed), np.nan)
    values = kernel.bias + _contribution(kernel, constant, folded)
    return np.where(fixed, values if layer.activation is None else _called(layer.activation, values), np.nan)


def _needed(labels: ChannelLabels, kernels: dict[str, Kernel], constants: dict[int, np.ndarray]) -> np.ndarray:
    """Which labels must stay, found from the outputs backwards until nothing is added."""
    needed = np.zeros(labels.count, bool)
    needed[labels.pinned] = True
    tensors = {tensor for step in labels.weighted for tensor in (step.inputs[0], step.output)}
    roots = {tensor: labels.of(tensor) for tensor in tensors}
    before = -1
    while needed.sum() != before:
        before = needed.sum()
        for step in reversed(labels.weighted):
            made, read = roots[step.output], roots[step.inputs[0]]
            if not needed[made].any():  # a layer keeps at least one unit
                needed[made[0]] = True
            kernel = kernels[step.layer.name]
            reads = kernel.live[:, needed[made]].any(1) & ~_foldable(kernel, constants[step.inputs[0]])
            needed[read[reads]] = True
    return needed


@dataclass(frozen=True)
class _Slice:
    """What stays of one layer: input and output channels, and the constants that it read."""

    kept_in: np.ndarray
    kept_out: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, step: Step, labels: ChannelLabels, needed: np.ndarray, constants: dict[int, np.ndarray]) -> _Slice:
        return cls(needed[labels.of(step.inputs[0])], needed[labels.of(step.output)], constants[step.inputs[0]])


def _smaller(layer: Any, kept: _Slice | None) -> Any:
    """The layer with as many units as stay; None where nothing changes."""
    if kept is None or (kept.kept_in.all() and kept.kept_out.all()):
        return None
    config = layer.get_config()
    for key in ("units", "filters"):
        if key in config:
            config[key] = int(kept.kept_out.sum())
    return layer.__class__.from_config(config)


def _fill(old: Any, new: Any, kept: _Slice) -> None:
    """The surviving slice of each weight; constants of removed inputs go into the bias."""
    if isinstance(old, _L.BatchNormalization):
        new.set_weights([w[kept.kept_in] for w in old.get_weights()])
        return
    gone = ~kept.kept_in & ~np.isnan(kept.constant)
    shift = _contribution(kernel_of(old), kept.constant, gone)
    for source, target in zip(old.weights, new.weights, strict=True):
        name, value = source.name.split("/")[-1].split(":")[0], source.numpy()
        if name in ("bias", "bias_loc"):
            value = (value + shift).astype(value.dtype)
        if name.startswith("kernel"):
            value = value[..., kept.kept_in, :][..., kept.kept_out]
        elif name.startswith("bias"):
            value = value[kept.kept_out]
        target.assign(value)


def _foldable(kernel: Kernel, constant: np.ndarray) -> np.ndarray:
    """Which inputs can go for good: those always 0, and constants that only certain weights read."""
    certain = (kernel.scale == 0).all((0, 2))
    return (constant == 0) | (~np.isnan(constant) & certain & kernel.folds)


def _contribution(kernel: Kernel, constant: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """What the constant `inputs` add to each output."""
    return np.einsum("i,pio->o", np.where(inputs, np.nan_to_num(constant), 0.0), kernel.loc.astype(np.float64))


def _called(function: Any, values: np.ndarray) -> np.ndarray:
    return np.asarray(function(np.nan_to_num(values).astype(np.float32)), np.float64)


def _normalized(layer: Any, constant: np.ndarray) -> np.ndarray:
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    deviation = np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    return gamma * (constant - layer.moving_mean.numpy()) / deviation + beta
