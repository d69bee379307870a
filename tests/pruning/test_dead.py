"""Dead weights: none of those that go is missed by the mean network, and none that is left can be spared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.branching import NAMES, NETWORKS, built, randomized
from tfp_bprune import Settings, fit, load
from tfp_bprune._keras import keras, tfp
from tfp_bprune.graphs import compact
from tfp_bprune.layers import DenseFlipout, Variational
from tfp_bprune.networks import build
from tfp_bprune.pruning import GradualPruning, polynomial, remove_dead
from tfp_bprune.pruning.prune import apply_masks
from tfp_bprune.pruning.select import prunable_weights

Pruner = Callable[..., Any]


@pytest.fixture(scope="module", params=NETWORKS, ids=NAMES)
def network(request: pytest.FixtureRequest) -> Any:
    """One architecture of plain layers, built once."""
    return built(*request.param)


def left_in(model: Any) -> int:
    return sum(int(np.count_nonzero(w.mask)) for w in prunable_weights(model, "magnitude").values())


@settings(max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), fraction=st.sampled_from([0.5, 0.8, 0.95]))
def test_outputs_stay_equal_and_nothing_more_can_go(
    network: Any, prune_at_random: Pruner, seed: int, fraction: float
) -> None:
    rng = np.random.default_rng(seed)
    model = prune_at_random(randomized(network, rng), rng, fraction)
    x = rng.normal(size=(5, *network.input_shape[1:])).astype(np.float32)
    before, expected = left_in(model), model(x).numpy()
    removed = remove_dead(model)
    np.testing.assert_allclose(model(x), expected, rtol=2e-5, atol=2e-6 * max(1, np.abs(expected).max()))
    assert left_in(model) == before - removed
    assert remove_dead(model) == 0


def on_paths(masks: list[np.ndarray]) -> list[np.ndarray]:
    """The weights of dense layers that lie on a path from an input to an output, found by counting such paths."""
    ahead, behind = [np.ones(masks[0].shape[0])], [np.ones(masks[-1].shape[1])]
    for mask in masks:
        ahead.append((ahead[-1] @ mask > 0).astype(float))
    for mask in reversed(masks):
        behind.append((mask @ behind[-1] > 0).astype(float))
    behind.reverse()
    return [m & (ahead[i] > 0)[:, None] & (behind[i + 1] > 0) for i, m in enumerate(masks)]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), fraction=st.floats(0.3, 0.97))
def test_what_is_left_of_a_bayesian_network_lies_on_paths(digits: Any, seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    model = build("mlp", digits.info, layers="flipout", options={"hidden": (12, 10)})
    layers = [layer for layer in model.layers if isinstance(layer, Variational)]
    masks = [rng.random(layer.kernel_posterior.shape) >= fraction for layer in layers]
    assume(all(left.any() for left in on_paths(masks)))  # else a layer keeps a unit that nothing needs
    apply_masks(model, {f"{layer.name}/kernel": mask for layer, mask in zip(layers, masks, strict=True)})
    for layer in layers:
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    remove_dead(model)
    for layer, expected in zip(layers, on_paths(masks), strict=True):
        np.testing.assert_array_equal(layer.kernel_posterior.mask, expected)


def chain(**options: Any) -> Any:
    """Two Bayesian layers, the second of which reads a unit without weights."""
    layers = [DenseFlipout(2, activation="relu", name="a"), DenseFlipout(3, name="b", **options)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.get_layer("a").bias.assign([0.5, 2.0])
    mask = np.ones((4, 2), bool)
    mask[:, 1] = False
    apply_masks(model, {"a/kernel": mask})
    return model


@pytest.mark.parametrize("bayesian_bias", [False, True])
def test_means_of_a_constants_readers_go_into_the_bias(bayesian_bias: bool) -> None:
    model = chain(bayesian_bias=bayesian_bias)
    reader = model.get_layer("b")
    loc = reader.kernel_posterior.loc.numpy()
    assert remove_dead(model) == 3
    bias = reader.bias_posterior.loc if bayesian_bias else reader.bias
    np.testing.assert_allclose(bias, 2.0 * loc[1], rtol=1e-6)


def test_a_constant_stays_where_no_bias_can_take_it() -> None:
    assert remove_dead(chain(use_bias=False)) == 0
    pruned = chain(bayesian_bias=True)
    apply_masks(pruned, {"b/bias": np.array([True, False, True])})
    assert remove_dead(pruned) == 0


def test_a_graph_that_is_not_plain_stays() -> None:
    nested = keras.Sequential([keras.Input((3,)), keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(2)])])
    nested.set_weights([np.zeros_like(w) for w in nested.get_weights()])
    assert remove_dead(nested) == 0
    raw = keras.Sequential([keras.Input((3,)), tfp.layers.DenseFlipout(2), keras.layers.Dense(2)])
    raw.layers[-1].set_weights([np.zeros((2, 2)), np.zeros(2)])
    assert remove_dead(raw) == 0
    assert compact(raw) is raw


@pytest.mark.parametrize(("layers", "criterion"), [("flipout", "snr"), ("deterministic", "magnitude")])
def test_gradual_pruning_leaves_no_dead_weights(layers: Any, criterion: Any) -> None:
    data = load("digits")
    model = build("mlp", data.info, layers=layers, options={"hidden": (64, 64)})
    callback = GradualPruning(polynomial(0.98, 0, data.steps), steps_per_epoch=data.steps, every=5, criterion=criterion)
    fit(model, data, settings=Settings(epochs=2), callbacks=[callback], progress=False)
    total = sum(w.loc.size for w in prunable_weights(model, criterion).values())
    assert 0 < left_in(model) <= total * 0.02 + 1
    assert remove_dead(model) == 0
