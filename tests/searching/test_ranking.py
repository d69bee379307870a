"""The refined order: its gradient against finite differences, its thresholds against a sort, and what it is good for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.networks import build
from tfp_bprune.training import Settings, fit
from tfp_bprune.trials.ranking import Ranking, _pulls, _Scores, by_score, refined
from tfp_bprune.trials.trial import Evaluator


@pytest.fixture(scope="module")
def trained(digits: Splits) -> Any:
    """A network that has learned something."""
    model = build("mlp", digits.info, layers="flipout", options={"hidden": (16,)})
    fit(model, digits, settings=Settings(epochs=12, learning_rate=0.01), progress=False)
    return model


def cross_entropy(evaluator: Evaluator, x: np.ndarray, taught: np.ndarray, masks: dict[str, np.ndarray]) -> float:
    return float(-np.mean(np.sum(taught * np.log(np.maximum(evaluator.probabilities(x, masks), 1e-30)), 1)))


def test_pulls_are_slopes_by_the_presence_of_a_weight(trained: Any, digits: Splits) -> None:
    evaluator, order = Evaluator(trained, "snr"), by_score(trained, "snr")
    x = digits.examples("train").x[:100]
    taught = evaluator.probabilities(x).astype(np.float32)
    masks = {name: mask.astype(np.float32) for name, mask in order.masks(order.globally(300)).items()}
    evaluator.hold(masks)
    pulls = _pulls(evaluator)(tf.constant(x, tf.float32), tf.constant(taught)).numpy()
    parted = _Scores(order.scores).parted(pulls)
    rng, eps = np.random.default_rng(0), 0.02
    for name, pull in parted.items():
        places = rng.choice(np.argsort(-np.abs(pull).ravel())[:60], 6, replace=False)  # some kept, some not, none at 0
        for place in places:
            losses = []
            for change in (eps, -eps):
                moved = {key: mask.copy() for key, mask in masks.items()}
                moved[name].ravel()[place] += change
                losses.append(cross_entropy(evaluator, x, taught, moved))
            slope = (losses[0] - losses[1]) / (2 * eps)
            assert pull.ravel()[place] == pytest.approx(slope, rel=0.05, abs=2e-4)


def test_the_refined_order_keeps_more_with_fewer_weights(trained: Any, digits: Splits) -> None:
    """With the sign of the pull reversed the first is ten times the second."""
    evaluator, order, train = Evaluator(trained, "snr"), by_score(trained, "snr"), digits.examples("train")
    taught = (evaluator.probabilities(train.x) + np.eye(10)[train.y]) / 2
    around = 300
    better = Ranking(refined(evaluator, train, order, around, steps=1000))
    for total in (around, round(0.6 * around)):
        losses = [cross_entropy(evaluator, train.x, taught, o.masks(o.globally(total))) for o in (better, order)]
        assert losses[0] < 0.95 * losses[1]


def test_thresholds_are_those_of_a_sort_while_scores_move() -> None:
    rng = np.random.default_rng(0)
    start = {"a/kernel": rng.random((40, 50)), "b/kernel": np.where(rng.random((30, 10)) < 0.3, -np.inf, 1.0)}
    scores = _Scores(start)
    gone = scores.values == -np.inf
    assert gone.sum() == np.count_nonzero(start["b/kernel"] == -np.inf)
    for _ in range(200):
        total = int(rng.integers(1, 600))
        kept = scores.highest(total)
        cut = np.sort(scores.values)[-total]
        np.testing.assert_array_equal(kept, (scores.values >= cut) & ~gone)
        scores.move(rng.normal(size=len(gone)).astype(np.float32), 0.3, kept)
        np.testing.assert_array_equal(scores.values == -np.inf, gone)
    parted = scores.parted(scores.values)
    assert {name: part.shape for name, part in parted.items()} == {"a/kernel": (40, 50), "b/kernel": (30, 10)}
