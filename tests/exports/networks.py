"""Small networks with what converters meet: dense layers, convolutions, residual additions, batch normalization."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import FOR_CONVERTERS
from tfp_bprune.pruning import prune

L = keras.layers


def pruned_predictor(name: str) -> Predictor:
    """One of the networks at its mean, pruned to 80 %, as converters take it."""
    return Predictor(prune(settled(NETWORKS[name]()), sparsity=0.8)[0], "mean", lowering=FOR_CONVERTERS)


def assert_answers_as_tensorflow(file_format: str, predictor: Predictor, content: bytes, batch: int) -> None:
    """A file gives what the predictor does that it was made of, under the same names."""
    x = np.random.default_rng(1).normal(size=(batch, 8, 8, 1)).astype(np.float32)
    found = run(file_format, content, x)
    expected = predictor.predict(tf.constant(x))
    assert set(found) == set(expected) == {"probabilities", "entropy"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def classifier(model: Any) -> Any:
    """`model`, whose outputs are said to be logits."""
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def mlp() -> Any:
    """Bayesian, three layers."""
    layers = [L.Flatten(), DenseFlipout(40, activation="relu"), DenseFlipout(4)]
    return classifier(keras.Sequential([keras.Input((8, 8, 1)), *layers]))


def lenet() -> Any:
    """Bayesian, two convolutions with pooling."""
    layers = [
        Conv2DFlipout(6, 3, padding="same", activation="relu"),
        L.MaxPooling2D(2),
        Conv2DFlipout(8, 3, activation="tanh"),
        L.AveragePooling2D(2),
        L.Flatten(),
        DenseFlipout(4),
    ]
    return classifier(keras.Sequential([keras.Input((8, 8, 1)), *layers]))


def residual() -> Any:
    """Bayesian, one block of a residual network."""
    inputs = keras.Input((8, 8, 1))
    x = L.ReLU()(L.BatchNormalization()(Conv2DFlipout(6, 3, padding="same", use_bias=False)(inputs)))
    y = L.BatchNormalization()(Conv2DFlipout(6, 3, padding="same", strides=2)(x))
    x = L.ReLU()(L.Add()([y, Conv2DFlipout(6, 1, strides=2)(x)]))
    return classifier(keras.Model(inputs, DenseFlipout(4)(L.GlobalAveragePooling2D()(x))))


NETWORKS: dict[str, Callable[[], Any]] = {"mlp": mlp, "lenet": lenet, "residual": residual}


def settled(model: Any) -> Any:
    """`model` with moving statistics away from where they begin."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(rng.normal(size=layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
    return model


def run(form: str, content: bytes, x: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of an exported file, by the loader of its form."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FORMS[form].file
        path.write_bytes(content)
        return FORMS[form].runner(path)({"inputs": x})
