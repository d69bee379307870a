"""Exact removal of dead units: on networks pruned at random, outputs stay equal to within float32 rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfp_bprune._keras import keras, tf
from tfp_bprune.export.compact import compact
from tfp_bprune.export.kernels import Lowering
from tfp_bprune.export.lower import lowered
from tfp_bprune.export.passes import Draws
from tfp_bprune.export.walk import walk
from tfp_bprune.layers import DenseReparameterization
from tfp_bprune.models import build

L = keras.layers
Pruner = Callable[..., Any]


def dense_chain(x: Any) -> Any:
    for units, activation in ((9, "relu"), (8, "tanh"), (7, "sigmoid")):
        x = L.Dense(units, activation)(x)
    return L.Dense(3)(x)


def without_bias(x: Any) -> Any:
    x = L.Dense(6, "sigmoid", use_bias=False)(x)
    return L.Dense(3, use_bias=False)(L.Dense(5, "relu", use_bias=False)(x))


def softmax_inside(x: Any) -> Any:
    # A softmax ties all of its channels together: the others feel the loss of one.
    return L.Dense(3)(L.Softmax()(L.Dense(6)(L.Dense(5, "softmax")(x))))


def residual(x: Any) -> Any:
    x = L.Dense(6, "relu")(x)
    y = L.Dense(6, "sigmoid")(x)
    x = L.Add()([x, L.Dense(6)(y)])
    return L.Dense(3)(L.Activation("elu")(x))


def concatenated(x: Any) -> Any:
    a, b = L.Dense(4, "relu")(x), L.Dense(5, "sigmoid")(x)
    return L.Dense(3)(L.BatchNormalization()(L.Concatenate()([a, b, a])))


def skip_to_the_output(x: Any) -> Any:
    y = L.Dense(3, "relu")(x)
    return L.Add()([y, L.Dense(3)(L.Dense(4, "tanh")(y))])


def convolutions(padding: str) -> Callable[[Any], Any]:
    def network(x: Any) -> Any:
        x = L.Conv2D(5, 3, padding=padding, activation="sigmoid")(x)
        x = L.BatchNormalization()(x)
        x = L.MaxPooling2D(2, padding=padding)(x)
        x = L.Conv2D(4, 2, padding=padding, strides=2, activation="relu")(x)
        x = L.AveragePooling2D(2, padding="same")(x)
        return L.Dense(3)(L.Dropout(0.3)(L.Flatten()(x)))

    return network


def pooled(x: Any) -> Any:
    x = L.LeakyReLU()(L.Conv2D(6, 2, padding="same")(x))
    return L.Dense(3)(L.GlobalAveragePooling2D()(L.Conv2D(5, 1)(L.ReLU(max_value=0.5)(x))))


def convolution_blocks(x: Any) -> Any:
    x = L.Conv2D(4, 1, activation="relu")(x)
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x))
    x = L.Concatenate()([L.Add()([x, y]), L.DepthwiseConv2D(3, padding="same")(y)])
    return L.Dense(3)(L.GlobalMaxPooling2D()(L.Conv2D(3, 2)(x)))


def along_rows(x: Any) -> Any:
    # Pooling that takes the rows for channels: what it gives out has nothing to do with the filters.
    x = L.Conv2D(6, 1, activation="sigmoid")(x)
    return L.Dense(3)(L.GlobalAveragePooling2D(data_format="channels_first")(x))


def one_dimension(x: Any) -> Any:
    x = L.Conv1D(5, 2, activation="sigmoid", padding="causal")(L.Reshape((12, 6))(x))
    return L.Dense(3)(L.GlobalMaxPooling1D()(L.Conv1D(4, 3, activation="relu", padding="valid")(x)))


FLAT = [dense_chain, without_bias, softmax_inside, residual, concatenated, skip_to_the_output]
IMAGES = [convolutions("valid"), convolutions("same"), pooled, convolution_blocks, along_rows, one_dimension]
NETWORKS = [((6,), network) for network in FLAT] + [((6, 6, 2), network) for network in IMAGES]
NAMES = [n.__name__ for n in FLAT] + ["valid", "same", *(n.__name__ for n in IMAGES[2:])]


def randomized(model: Any, rng: np.random.Generator) -> Any:
    """`model` with biases, moving means and all else away from their zeros, and some biases and channels at 0."""
    model.set_weights([rng.uniform(0.2, 1, w.shape) * rng.choice([-1, 1], w.shape) for w in model.get_weights()])
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
            layer.gamma.assign(layer.gamma * (rng.random(layer.gamma.shape) > 0.3))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(layer.bias * (rng.random(layer.bias.shape) > 0.3))
    return model


@pytest.fixture(scope="module", params=NETWORKS, ids=NAMES)
def network(request: pytest.FixtureRequest) -> Any:
    """One architecture, built once."""
    shape, body = request.param
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


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
    model = build("mlp", "reparameterization", digits.info, options=options, rho_init=-1.0, bayesian_bias=True)
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


def test_models_without_a_plain_graph_come_back_as_they_are() -> None:
    nested = keras.Sequential([keras.Input((3,)), keras.Sequential([L.Dense(2), L.Dense(2)])])
    nested.set_weights([np.zeros_like(w) for w in nested.get_weights()])
    assert compact(nested) is nested
