"""Networks that nobody thought of: what is removed from them, and that they answer the same without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.random_networks import drawn, examples_for
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.compact import compact
from tfp_bprune.graphs.convert import weighted_layers
from tfp_bprune.layers import kernels_of

Pruner = Callable[..., Any]
SEEDS = [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 212))]


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    """Keras forgets the network afterwards."""
    yield
    keras.backend.clear_session()


def answers(model: Any, x: list[np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(one) for one in tf.nest.flatten(model(x if len(x) > 1 else x[0], training=False))]


def assert_alike(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """To rounding: a sum in another order differs by the size of its terms."""
    for one, other in zip(found, expected, strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5 * max(1, np.abs(other).max()))


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_stay_equal_without_what_is_dead(seed: int, prune_at_random: Pruner) -> None:
    rng, model = np.random.default_rng(seed), drawn(seed)
    pruned = prune_at_random(model, rng, rng.choice([0.5, 0.8, 0.95]))
    small, x = compact(pruned), examples_for(model, rng, 4)
    assert_alike(answers(small, x), answers(pruned, x))
    assert small.count_params() <= pruned.count_params()


@pytest.mark.parametrize("seed", SEEDS)
def test_whole_units_leave_and_are_counted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = bp.bayesianize(drawn(seed))
    sparsity, scope = float(rng.choice([0.2, 0.5, 0.8])), str(rng.choice(["global", "layer"]))
    smaller, report = bp.prune(model, sparsity=sparsity, granularity="unit", scope=scope)  # type: ignore[arg-type]
    whole, small, x = bp.strip(smaller), bp.strip(smaller, compact=True), examples_for(model, rng, 4)
    assert_alike(answers(small, x), answers(whole, x))
    masks = [w.mask for layer in weighted_layers(smaller) for name, w in kernels_of(layer).items()]
    assert (report.pruned, report.prunable) == (sum(int((~m).sum()) for m in masks), sum(m.size for m in masks))
    assert not report.reached or report.pruned >= sparsity * report.prunable - 1e-6
