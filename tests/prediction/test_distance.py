"""Moments are held against draws of the same network, and the manifest says how far they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.bounds import FALSE_ALARM
from tests.exports.networks import classifier
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import export
from tfp_bprune.files.runs import Run
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.prediction import Predictor, distance
from tfp_bprune.prediction.distance import compared, distance_to_draws
from tfp_bprune.types import DataError, ExportError

L = keras.layers
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def linear(units: int = 3, rho: float = -3.0) -> Any:
    """Its logits are normal exactly."""
    keras.backend.reset_uids()
    return keras.Sequential([keras.Input((6,)), DenseFlipout(units, rho_init=rho)])


def regression() -> Any:
    model = linear(1)
    model.compile("sgd", "mse")
    return model


def test_a_regression_in_closed_form(tmp_path: Path) -> None:
    """The mean and its deviation are exact by moments, so the differences are those of 200 normal draws, shared by examples."""
    model = regression()
    found = export(model, tmp_path / "a", predictive="moments", validation=X)["moments_vs_draws"]
    assert found == Run.open(tmp_path / "a").manifest["moments_vs_draws"]
    assert (found["examples"], found["draws"]) == (40, 200)
    # Every draw is one normal number on the layer's output: mean 0 +- 1 / sqrt(200), sum of squares chi-squared of 199.
    low, high = np.sqrt(stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], 199) / 199)
    assert 1 / high <= found["weights_std_ratio"] <= 1 / low
    assert 0 < found["mean"] <= stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(200) / low
    assert found["rank_correlation"] == pytest.approx(1)  # one noise scales all


def test_a_narrow_posterior_is_near_draws(tmp_path: Path) -> None:
    model = classifier(linear(rho=-3.0))
    found = export(model, tmp_path / "a", predictive="moments", validation=X)["moments_vs_draws"]
    # With narrow posteriors the information is a quadratic form of normal logits of 2 degrees of freedom, up to 10 %
    # curvature: 199 draws of them, in the worst case all of one degree.
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], 199) / 199
    assert 0.9 / high <= found["epistemic_ratio"] <= 1.1 / low
    assert found["rank_correlation"] > 0.9
    assert found["probability"] < 0.01


def test_a_biased_predictor_is_seen() -> None:
    drawn = Predictor(classifier(linear()), "sampled", 50)
    biased = Predictor(classifier(linear()), "moments")
    honest = distance_to_draws(biased, drawn, X, 50)
    told = biased.predict
    biased.predict = lambda x: (
        told(x) | {"epistemic": 3 * told(x)["epistemic"], "probabilities": tf.roll(told(x)["probabilities"], 1, 1)}
    )
    found = distance_to_draws(biased, drawn, X, 50)
    assert found["epistemic_ratio"] == pytest.approx(3 * honest["epistemic_ratio"], rel=1e-5)
    assert found["rank_correlation"] == pytest.approx(honest["rank_correlation"])
    assert found["probability"] > 10 * honest["probability"]


def test_the_numbers_by_hand() -> None:
    ours = {"probabilities": np.array([[0.5, 0.5], [0.2, 0.8]]), "epistemic": np.array([0.3, 0.1])}
    theirs = {"probabilities": np.array([[0.6, 0.4], [0.2, 0.8]]), "epistemic": np.array([0.1, 0.1 + 1e-3])}
    found = compared(ours, theirs)
    assert found == pytest.approx({"probability": 0.05, "epistemic_ratio": 0.4 / 0.201, "rank_correlation": -1.0})
    one = {"mean": np.array([1.0, 2.0]), "noise_std": np.array([3.0, 3.0]), "weights_std": np.array([4.0, 4.0])}
    found = compared(one | {"mean": np.array([1.0, 3.0]), "weights_std": np.array([2.0, 2.0])}, one)
    assert found == {"mean": pytest.approx(0.1), "weights_std_ratio": 0.5, "rank_correlation": None}
    certain = {"mean": np.array([1.0, 2.0]), "weights_std": np.zeros(2)}
    assert compared(certain, certain) == {"mean": 0, "weights_std_ratio": None, "rank_correlation": None}


def test_ranks_of_equal_numbers_are_their_mean() -> None:
    values = np.random.default_rng(1).integers(0, 5, (2, 30)).astype(float)
    expected = stats.spearmanr(*values).statistic
    assert distance.rank_correlation(*values) == pytest.approx(expected)


def two() -> Any:
    a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
    x = DenseFlipout(4)(L.Concatenate()([a, b]))
    model = keras.Model({"a": a, "b": b}, [DenseFlipout(1, name="size")(x), DenseFlipout(3, name="kind")(x)])
    model.compile("sgd", {"size": "mse", "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)})
    return model


def test_several_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    given = {"b": np.ones((40, 2)), "a": X.astype(np.float64)}
    found = export(two(), tmp_path / "a", predictive="moments", validation=given)["moments_vs_draws"]
    assert set(found) == {"examples", "draws", "size", "kind"}
    assert set(found["size"]) == {"mean", "weights_std_ratio", "rank_correlation"}
    assert set(found["kind"]) == {"probability", "epistemic_ratio", "rank_correlation"}


def test_examples_are_at_most_500_and_spread(tmp_path: Path) -> None:
    assert export(regression(), tmp_path / "a", predictive="moments", validation=np.tile(X, (20, 1)))["moments_vs_draws"][
        "examples"
    ] == 500  # fmt: skip
    [chosen] = distance._chosen([np.arange(2000)])
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 1999, 500)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((3, 5)), r"validation has 'inputs?.*' of shape \(3, 5\): expected examples of shape \(6,\)"),
        (np.zeros((0, 6)), r"of shape \(0, 6\): expected examples of shape \(6,\)"),
        ((X, X), "validation has 2 arrays: the network takes"),
    ],
)
def test_other_examples_are_refused_before_anything_is_written(tmp_path: Path, given: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        export(regression(), tmp_path / "a", predictive="moments", validation=given)
    assert not (tmp_path / "a").exists()


def test_names_of_inputs_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation has a, c: the network takes a, b"):
        export(two(), tmp_path / "a", predictive="moments", validation={"a": X, "c": X})


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="gives mean that is not finite on the validation examples"):
        export(regression(), tmp_path / "a", predictive="moments", validation=np.full((3, 6), np.nan))


@pytest.mark.parametrize("predictive", ["mean", "sampled"])
def test_it_is_for_moments_alone(tmp_path: Path, predictive: Any) -> None:
    with pytest.raises(ExportError, match=f"validation examples are for comparing 'moments' with .*{predictive}"):
        export(regression(), tmp_path / "a", predictive=predictive, validation=X)
