"""Exact removal of dead units: on networks pruned at random, outputs stay equal to within float32 rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.branching import NAMES, NETWORKS, built, randomized
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.compact import compact
from tfp_bprune.graphs.walk import walk
from tfp_bprune.layers import DenseReparameterization
from tfp_bprune.layers.rules.activations import _ELEMENTWISE
from tfp_bprune.networks import build
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.prediction.lower import lowered
from tfp_bprune.prediction.passes import Draws

L = keras.layers
Pruner = Callable[..., Any]


@pytest.fixture(scope="module", params=NETWORKS, ids=NAMES)
def network(request: pytest.FixtureRequest) -> Any:
    """One architecture, built once."""
    return built(*request.param)


@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), fraction=st.sampled_from([0.5, 0.8, 0.95]))
def test_outputs_stay_equal(network: Any, prune_at_random: Pruner, seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    pruned = prune_at_random(randomized(network, rng), rng, fraction)
    small = compact(pruned)
    x = rng.normal(size=(5, *network.input_shape[1:])).astype(np.float32)
    expected = pruned(x).numpy()
    np.testing.assert_allclose(small(x), expected, rtol=2e-5, atol=2e-6 * max(1, np.abs(expected).max()))
    assert small.count_params() <= pruned.count_params()
    assert (small.input_shape, small.output_shape) == (pruned.input_shape, pruned.output_shape)


def chain_with(mask_1: np.ndarray, mask_2: np.ndarray, activation: str) -> Any:
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, activation, name="a"), L.Dense(2, name="b")])
    model.get_layer("a").set_weights([np.where(mask_1, 0.5, 0.0), np.array([0.1, -0.2, 0.3, 0.4])])
    model.get_layer("b").set_weights([np.where(mask_2, 0.7, 0.0), np.array([0.5, 0.6])])
    return model


def test_a_unit_that_nothing_reads_goes() -> None:
    mask_2 = np.ones((4, 2), bool)
    mask_2[1] = False
    small = compact(chain_with(np.ones((3, 4), bool), mask_2, "relu"))
    assert small.get_layer("a").units == 3
    np.testing.assert_allclose(small.get_layer("b").bias, [0.5, 0.6])


def test_a_unit_that_reads_nothing_goes_and_its_value_stays_in_the_bias() -> None:
    mask_1 = np.ones((3, 4), bool)
    mask_1[:, 2] = False
    small = compact(chain_with(mask_1, np.ones((4, 2), bool), "sigmoid"))
    assert small.get_layer("a").units == 3
    np.testing.assert_allclose(small.get_layer("b").bias, np.array([0.5, 0.6]) + 0.7 / (1 + np.exp(-0.3)), rtol=1e-6)


@pytest.mark.parametrize("as_layer", [False, True])
@pytest.mark.parametrize("name", sorted(_ELEMENTWISE))
def test_constants_pass_every_activation(name: str, as_layer: bool) -> None:
    """Keras's functions take tensors: not all of them take arrays."""
    x = keras.Input((3,))
    y = L.Activation(name)(L.Dense(4, name="a")(x)) if as_layer else L.Dense(4, name, name="a")(x)
    model = keras.Model(x, L.Dense(2, name="b")(y))
    kernel = np.random.default_rng(0).normal(size=(3, 4))
    kernel[:, 1] = 0
    model.get_layer("a").set_weights([kernel, np.array([0.1, -0.7, 0.3, 0.4])])
    small = compact(model)
    assert small.get_layer("a").units == 3
    inputs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(small(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_death_spreads_through_layers() -> None:
    model = keras.Sequential([keras.Input((3,)), *[L.Dense(4, "relu", name=n) for n in "abc"], L.Dense(2, name="d")])
    kernel = model.get_layer("d").get_weights()[0]
    kernel[1:] = 0  # one unit of c is read, which is read from one unit of b, and that from one of a
    model.get_layer("d").set_weights([kernel, np.ones(2)])
    for name in "bc":
        kernel, bias = model.get_layer(name).get_weights()
        kernel[1:, 0] = 0
        model.get_layer(name).set_weights([kernel, bias])
    assert [compact(model).get_layer(name).units for name in "abc"] == [1, 1, 1]


def test_a_padded_convolution_keeps_a_constant_channel() -> None:
    # At the border its readers see zeros, not the constant, so no bias can stand for it.
    for padding, filters in (("same", 2), ("valid", 1)):
        layers = [L.Conv2D(2, 1, name="a"), L.Conv2D(3, 3, padding=padding), L.Flatten()]
        model = keras.Sequential([keras.Input((5, 5, 1)), *layers])
        model.get_layer("a").set_weights([np.array([1.0, 0.0]).reshape(1, 1, 1, 2), np.array([0.1, 2.0])])
        assert compact(model).get_layer("a").filters == filters


def test_a_dead_network_keeps_its_answer() -> None:
    model = chain_with(np.zeros((3, 4), bool), np.zeros((4, 2), bool), "relu")
    small = compact(model)
    assert small.get_layer("a").units == 1
    np.testing.assert_allclose(small(np.ones((2, 3), np.float32)), [[0.5, 0.6]] * 2, rtol=1e-6)


def test_a_network_without_dead_units_comes_back_itself(mlp: Callable[..., Any]) -> None:
    model = mlp("deterministic")
    assert compact(model) is model


def drawn(model: Any, x: np.ndarray, draws: int, seed: int) -> np.ndarray:
    rule = Draws(lowered(model, Lowering("dense")), seed)
    [outputs] = walk(model, [rule.start(tf.constant(x), 0, draws)], rule)
    return outputs.as_rows().mean.numpy()


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_bayesian_networks_keep_the_mean_of_their_draws(digits: Any, prune_at_random: Pruner, seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = {"hidden": (12, 10)}
    model = build("mlp", digits.info, layers="reparameterization", options=options, rho_init=-1.0, bayesian_bias=True)
    model = prune_at_random(model, rng, 0.9, include_bias=True)
    small = compact(model)
    assert small.count_params() < model.count_params()
    x = rng.uniform(0, 16, (1, 8, 8, 1)).astype(np.float32)
    one, other = (drawn(m, x, 4000, seed=i) for i, m in enumerate((model, small)))
    error = np.sqrt((one.var(0) + other.var(0)) / len(one))
    assert (np.abs(one.mean(0) - other.mean(0)) <= 5.5 * error + 1e-6).all()


def test_what_varies_is_never_taken_for_a_constant() -> None:
    # The mean of a unit's weights is 0 but their scale is not: it is noise, not a constant.
    inputs = keras.Input((2,))
    x = DenseReparameterization(3, activation="relu", name="noisy", bayesian_bias=True, rho_init=0.0)(inputs)
    model = keras.Model(inputs, L.Dense(2)(x))
    q = model.get_layer("noisy").kernel_posterior
    q.loc_variable.assign(np.zeros((2, 3)))
    assert compact(model) is model


def test_a_constant_that_monte_carlo_dropout_meets_is_no_constant() -> None:
    inputs = keras.Input((4,))
    hidden = L.Dropout(0.5)(L.Dense(3, "relu", name="hidden")(inputs), training=True)
    model = keras.Model(inputs, L.Dense(2, name="top")(hidden))
    # One unit without a varying input but a bias, one that is always 0, one that varies.
    kernel = np.zeros((4, 3))
    kernel[:, 2] = 1
    model.get_layer("hidden").set_weights([kernel, np.array([1.0, 0, 0])])
    assert compact(model).get_layer("hidden").units == 2


def test_layers_that_only_train_at_random_hand_channels_on() -> None:
    layers = [L.Conv2D(4, 1, name="first"), L.RandomTranslation(0.1, 0.1), L.RandomFlip(), L.GaussianDropout(0.1)]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers, L.Conv2D(2, 3, name="second")])
    kernel = model.get_layer("second").kernel
    kernel.assign(kernel * np.array([1.0, 0, 1, 0])[:, None])
    assert compact(model).get_layer("first").filters == 2
