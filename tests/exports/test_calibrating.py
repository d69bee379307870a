"""Temperatures and conformal sets: what they are by theory, in every predictive and format, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.exports.networks import NETWORKS, classifier, settled
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.evaluation.predict import predict
from tfp_bprune.exports import export
from tfp_bprune.exports.calibrating import calibrator, quantile
from tfp_bprune.exports.card import CARD
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.networks import build
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.calibration import Calibration
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import DataError, ExportError

ALARM = 1e-6


@pytest.fixture(scope="module")
def trained(digits: Splits) -> Any:
    """A network that is too little sure of digits."""
    model = build("mlp", digits.info, layers="flipout", options={"hidden": (16,)})
    fit(model, digits, settings=Settings(3, 0.02, kl_weight=0.3))
    return model


@pytest.mark.parametrize(("number", "level"), [(99, 0.9), (37, 0.8), (200, 0.95)])
def test_coverage_has_the_law_that_theory_says(number: int, level: float) -> None:
    """Of scores that are uniform, a further one is covered with the probability that is the threshold: Beta(k, n + 1 - k)."""
    scores = np.random.default_rng(number).random((number, 5000))
    k = int(np.ceil(round((number + 1) * level, 9)))
    law = stats.beta(k, number + 1 - k)
    assert law.mean() >= level - 1e-12
    assert stats.kstest(quantile(scores, level), law.cdf).pvalue > ALARM


def test_random_partings_of_one_set_cover_as_often_as_promised() -> None:
    """Half of 400 scores settles the threshold for the others: how many are covered is beta-binomial, whatever the scores are.

    Of 4000 partings a chi-square over eight ranges of equal probability, nearly; its law is that of 7 degrees of freedom.
    """
    rng, scores = np.random.default_rng(0), np.sort(np.random.default_rng(1).lognormal(size=400))
    covered = np.array(
        [(part[200:] <= quantile(part[:200], 0.9)).sum() for part in (rng.permutation(scores) for _ in range(4000))]
    )
    law = stats.betabinom(200, 181, 20)
    ends = np.unique(law.ppf(np.linspace(0, 1, 9)[1:-1]))
    expected = np.diff([0, *law.cdf(ends), 1]) * len(covered)
    found = np.bincount(np.searchsorted(ends, covered), minlength=len(expected))
    assert stats.chisquare(found, expected).pvalue > ALARM


@pytest.mark.parametrize("predictive", ["mean", "sampled", "moments"])
@pytest.mark.parametrize(("end", "by"), [("linear", 2.5), ("softmax", 2.5), ("linear", 0.4)])
def test_a_temperature_divides_the_logits(predictive: Any, end: str, by: float) -> None:
    """As weights and bias of the last layer do that are as much smaller, with their scales."""
    hot, plain = (_network(end, one) for one in (1.0, by))
    x = tf.constant(np.random.default_rng(0).normal(size=(20, 6)), tf.float32)
    made = Predictor(hot, predictive, 8, calibration=Calibration(by)).predict(x)
    expected = Predictor(plain, predictive, 8).predict(x)
    assert set(made) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-4, atol=1e-5)
    assert np.abs(made["probabilities"] - Predictor(hot, predictive, 8).predict(x)["probabilities"]).max() > 0.02


def _network(end: str, divided_by: float) -> Any:
    tf.keras.utils.set_random_seed(3)
    layers = [
        DenseFlipout(9, activation="relu", name="first"),
        DenseFlipout(24, name="last"),
    ]  # of which not all are followed by moments
    layers += [keras.layers.Softmax()] if end == "softmax" else []
    model = keras.Sequential([keras.Input((6,)), *layers])
    last = model.get_layer("last")
    posterior, rng = last.kernel_posterior, np.random.default_rng(0)
    loc, scale = rng.normal(0, 2, posterior.shape), np.full(posterior.shape, 0.3)
    posterior.loc_variable.assign(loc / divided_by)
    posterior.rho_variable.assign(np.log(np.expm1(scale / divided_by)))
    return classifier(model) if end == "linear" else model


@pytest.mark.parametrize("predictive", ["mean", "sampled", "moments"])
def test_an_export_is_calibrated_and_says_so(trained: Any, digits: Splits, tmp_path: Path, predictive: Any) -> None:
    valid, test = digits.examples("valid"), digits.examples("test")
    options: dict[str, Any] = {"predictive": predictive, "samples": 10}
    manifest = export(trained, tmp_path / "out", calibrate="temperature", conformal=0.8, validation=valid, **options)
    found, sets = manifest["calibration"], manifest["conformal"]
    assert found["after"]["nll"] < found["before"]["nll"]
    assert found["temperature"] < 0.95
    assert (found["examples"] + sets["examples"], sets["level"]) == (len(valid), 0.8)
    everything = predict(tmp_path / "out", np.concatenate([test.x, valid.x])).probabilities
    held_back = np.sort(np.random.default_rng(0).permutation(len(valid))[len(valid) // 2 :])
    off = 1 - everything[len(test) + held_back, valid.y[held_back]]  # of what the file says, calibrated as it is
    assert sets["reach"] == pytest.approx(quantile(off, 0.8), abs=3e-5)
    said = predict(tmp_path / "out", test.x)
    assert said.prediction_set.dtype == bool
    sure = np.abs(1 - said.probabilities - sets["reach"]) > 1e-6
    np.testing.assert_array_equal(said.prediction_set[sure], (1 - said.probabilities <= sets["reach"])[sure])
    scores = of_outputs(said.outputs, test.y)
    assert scores["set_size"] == pytest.approx(said.prediction_set.sum(1).mean())
    # Of n that settle it and m that are scored, the number covered is at least beta-binomial.
    n, m = sets["examples"], len(test)
    k = int(np.ceil(round((n + 1) * 0.8, 9)))
    assert stats.betabinom(m, k, n + 1 - k).cdf(round(scores["set_coverage"] * m)) > ALARM
    card = (tmp_path / "out" / CARD).read_text()
    assert "divided by a temperature of" in card
    assert "| `prediction_set` |" in card
    assert "prediction_set_0" in said.columns()


def test_the_temperature_is_that_of_the_least_nll(trained: Any, digits: Splits, tmp_path: Path) -> None:
    valid = digits.examples("valid")
    manifest = export(trained, tmp_path / "out", calibrate="temperature", validation=(valid.x, valid.y))
    logits = np.log(predict(trained, valid.x, predictive="mean").probabilities)
    nll = {
        part: of_outputs(
            {"probabilities": _softmax(logits / (part * manifest["calibration"]["temperature"]))}, valid.y
        )["nll"]
        for part in (0.97, 1.0, 1.03)
    }
    assert nll[1.0] == pytest.approx(manifest["calibration"]["after"]["nll"], abs=1e-5)
    assert nll[1.0] < min(nll[0.97], nll[1.03])
    served = predict(tmp_path / "out", valid.x)
    assert of_outputs(served.outputs, valid.y)["nll"] == pytest.approx(nll[1.0], abs=1e-5)


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("form", ["onnx", "litert"])
def test_other_formats_give_the_same_sets(trained: Any, digits: Splits, tmp_path: Path, form: Any) -> None:
    valid, test = digits.examples("valid"), digits.examples("test")
    said = []
    for name in ("savedmodel", form):
        options: dict[str, Any] = {"calibrate": "temperature", "conformal": 0.9, "validation": valid}
        manifest = export(trained, tmp_path / name, format=name, **options)
        said.append(predict(tmp_path / name, test.x))
    np.testing.assert_allclose(said[0].probabilities, said[1].probabilities, atol=1e-5)
    near = np.abs(1 - said[0].probabilities - manifest["conformal"]["reach"]) < 1e-4
    assert ((said[0].prediction_set == said[1].prediction_set) | near).all()


@pytest.mark.parametrize("predictive", ["mean", "moments"])
def test_a_regression_has_an_interval(regression_run: Path, tmp_path: Path, predictive: Any) -> None:
    from tfp_bprune.storage import load_model

    model = load_model(regression_run).model
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, *model.input_shape[1:])).astype(np.float32)
    said = predict(model, x, predictive=predictive)
    y = said.mean + rng.standard_t(3, said.mean.shape) * said.std
    manifest = export(model, tmp_path / "out", predictive=predictive, conformal=0.9, validation=(x[:200], y[:200]))
    made = predict(tmp_path / "out", x[200:])
    low, high = np.moveaxis(made.outputs["interval"], -1, 0)
    reach = quantile(np.abs(y[:200] - said.mean[:200]) / said.std[:200], 0.9)
    np.testing.assert_allclose((high - low) / 2 / made.std, np.broadcast_to(reach, low.shape), rtol=1e-3)
    np.testing.assert_allclose((high + low) / 2, made.mean, rtol=1e-4, atol=1e-5)
    assert np.allclose(manifest["conformal"]["reach"], reach, rtol=1e-3)
    scores = of_outputs(made.outputs, y[200:])
    assert stats.betabinom(200, 181, 20).cdf(round(scores["interval_coverage"] * 200)) > ALARM
    assert {"lower", "upper"} <= {name.split("_")[0] for name in made.columns()}


@pytest.mark.parametrize("level", [1e-12, 1e-300, 0.3])
def test_a_level_close_to_0_takes_the_least_score(level: float) -> None:
    scores = np.arange(1.0, 4.0)
    assert quantile(scores, level) == np.ceil(4 * level)
    assert quantile(scores, level) >= 1


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_an_interval_is_as_wide_in_any_unit(tmp_path: Path, unit: float) -> None:
    """The slack for what runtimes round is a part of what is rounded, and no number of units."""
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.layers[0].set_weights([np.full((2, 1), unit, np.float32), np.zeros(1, np.float32)])
    off = np.linspace(0.0, 1.0, 50) * unit
    manifest = export(model, tmp_path / "out", conformal=0.5, task="regression", validation=(x, x.sum(1) * unit + off))
    assert manifest["conformal"]["reach"] == pytest.approx(off[25], rel=3e-5)


def test_targets_that_are_not_finite_settle_no_interval(tmp_path: Path) -> None:
    x, y = np.ones((30, 5), np.float32), np.where(np.arange(30) < 2, [[np.nan], [np.inf]], 0.0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    for one in y:
        with pytest.raises(ExportError, match=r"^validation has 2 targets that are not finite of 30"):
            export(model, tmp_path / "out", conformal=0.8, task="regression", validation=(x, one))


def test_what_else_is_fitted_sees_no_example_of_the_threshold() -> None:
    x, y = np.arange(50.0).reshape(50, 1), np.zeros(50, int)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    for calibrate, others, shared in ((None, False, True), ("temperature", False, False), (None, True, False)):
        made = calibrator(model, calibrate, 0.8, (x, y), others)
        assert made is not None
        both = set(made.fitted_on.x.ravel()) & set(made.held_back.x.ravel())
        assert bool(both) == shared
        assert len(made.fitted_on) + len(made.held_back) == (100 if shared else 50)


def test_two_classes_have_sets_in_their_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5)).astype(np.float32)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, activation="sigmoid")])
    y = (rng.random(200) < model(x).numpy().ravel()).astype(int)
    manifest = export(model, tmp_path / "out", conformal=0.7, validation=(x, y), task="binary")
    said = predict(tmp_path / "out", x)
    both = np.concatenate([1 - said.probabilities, said.probabilities], -1)
    np.testing.assert_array_equal(said.prediction_set, 1 - both <= np.float32(manifest["conformal"]["reach"]))
    assert 0 < said.prediction_set.sum() < said.prediction_set.size


X, Y = np.zeros((30, 8, 8, 1), np.float32), np.zeros(30, int)
SPOILT = np.zeros_like(X)
SPOILT[3, 0], SPOILT[7, 1] = np.nan, np.inf
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"calibrate": "platt"}, r"^unknown calibrate 'platt': expected 'temperature'"),
    ({"calibrate": "temperature"}, r"^calibrate is fitted to validation examples: give validation="),
    ({"conformal": 0.9}, r"^conformal is fitted to validation examples"),
    ({"conformal": 90, "validation": (X, Y)}, r"^conformal must be in \(0, 1\), got 90: use 0.9 for 90 %"),
    ({"conformal": "0.9", "validation": (X, Y)}, r"^conformal must be a number, got '0.9'"),
    ({"conformal": np.array([0.8, 0.9]), "validation": (X, Y)}, r"^conformal must be a number"),
    ({"conformal": 0.9, "validation": (X, Y[:20])}, r"^validation has 20 and 30 examples or targets: expected as many"),
    ({"conformal": 0.9, "validation": Split("valid", X, Y[:20])}, r"^validation has 20 and 30"),
    (
        {"conformal": 0.9, "validation": (X + SPOILT, Y)},
        r"^'probabilities' is not finite for 2 of 30 validation examples",
    ),
    ({"calibrate": "temperature", "validation": (X + SPOILT, Y)}, r"^'probabilities' is not finite for 2 of 30"),
    ({"conformal": 0.9, "validation": (X, np.full((30, 4), 0.25))}, r"^validation has targets .* that are not one-hot"),
    ({"conformal": 0.9, "validation": X}, r"^conformal needs the targets of validation examples: give a Split"),
    ({"conformal": 0.99, "validation": (X, Y)}, r"^conformal=0.99 needs at least 99 examples .*, got 30: give more"),
    (
        {"conformal": 0.9, "validation": (X, Y), "format": "litert", "precision": "int8"},
        r"^conformal holds for the answers that it was fitted to, and LiteRT rounds .* use precision 'float32', or the format",
    ),
    (
        {"conformal": 0.9, "validation": (X, Y), "format": "onnx", "precision": "float16"},
        r"^conformal holds for the answers that it was fitted to, and ONNX rounds",
    ),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_cannot_be_fitted_is_refused_in_one_line(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises((ExportError, DataError), match=said) as caught:
        export(settled(NETWORKS["mlp"]()), tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_have_no_sets_are_refused(tmp_path: Path) -> None:
    dense = keras.layers.Dense
    x, inputs = np.zeros((30, 5), np.float32), keras.Input((5,))
    labels = keras.Sequential([keras.Input((5,)), dense(3, activation="sigmoid")])
    several = keras.Model(inputs, [dense(3, activation="softmax", name=name)(inputs) for name in ("a", "b")])
    number = keras.Sequential([keras.Input((5,)), dense(1)])
    cases: list[tuple[Any, Any, str, dict[str, Any]]] = [
        (labels, np.zeros((30, 3)), "got several labels in", {"conformal": 0.9, "task": "multilabel"}),
        (
            number,
            np.zeros(30),
            "is for classes, got the regression",
            {"calibrate": "temperature", "task": "regression"},
        ),
        (several, {"a": Y, "b": Y}, "is for a network with one output, got 'a', 'b'", {"calibrate": "temperature"}),
    ]
    for model, y, said, options in cases:
        with pytest.raises(ExportError, match=said):
            export(model, tmp_path / "out", validation=(x, y) if not isinstance(y, dict) else _split(x, y), **options)


def _split(x: Any, y: Any) -> Any:
    from tfp_bprune.data.splits import Split

    return Split("validation", x, y)
