"""Ordinary Keras models made Bayesian, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.layers import Variational
from tfp_bprune.models import strip
from tfp_bprune.models.bayesianize import bayesianize
from tfp_bprune.types import BpruneError

DELTA = 0.1


def ordinary() -> Any:
    """A convolutional network with a residual addition and batch normalization."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv_1")(inputs)
    x = keras.layers.BatchNormalization()(x)
    y = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv_2")(x)
    x = keras.layers.Flatten()(keras.layers.Add()([x, y]))
    return keras.Model(inputs, keras.layers.Dense(5, name="dense")(x))


@pytest.mark.parametrize("layers", ["flipout", "reparameterization"])
def test_strip_undoes_it_to_the_last_bit(layers: Any) -> None:
    model = ordinary()
    bayesian = bayesianize(model, layers, train_size=10)
    assert [type(layer).__name__ for layer in strip(bayesian).layers] == [
        type(layer).__name__ for layer in model.layers
    ]
    for ours, theirs in zip(strip(bayesian).get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_moped_puts_sigma_and_prior_at_the_weights() -> None:
    model = ordinary()
    posterior = bayesianize(model, moped=DELTA).get_layer("dense").kernel_posterior
    w = model.get_layer("dense").kernel.numpy()
    np.testing.assert_allclose(posterior.scale, DELTA * np.abs(w), rtol=2e-5)
    np.testing.assert_array_equal(posterior.prior_loc, w)


def test_include_and_exclude_choose_layers_by_pattern() -> None:
    bayesian = bayesianize(ordinary(), include=["conv*"], exclude=["conv_2"])
    assert [layer.name for layer in bayesian.layers if isinstance(layer, Variational)] == ["conv_1"]


def test_unsupported_layers_are_named() -> None:
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.DepthwiseConv2D(3, name="deep")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    with pytest.warns(UserWarning, match="deep"):
        bayesianize(model)
    with pytest.raises(BpruneError, match="deep"):
        bayesianize(model, strict=True)


def test_shared_layers_and_contradictions_are_refused() -> None:
    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, name="twice")
    with pytest.raises(BpruneError, match="twice"):
        bayesianize(keras.Model(inputs, shared(shared(inputs))))
    with pytest.raises(BpruneError, match="either rho_init or moped"):
        bayesianize(ordinary(), rho_init=-3.0, moped=DELTA)
    with pytest.raises(BpruneError, match="no layer"):
        bayesianize(ordinary(), include=["nothing"])
