"""Functions of users under names of Keras's: each stays what it is, in copies, means, heads and exports, or is refused in files."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, library_of, tf
from tfp_bprune.graphs.copying import copy_of
from tfp_bprune.graphs.heads import heads_of
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.layers.rules import activation_name
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.moments import match_of
from tfp_bprune.types import BpruneError

L = keras.layers
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
STEPS = np.random.default_rng(1).normal(size=(6, 3, 4)).astype(np.float32)


def relu(z: Any) -> Any:
    return tf.nn.relu(z) + 1.0


def linear(z: Any) -> Any:
    return 2.0 * tf.abs(z)


@keras.saving.register_keras_serializable("tests")
def gelu(z: Any) -> Any:
    return -2.0 * tf.nn.gelu(z)


@functools.wraps(keras.activations.tanh)
def wrapped(z: Any) -> Any:
    return 3.0 * tf.tanh(z)


def softmax(z: Any) -> Any:
    return tf.nn.softmax(5.0 * z)


FUNCTIONS: list[Callable[[Any], Any]] = [relu, linear, gelu, wrapped]


def sequential(*layers: Any, shape: tuple[int, ...] = (4,)) -> Any:
    model = keras.Sequential([keras.Input(shape), *layers, L.Dense(3, "softmax")])
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


NETWORKS: dict[str, Callable[[Any], Any]] = {
    "dense": lambda f: sequential(L.Dense(5, f)),
    "float64": lambda f: sequential(L.Dense(5, f, dtype="float64")),
    "half": lambda f: sequential(L.Dense(5, f, dtype="mixed_bfloat16")),
    "cell": lambda f: sequential(L.RNN(L.SimpleRNNCell(5, f)), shape=(3, 4)),
    "cells": lambda f: sequential(
        L.RNN([L.SimpleRNNCell(5, f, name="same"), L.GRUCell(2, recurrent_activation=f), L.SimpleRNNCell(2, name="same")]),
        shape=(3, 4),
    ),
    "steps": lambda f: sequential(L.TimeDistributed(L.Dense(5, f, dtype="float64")), L.Flatten(), shape=(3, 4)),
    "nested": lambda f: sequential(
        L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(5, f)])), L.Flatten(), shape=(3, 4)
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS, ids=["relu", "linear", "gelu", "tanh"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_function_under_a_name_of_keras_is_not_taken_for_it(name: str, function: Any, tmp_path: Path) -> None:
    model = NETWORKS[name](function)
    x = tf.constant(STEPS if model.input_shape[1:] == (3, 4) else X)
    expected = np.asarray(model(x), np.float32)
    close = {"rtol": 0.05, "atol": 0.05} if name == "half" else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(rebuild(model, lambda _: None, lambda *_: None)(x), expected, **close)
    for predictive in ("mean", "moments"):
        np.testing.assert_allclose(Predictor(model, predictive).predict(x)["probabilities"], expected, **close)  # type: ignore[arg-type]
    with pytest.raises(
        BpruneError, match=r"has a function of its own as .*, which cannot be stored without code"
    ) as caught:
        bp.save_model(model, tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", FUNCTIONS, ids=["relu", "linear", "gelu", "tanh"])
def test_moments_do_not_take_the_rule_of_a_name(function: Any) -> None:
    layer = L.Dense(3, function)
    with pytest.raises(BpruneError, match=rf"has the activation '.*\.{function.__name__}' within the network"):
        match_of(layer)
    assert match_of(L.Dense(3, tf.nn.relu)) is not None
    assert match_of(L.Dense(3)) is None


def test_a_softmax_of_ones_own_says_nothing_of_the_output() -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, softmax)])
    with pytest.raises(BpruneError, match="it is unclear what output"):
        heads_of(model)
    with pytest.raises(BpruneError, match="does not end in a softmax"):
        Predictor(model, "moments", task="classification", from_logits=False)


def mse(y: Any, logits: Any) -> Any:
    return tf.reduce_sum((y - tf.nn.softmax(logits)) ** 2, -1)


class MeanSquaredError(keras.losses.Loss):
    def call(self, y_true: Any, y_pred: Any) -> Any:
        return mse(y_true, y_pred)


@pytest.mark.parametrize("loss", [mse, MeanSquaredError(), MeanSquaredError(name="mse")])
def test_a_loss_under_a_name_of_keras_says_nothing_of_the_output(loss: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    model.compile("sgd", loss)
    with pytest.raises(BpruneError, match="it is unclear what output"):
        heads_of(model)


def test_functions_of_libraries_are_known_whatever_they_are_called() -> None:
    known = [keras.activations.relu, tf.nn.relu, tf.nn.softmax, tf.nn.silu, keras.losses.huber]
    assert [library_of(one) for one in known] == ["tf_keras", "tensorflow", "tensorflow", "tensorflow", "tf_keras"]
    assert [library_of(one) for one in (*FUNCTIONS, softmax, None, np.tanh)] == [None] * 7
    assert activation_name(L.Dense(1, tf.nn.softmax)) == "softmax"


class Holding(L.Layer):
    """Says of the layer within it what no copy can be made of."""

    def __init__(self, units: int, activation: Any, **options: Any) -> None:
        super().__init__(**options)
        self.inner = L.Dense(units, activation)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"units": self.inner.units, "activation": self.inner.activation.__name__}

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def test_a_function_that_a_config_loses_is_refused_by_name() -> None:
    copy_of(Holding(3, keras.activations.relu))
    with pytest.raises(BpruneError, match=r"holds layer '.*', whose activation is the function .*\.relu") as caught:
        copy_of(Holding(3, relu))
    assert "\n" not in str(caught.value)
