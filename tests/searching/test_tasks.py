"""Searches on other tasks than a class an example: what counts as lost, what may be asked, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from tfp_bprune._keras import keras, tf
from tfp_bprune.claims.budget import NumberPair, Pair
from tfp_bprune.data.splits import Splits, from_arrays
from tfp_bprune.graphs.heads import Head, note_heads
from tfp_bprune.layers import GaussianOutput
from tfp_bprune.searching import Budget, Settings, search
from tfp_bprune.trials.ranking import _pulls, _Scores, by_score, refined
from tfp_bprune.trials.trial import Answers, Evaluator, Numbers, said
from tfp_bprune.types import BpruneError, PruneError

L = keras.layers
N = 120
X = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
SIGNS = (X[:, :3] > 0).astype(np.int64)
TARGETS: dict[str, Any] = {
    "classification": X[:, :3].argmax(1), "binary": SIGNS[:, 0] > 0, "multilabel": SIGNS, "regression": 3 * X[:, 0] + 1,
}  # fmt: skip


def ending_in(*layers: Any) -> Any:
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(6, "tanh", kernel_initializer=keras.initializers.GlorotUniform(seed=2)), *layers]
    )


ENDS: dict[str, Any] = {
    "softmax": ("classification", lambda: [L.Dense(3, "softmax")], Head("classification")),
    "logit": ("binary", lambda: [L.Dense(1)], Head("binary", True)),
    "sigmoid": ("binary", lambda: [L.Dense(1, "sigmoid")], Head("binary")),
    "labels": ("multilabel", lambda: [L.Dense(3)], Head("multilabel", True)),
    "mean": ("regression", lambda: [L.Dense(1)], Head("regression")),
    "deviation": ("regression", lambda: [L.Dense(1), GaussianOutput()], Head("gaussian")),
}


def data_of(task: str) -> Splits:
    y = TARGETS[task]
    return from_arrays((X, y), (X[:40], y[:40]), validation_fraction=0.5)


def trained(name: str) -> tuple[Any, Splits]:
    """A plain network that has learned its task by ordinary least squares on its hidden layer, which is quick."""
    task, end, head = ENDS[name]
    model = ending_in(*end())
    hidden = keras.Sequential(model.layers[:1])(X).numpy()
    y = np.eye(3)[TARGETS[task]] if task == "classification" else TARGETS[task].reshape(N, -1).astype(np.float64)
    wanted = y if task == "regression" else 6 * y - 3
    solution = np.linalg.lstsq(np.column_stack([hidden, np.ones(N)]), wanted, rcond=None)[0]
    model.layers[1].set_weights([solution[:-1], solution[-1]])
    return note_heads(model, {model.output_names[0]: head}), data_of(task)


def test_what_is_said_is_a_question_each() -> None:
    p = np.array([[0.2, 0.9], [0.6, 0.4]])
    labels = said(Head("multilabel"), p, np.array([[0, 0], [1, 1]]))
    assert isinstance(labels, Answers)
    np.testing.assert_allclose(labels.probabilities[..., 1], p)
    np.testing.assert_array_equal(labels.right, [[True, False], [True, False]])
    np.testing.assert_array_equal(labels.accuracy, [0.5, 0.5])
    np.testing.assert_allclose(labels.margin, special.logit([[0.8, 0.1], [0.6, 0.4]]))
    np.testing.assert_allclose(labels.entropy, special.entr(np.stack([p, 1 - p])).sum((0, 2)))
    one = said(Head("binary"), p[:, :1], np.array([0, 1]))
    assert isinstance(one, Answers)
    np.testing.assert_array_equal(one.right, [True, True])
    pixels = said(Head("classification"), np.full((2, 3, 4, 5), 0.2), np.zeros((2, 3, 4), int))
    assert isinstance(pixels, Answers)
    assert (pixels.probabilities.shape, pixels.labels.shape) == ((2, 12, 5), (2, 12))
    means = said(Head("gaussian"), np.array([[1.0, 9.0], [2.0, 9.0]]), np.array([2.0, 4.0]))
    assert isinstance(means, Numbers)
    np.testing.assert_array_equal(means.squares, [1, 4])
    assert means.rmse == pytest.approx(np.sqrt(2.5))
    np.testing.assert_array_equal(Numbers(np.array([[1.0, 5.0]]), np.zeros((1, 2))).squares, [13])


def test_the_growth_of_the_rmse_is_a_part_of_itself() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=400)
    pair = NumberPair(Numbers(y + 1, y), Numbers(y + 1.1, y))
    assert pair.increase == pytest.approx(0.1)
    np.testing.assert_allclose(pair.beyond(0.1), 0, atol=1e-12)  # errors of 1.1 are 1 grown by a tenth, squares 1.21
    np.testing.assert_allclose(pair.beyond(0.0), 0.21)
    assert not Budget(None, max_rmse_increase=0.09).shown(pair)
    noisy = NumberPair(Numbers(0 * y, y), Numbers(0.1 * rng.normal(size=400), y))
    budget = Budget(None, max_rmse_increase=0.05)
    evidence = budget.evidence(noisy)
    condition = evidence["conditions"]["rmse_increase"]
    assert budget.shown(noisy)
    assert budget.excess(noisy, 400) < 0
    assert condition["estimate"] < condition["bound"] < 0.05
    assert evidence["p_value"] == condition["p_value"] < 0.05
    assert not Budget(None, max_rmse_increase=condition["bound"] - 1e-4).shown(noisy)


def test_questions_of_an_example_are_not_independent() -> None:
    # A tenth of 60 examples lose all of their 50 questions: as 60 examples of one question, not as 3,000.
    right = np.repeat(np.arange(60) >= 6, 50).reshape(60, 50)
    p = np.where(right, 0.9, 0.1)
    many = Answers(np.stack([p, 1 - p], -1), np.zeros((60, 50), int))
    whole = replace(many, probabilities=np.stack([np.full((60, 50), 0.9), np.full((60, 50), 0.1)], -1))
    pair = Pair(whole, many)
    assert (pair.drop, pair.lost) == (pytest.approx(0.1), 300)
    assert not Budget(0.15).shown(pair)
    assert Budget(0.3).shown(pair)


REFUSED: list[Any] = [
    ("mean", Budget(0.01), "max_accuracy_drop expects a classification.*give max_rmse_increase"),
    ("mean", Budget(None, 0.01), "max_ece_increase is for classes.*give max_rmse_increase"),
    ("logit", Budget(max_rmse_increase=0.1), "max_rmse_increase is for a regression, the network is a binary"),
    ("labels", Budget(0.01, 0.01), "max_ece_increase is for one class per example"),
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_a_budget_that_the_task_cannot_have_is_refused(case: int, tmp_path: Path) -> None:
    name, budget, message = REFUSED[case]
    with pytest.raises(BpruneError, match=message):
        search(*trained(name), tmp_path, settings=Settings(budget))


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BpruneError, match="max_rmse_increase must be positive"):
        Budget(None, max_rmse_increase=0.0)
    model, data = trained("mean")
    with pytest.raises(BpruneError, match="is a binary: the network was made for regression"):
        search(model, data_of("binary"), tmp_path, settings=Settings(Budget(max_rmse_increase=1.0)))
    inputs = keras.Input((4,))
    two = keras.Model(inputs, [L.Dense(1, "sigmoid", name="a")(inputs), L.Dense(1, "sigmoid", name="b")(inputs)])
    two = note_heads(two, {"a": Head("binary"), "b": Head("binary")})
    with pytest.raises(PruneError, match="2 outputs: a search expects one"):
        search(two, data, tmp_path)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "labels", "mean", "deviation"])
def test_pulls_are_slopes_of_the_loss_of_the_task(name: str) -> None:
    model, data = trained(name)
    evaluator, order, head = Evaluator(model, "magnitude"), by_score(model, "magnitude"), ENDS[name][2]
    x = data.examples("train").x
    whole = evaluator.probabilities(x).astype(np.float32)
    taught = whole[:, :1] if name == "deviation" else whole
    taught = 0.5 * taught + 0.3
    masks = {key: mask.astype(np.float32) for key, mask in order.masks(order.globally(20)).items()}

    def loss() -> float:
        p = evaluator.probabilities(x, masks)
        if not head.classifies:
            return float(np.mean((p[:, :1] - taught) ** 2))
        if head.task == "classification":
            return float(-(taught / taught.sum(1, keepdims=True) * np.log(p)).sum(1).mean())
        return float(-(taught * np.log(p) + (1 - taught) * np.log(1 - p)).mean())

    if head.task == "classification":
        taught = taught / taught.sum(1, keepdims=True)
    evaluator.hold(masks)
    pulls = _Scores(order.scores).parted(_pulls(evaluator)(tf.constant(x), tf.constant(taught)).numpy())
    for key, pull in pulls.items():
        place, eps = int(np.argmax(np.abs(pull))), 0.01
        ends = []
        for change in (eps, -eps):
            kept = masks[key]
            masks[key] = kept.copy()
            masks[key].ravel()[place] += change
            ends.append(loss())
            masks[key] = kept
        assert pull.ravel()[place] == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=0.02, abs=1e-4)


@pytest.mark.parametrize("name", ["labels", "deviation"])
def test_the_order_is_refined(name: str) -> None:
    model, data = trained(name)
    evaluator, order = Evaluator(model, "magnitude"), by_score(model, "magnitude")
    scores = refined(evaluator, data.examples("train"), order, 12, steps=20)
    assert {key: np.isfinite(score).all() for key, score in scores.items()} == dict.fromkeys(order.scores, True)


VITAL, MANY = 3, 400


def settled(name: str) -> tuple[Any, Splits]:
    """A network of which what a search must find is known beforehand: without the few vital weights it is lost, the others do
    next to nothing. So no draw of examples, split or seed decides whether the budget is met."""
    task, end, head = ENDS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(MANY, 4)).astype(np.float32)
    wanted = x[:, :1] if head.task in ("binary", "regression", "gaussian") else x[:, :VITAL]
    y = {
        "classification": wanted.argmax(1),
        "binary": wanted[:, 0] > 0,
        "multilabel": (wanted > 0).astype(np.int64),
        "regression": 3 * x[:, 0] + 0.5 * rng.normal(size=MANY),
    }[task]
    model = ending_in(*end())
    paths = wanted.shape[1]
    first, second = (1e-7 * rng.normal(size=layer.kernel.shape) for layer in model.layers[:2])
    first[np.arange(paths), np.arange(paths)] = 0.1  # where tanh is all but linear
    second[np.arange(paths), np.arange(paths)] = 30.0
    for layer, kernel in zip(model.layers, (first, second), strict=False):
        layer.set_weights([kernel, np.zeros(kernel.shape[1])])
    data = from_arrays((x, y), (x[:100], y[:100]), validation_fraction=0.5)
    return note_heads(model, {model.output_names[0]: head}), data


@pytest.mark.parametrize("name", ["softmax", "logit", "labels", "mean", "deviation"])
def test_a_search_ends_within_the_budget_of_its_task(name: str, tmp_path: Path) -> None:
    model, data = settled(name)
    # Where nothing is lost, about a hundred examples show a drop of less than .1; a path that is gone costs more.
    budget = Budget(0.1) if ENDS[name][2].classifies else Budget(max_rmse_increase=0.5)
    found = search(model, data, str(tmp_path), settings=Settings(budget, trials=40, order="score"))
    [(condition, evidence)] = found.layers.evidence["conditions"].items()
    assert condition == ("accuracy_drop" if ENDS[name][2].classifies else "rmse_increase")
    assert found.layers.holds
    assert evidence["estimate"] < evidence["bound"] <= evidence["limit"]
    assert found.test["interval"][0] <= found.test[condition] <= found.test["interval"][1]
    paths = 2 * (1 if name in ("logit", "mean", "deviation") else VITAL)
    assert paths <= sum(found.layers.counts.values()) < sum(found.rankings["score"].left.values())
    assert found.front
    again = search(model, data, str(tmp_path), settings=Settings(budget, trials=40, order="score"))
    assert (again.speed["evaluated"], again.rows) == (0, found.rows)


@pytest.mark.parametrize("name", ["softmax", "logit", "labels", "mean", "deviation"])
def test_without_a_vital_weight_the_network_of_the_searches_is_lost(name: str) -> None:
    model, data = settled(name)
    evaluator, order = Evaluator(model, "magnitude").on(data.examples("valid")), by_score(model, "magnitude")
    whole = {key: np.ones_like(score) for key, score in order.scores.items()}
    for key, score in order.scores.items():
        for place in np.argsort(score.ravel())[-VITAL if name in ("softmax", "labels") else -1 :]:
            masks = {**whole, key: np.where(np.arange(score.size).reshape(score.shape) == place, 0.0, 1.0)}
            before, after = evaluator.answers(whole), evaluator.answers(masks)
            if ENDS[name][2].classifies:
                assert before.accuracy.mean() - after.accuracy.mean() > 0.1
            else:
                assert after.rmse > 1.5 * before.rmse
