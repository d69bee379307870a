"""Scores against other people's implementations and values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from tfp_bprune._keras import tfp
from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation import classification, regression
from tfp_bprune.evaluation.metrics import as_served, expected_calibration_error, of_outputs
from tfp_bprune.types import DataError

seeds = st.integers(0, 2**32 - 1)


def guesses(seed: int, n: int = 50, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, classes] and labels that every class occurs in."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    return rng.dirichlet(np.ones(classes), n), labels


@given(seeds)
def test_classification_agrees_with_scikit_learn(seed: int) -> None:
    p, y = guesses(seed)
    scores = classification(p, y)
    assert scores["accuracy"] == pytest.approx(sk.accuracy_score(y, p.argmax(1)))
    assert scores["nll"] == pytest.approx(sk.log_loss(y, p))
    # The Brier score over classes is the sum of the binary ones.
    binary = [sk.brier_score_loss(y == k, p[:, k]) for k in range(4)]
    assert scores["brier"] == pytest.approx(sum(binary))


def test_calibration_error_agrees_with_tfp() -> None:
    for seed in range(3):
        p, y = guesses(seed)
        theirs = tfp.stats.expected_calibration_error(
            15, logits=np.log(p).astype(np.float32), labels_true=y.astype(np.int32)
        )
        assert expected_calibration_error(p, y) == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_error_by_hand() -> None:
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    # Right in one of two at 0.9, in both at 0.6: |0.5 - 0.9| * 2/4 + |1 - 0.6| * 2/4.
    assert expected_calibration_error(p, np.array([0, 1, 0, 1])) == pytest.approx(0.4)
    # Certain and right falls into the last bin, not past it.
    assert expected_calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_a_certain_mistake_costs_everything() -> None:
    scores = classification(np.array([[1.0, 0.0]]), np.array([1]))
    assert scores["nll"] == np.inf
    assert scores["brier"] == 2


@given(seeds)
def test_regression_agrees_with_scipy_and_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean, std, y = rng.normal(size=40), rng.uniform(0.1, 3, 40), rng.normal(size=40)
    scores = regression(mean, std, y)
    assert scores["rmse"] == pytest.approx(np.sqrt(sk.mean_squared_error(y, mean)))
    assert scores["nll"] == pytest.approx(-stats.norm(mean, std).logpdf(y).mean())
    low, high = stats.norm(mean, std).interval(0.95)
    assert scores["coverage"] == ((low <= y) & (y <= high)).mean()


def test_both_kinds_of_spread_count_in_a_regression() -> None:
    outputs = {"mean": np.zeros(2), "noise_std": np.full(2, 3.0), "weights_std": np.full(2, 4.0)}
    y = np.array([1.0, -9.0])
    scores = of_outputs(outputs, y)
    assert scores["nll"] == pytest.approx(-stats.norm(0, 5).logpdf(y).mean())
    assert (scores["noise_std"], scores["weights_std"]) == (3, 4)
    del outputs["weights_std"]
    assert of_outputs(outputs, y)["nll"] == pytest.approx(-stats.norm(0, 3).logpdf(y).mean())


def test_mean_uncertainties_come_with_the_scores() -> None:
    p, y = guesses(0)
    scores = of_outputs({"probabilities": p, "entropy": np.full(50, 0.5), "epistemic": np.full(50, 0.25)}, y)
    assert (scores["entropy"], scores["epistemic"]) == (0.5, 0.25)
    assert "aleatoric" not in scores


def test_nothing_and_too_much_cannot_be_scored() -> None:
    p, y = guesses(0)
    for score in (lambda a, b: classification(a, b), lambda a, b: regression(a[:, 0], a[:, 1], b)):
        with pytest.raises(DataError, match="the split is empty"):
            score(p[:0], y[:0])
        with pytest.raises(DataError, match="50 predictions cannot be scored against 49 targets"):
            score(p, y[1:])


def test_one_probability_is_scored_as_that_of_the_second_of_two_classes() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.uniform(size=50), rng.integers(0, 2, 50)
    scores = of_outputs({"probabilities": p[:, None], "entropy": np.ones(50)}, y)
    assert scores == pytest.approx(classification(np.stack([1 - p, p], 1), y) | {"entropy": 1.0})
    assert scores["nll"] == pytest.approx(sk.log_loss(y, p))
    assert scores["accuracy"] == pytest.approx(((p > 0.5) == y).mean())


def test_labels_are_scored_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    p, y = rng.uniform(size=(50, 3)), rng.integers(0, 2, (50, 3))
    scores = of_outputs({"probabilities": p}, y)
    each = [classification(np.stack([1 - p[:, i], p[:, i]], 1), y[:, i]) for i in range(3)]
    assert scores["nll"] == pytest.approx(sum(sk.log_loss(y[:, i], p[:, i]) for i in range(3)))
    assert scores["accuracy"] == pytest.approx(1 - sk.hamming_loss(y, p > 0.5))
    assert scores["exact_match"] == pytest.approx(sk.accuracy_score(y, p > 0.5))
    for name in ("ece", "brier"):
        assert scores[name] == pytest.approx(np.mean([one[name] for one in each]))


@pytest.mark.parametrize("classes", [1, 3])
def test_labels_of_pixels_count_each(classes: int) -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(classes), (5, 2, 4)) if classes > 1 else rng.uniform(size=(5, 2, 4, 1))
    y = rng.integers(0, max(classes, 2), (5, 2, 4))
    flat = p.reshape(-1, classes) if classes > 1 else np.stack([1 - p.ravel(), p.ravel()], 1)
    assert of_outputs({"probabilities": p}, y) == pytest.approx(classification(flat, y.ravel()))


def test_without_a_deviation_of_the_noise_only_errors_are_scored() -> None:
    mean, y = np.zeros((4, 1)), np.array([3.0, -4.0, 3.0, 4.0])
    assert of_outputs({"mean": mean}, y) == {"rmse": pytest.approx(np.sqrt(12.5))}
    found = of_outputs({"mean": mean[:, 0], "weights_std": np.full(4, 2.0)}, y)
    assert found == {"rmse": pytest.approx(np.sqrt(12.5)), "weights_std": 2.0}


def test_the_nats_of_several_numbers_are_summed() -> None:
    rng = np.random.default_rng(0)
    mean, std, y = rng.normal(size=(6, 2)), rng.uniform(1, 2, (6, 2)), rng.normal(size=(6, 2))
    scores = of_outputs({"mean": mean, "noise_std": std}, y)
    assert scores["nll"] == pytest.approx(-stats.norm(mean, std).logpdf(y).sum(1).mean())
    assert scores["rmse"] == pytest.approx(np.sqrt(sk.mean_squared_error(y, mean)))


def test_several_outputs_are_scored_under_their_names() -> None:
    p, y = guesses(0)
    outputs = {"kind_probabilities": p, "a_b_mean": np.zeros(50), "a_b_weights_std": np.ones(50), "a_mean": np.ones(50)}
    found = of_outputs(outputs, {"kind": y, "a/b": np.zeros(50), "a": np.zeros(50)})
    kinds = {f"kind_{key}": value for key, value in classification(p, y).items()}
    assert found == pytest.approx(kinds | {"a/b_rmse": 0.0, "a/b_weights_std": 1.0, "a_rmse": 1.0})
    with pytest.raises(DataError, match="no output 'other'"):
        of_outputs(outputs, {"other": y})
    with pytest.raises(DataError, match=r"expected targets \(50,\)"):
        of_outputs({"probabilities": p}, np.zeros((50, 3), int))


def test_a_split_takes_the_names_of_an_export() -> None:
    manifest = {"inputs": {"one": {}, "other_input": {}}, "outputs": {"kind": {}, "price": {}}}
    x, y = np.zeros((2, 1)), np.ones(2)
    for split in (
        Split("test", (x, 2 * x), (y, 2 * y)),
        Split("test", {"other-input": 2 * x, "one": x}, {"price": 2 * y, "kind": y}),
    ):
        served = as_served(split, manifest)
        assert (list(served.x), list(served.y)) == (["one", "other_input"], ["kind", "price"])
        np.testing.assert_array_equal(served.y["price"], 2 * y)
    assert as_served(Split("test", x, y), {"inputs": {"inputs": {}}}).x is x
    with pytest.raises(DataError, match="the export expects 'one', 'other_input'"):
        as_served(Split("test", x, y), manifest)
