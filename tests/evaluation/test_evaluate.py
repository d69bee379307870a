"""`evaluate`: the scores of what an export gives, their intervals, and targets in any form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tfp_bprune as bp
from tests.bounds import FALSE_ALARM
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.evaluate import evaluated
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.evaluation.prediction import Prediction
from tfp_bprune.evaluation.uncertainty import area_under_risk_coverage
from tfp_bprune.graphs.heads import Head
from tfp_bprune.types import DataError


def said(probabilities: np.ndarray, task: Any = "classification") -> Prediction:
    entropy = stats.entropy(probabilities, axis=-1) if task == "classification" else probabilities * 0
    return Prediction({"probabilities": probabilities, "entropy": entropy}, {"out": Head(task)}, "mean")


def test_scores_are_those_of_the_outputs(tiny_model: Any, digits: Splits) -> None:
    test = digits.examples("test")
    scores = bp.evaluate(tiny_model, digits, predictive="moments")
    answers = bp.predict(tiny_model, test, predictive="moments")
    expected = of_outputs(answers.outputs, test.y)
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    right = answers.labels == test.y
    assert scores["aurc"] == pytest.approx(area_under_risk_coverage(answers.entropy, right), rel=1e-5)
    exact = stats.binomtest(int(right.sum()), len(right)).proportion_ci(0.95, "exact")
    assert scores.intervals["accuracy"] == (exact.low, exact.high)
    for name, value in scores.items():
        low, high = scores.intervals[name]
        assert low <= high
        assert name == "ece" or low <= value <= high
    assert "accuracy" in repr(scores)
    assert scores.to_json()["intervals"]["nll"] == list(scores.intervals["nll"])
    with pytest.raises(DataError, match="there is no score 'f1': expected one of accuracy"):
        scores["f1"]


TARGETS: dict[str, Callable[[np.ndarray], Any]] = {
    "floats": lambda y: y.astype(np.float32),
    "one-hot": lambda y: np.eye(10)[y],
    "columns": lambda y: y[:, None],
    "list": lambda y: y.tolist(),
    "tensor": tf.constant,
}


@pytest.mark.parametrize("form", TARGETS)
def test_targets_come_in_any_form(tiny_model: Any, digits: Splits, form: str) -> None:
    test = digits.examples("test").rows(slice(100))
    expected = bp.evaluate(tiny_model, test, predictive="mean")
    y = TARGETS[form](test.y)
    for data in (((test.x, y), None), (test.x, y), (tf.data.Dataset.from_tensor_slices((test.x, y)).batch(30), None)):
        assert dict(bp.evaluate(tiny_model, *data, predictive="mean")) == pytest.approx(dict(expected))


def test_what_cannot_be_scored_is_refused(tiny_model: Any, digits: Splits) -> None:
    test = digits.examples("test").rows(slice(20))
    for data, message in (
        ((test.x, None), "examples without targets: expected"),
        ((test.x, test.y[:3]), "arrays of 3 and 20 examples"),
        ((test.x, test.y + 5), "classes from 5 to 14: expected 0 to 9"),
        ((test, test.y), "a split has its own, leave y out"),
        ((test.x, np.zeros((20, 3))), "targets of shape"),
    ):
        with pytest.raises(bp.BpruneError, match=message):
            bp.evaluate(tiny_model, *data, predictive="mean")
    with pytest.raises(DataError, match="level must be in"):
        bp.evaluate(tiny_model, test, level=95)


def test_a_regression_and_several_outputs() -> None:
    rng = np.random.default_rng(0)
    mean, y = np.zeros(400), rng.normal(size=400)
    outputs = {"size_mean": mean, "size_noise_std": np.ones(400), "kind_probabilities": np.full((400, 1), 0.25)}
    outputs["kind_entropy"] = np.zeros(400)
    heads = {"size": Head("gaussian"), "kind": Head("binary")}
    targets = {"kind": rng.random(400) < 0.25, "size": y}
    scores = evaluated(Prediction(outputs, heads, "mean"), targets)
    expected = of_outputs({"mean": mean, "noise_std": np.ones(400)}, y)
    assert {key: scores[f"size_{key}"] for key in expected} == pytest.approx(expected)
    assert scores["kind_brier"] == pytest.approx(2 * np.mean((targets["kind"] - 0.25) ** 2))
    inside = int((np.abs(y) <= stats.norm.ppf(0.975)).sum())
    found = scores.intervals["size_coverage"]
    assert found == tuple(stats.binomtest(inside, 400).proportion_ci(0.95, "exact"))
    with pytest.raises(DataError, match="targets 'size': expected some for 'size', 'kind'"):
        evaluated(Prediction(outputs, heads, "mean"), {"size": y})


def test_labels_of_several_kinds_and_positions() -> None:
    rng = np.random.default_rng(1)
    p, y = rng.random((60, 3)), rng.integers(0, 2, (60, 3))
    scores = evaluated(said(p, "multilabel"), y)
    expected = of_outputs({"probabilities": p}, y)
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    p, y = rng.dirichlet(np.ones(4), (20, 5)), rng.integers(0, 4, (20, 5))
    scores = evaluated(said(p), y)
    expected = of_outputs({"probabilities": p}, y)
    assert {key: scores[key] for key in expected} == pytest.approx(expected)


def test_intervals_hold_the_population_as_often_as_they_say() -> None:
    """Of labels drawn by the probabilities: the population's ECE is 0, and its NLL and Brier score are known."""
    rng, trials, missed = np.random.default_rng(2), 60, {"nll": 0, "brier": 0, "ece": 0, "accuracy": 0}
    levels = np.array([[0.9, 0.1], [0.6, 0.4]])
    truth = {
        "nll": float(np.mean(stats.entropy(levels, axis=1))),
        "brier": float(np.mean(2 * levels[:, 0] * levels[:, 1])),
        "ece": 0.0,
        "accuracy": 0.75,
    }
    for _ in range(trials):
        p = levels[rng.integers(0, 2, 200)]
        scores = evaluated(said(p), (rng.random(200) > p[:, 0]).astype(int))
        for name in missed:
            low, high = scores.intervals[name]
            missed[name] += not low <= truth[name] <= high
    # Of intervals of 95 % a tenth may be missed by the bootstrap at this size; beyond the quantile of its binomial is a fault.
    most = stats.binom.ppf(1 - FALSE_ALARM / len(missed), trials, 0.1)
    assert all(count <= most for count in missed.values()), missed


def test_keras_metrics_agree_with_the_scores(digits: Splits, tiny_model: Any) -> None:
    test = digits.examples("test")
    p = bp.predict(tiny_model, test, predictive="mean").probabilities
    expected = of_outputs({"probabilities": p}, test.y)
    logits = np.log(p)
    for labels, outputs, from_logits in (
        (test.y, p, False),
        (np.eye(10)[test.y], p, False),
        (test.y[:, None], logits, True),
    ):
        for kind, name in (
            (bp.NegativeLogLikelihood, "nll"),
            (bp.BrierScore, "brier"),
            (bp.ExpectedCalibrationError, "ece"),
        ):
            metric = kind(from_logits=from_logits)
            assert metric.name == name
            for i in range(0, len(p), 100):
                metric.update_state(labels[i : i + 100], outputs[i : i + 100])
            assert float(metric.result()) == pytest.approx(expected[name], abs=1e-4)
            again = kind.from_config(metric.get_config())
            assert again.get_config() == metric.get_config()


def test_keras_metrics_of_one_output_and_with_weights() -> None:
    metric = bp.ExpectedCalibrationError()
    metric.update_state([[1.0], [0.0]], [[0.8], [0.8]], sample_weight=[1.0, 3.0])
    assert float(metric.result()) == pytest.approx(0.55)  # confident by .8, right in a quarter
    with pytest.raises(bp.BpruneError, match=r"ece got labels \(1, 3\) for outputs \(1, 4\)"):
        metric.update_state([[0, 0, 1]], [[0.25] * 4])


def test_keras_metrics_are_compiled_and_saved(tmp_path: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    metrics = [bp.NegativeLogLikelihood(from_logits=True), bp.ExpectedCalibrationError(from_logits=True, bins=5)]
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=metrics)
    x, y = np.random.default_rng(0).normal(size=(64, 4)), np.arange(64) % 3
    logs = model.fit(x, y, epochs=1, verbose=0, validation_data=(x, y)).history
    assert {"nll", "ece", "val_nll", "val_ece"} <= set(logs)
    assert logs["val_nll"][0] == pytest.approx(logs["val_loss"][0], rel=1e-4)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.evaluate(x, y, verbose=0, return_dict=True)["ece"] == pytest.approx(logs["val_ece"][0], abs=1e-6)
