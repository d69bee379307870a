"""Pictures hold what was measured, on the axes that were given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import tfp_bprune as bp
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.evaluate import Evaluation
from tfp_bprune.evaluation.prediction import Prediction
from tfp_bprune.graphs.heads import Head
from tfp_bprune.plot.style import style_of
from tfp_bprune.pruning import scores_of

mpl.use("Agg")
P = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
Y = np.array([0, 1, 1, 0])


def new() -> Any:
    return Figure().subplots()


@pytest.fixture(scope="module")
def scored(tiny_model: Any, digits: Splits) -> Evaluation:
    return bp.evaluate(tiny_model, digits, predictive="moments")


def test_reliability_is_accuracy_by_confidence() -> None:
    axes = new()
    assert bp.plot.reliability(P, Y, bins=2, axes=axes) is axes
    [line] = axes.containers
    np.testing.assert_allclose(line[0].get_xydata(), [[0.75, 0.75]])
    assert "ECE 0.000" in axes.get_legend().get_texts()[0].get_text()
    bp.plot.reliability(P, np.eye(2)[Y], axes=axes, label="again")
    assert len(axes.patches) == 1


def test_risk_is_of_the_surest_first() -> None:
    axes = bp.plot.risk_coverage(P, Y, by="confidence", axes=new())
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[25, 0], [50, 50], [75, 100 / 3], [100, 25]])
    assert all("%" in label for label in (axes.get_xlabel(), axes.get_ylabel()))
    few = new()
    bp.plot.risk_coverage(P, P.argmax(1), axes=few)
    bp.plot.risk_coverage(P, 1 - P.argmax(1), axes=few)  # a further series, all wrong, is in view
    assert few.get_ylim()[0] == 0
    assert few.get_ylim()[1] > 100
    with pytest.raises(
        bp.BpruneError, match="the predictions have no 'epistemic': expected one of 'entropy', 'confidence'"
    ):
        bp.plot.risk_coverage(P, Y, by="epistemic", axes=new())
    with pytest.raises(
        bp.BpruneError, match="compares predictions with the true classes: expected an Evaluation, or y"
    ):
        bp.plot.risk_coverage(P, axes=new())
    with pytest.raises(bp.BpruneError, match="expected one class for each"):
        bp.plot.risk_coverage(P, Y[:2], axes=new())


def test_answers_of_evaluations_predictions_and_one_output(scored: Evaluation) -> None:
    for said, y in ((scored, None), (scored.prediction, scored.targets)):
        axes = bp.plot.risk_coverage(said, y, by="epistemic", axes=new())
        assert len(axes.lines[0].get_xdata()) == len(scored.prediction)
    binary = Prediction({"probabilities": P[:, 1:], "entropy": P[:, 0]}, {"out": Head("binary")}, "mean")
    by_one, by_two = (bp.plot.reliability(said, Y, axes=new()).containers[0] for said in (binary, P))
    np.testing.assert_allclose(by_one[0].get_xydata(), by_two[0].get_xydata())


def test_uncertainty_by_class_marks_wrong_answers(scored: Evaluation) -> None:
    axes = bp.plot.by_class(scored, by="aleatoric", axes=new(), class_names=[f"digit {i}" for i in range(10)])
    wrong = scored.prediction.labels != scored.targets
    [points] = [line for line in axes.lines if line.get_label() == "wrong answer"]
    assert len(points.get_xdata()) == wrong.sum()
    assert axes.get_ylabel() == "aleatoric (nats)"
    with pytest.raises(bp.BpruneError, match="2 class names for 10 classes"):
        bp.plot.by_class(scored, class_names=["a", "b"], axes=new())


def test_examples_are_the_surest_and_the_least_sure(scored: Evaluation, digits: Splits) -> None:
    x, panels = digits.examples("test").x, Figure().subplots(2, 3)
    assert bp.plot.examples(x, scored, count=3, axes=panels) is panels
    order = np.argsort(scored.prediction.epistemic, kind="stable")
    for panel, i in zip(panels.flat, [*order[:3], *order[-3:]], strict=True):
        np.testing.assert_array_equal(panel.images[0].get_array(), x[i, ..., 0])
    colours = np.random.default_rng(0).random((4, 5, 5, 3))
    bp.plot.examples(colours, P, count=2, by="confidence", axes=Figure().subplots(2, 2))
    for bad, message in ((x[:3], "expected an image for each"), (x, "fewer than two rows of 500")):
        with pytest.raises(bp.BpruneError, match=message):
            bp.plot.examples(bad, scored, count=500, axes=panels)


def test_bands_are_the_intervals() -> None:
    outputs = {"mean": np.arange(3.0), "noise_std": np.full(3, 0.3), "weights_std": np.full(3, 0.4)}
    said = Prediction(outputs, {"out": Head("gaussian")}, "moments")
    x = np.array([[2.0], [0.0], [1.0]])
    axes = bp.plot.bands(x, said, data=(x, x), axes=new())
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 1], [1, 2], [2, 0]])
    heights = [
        np.ptp(part.get_paths()[0].vertices[:, 1][np.isclose(part.get_paths()[0].vertices[:, 0], 0)])
        for part in axes.collections
    ]
    np.testing.assert_allclose(heights, [2 * 1.959964 * 0.5, 2 * 1.959964 * 0.4], rtol=1e-6)
    with pytest.raises(bp.BpruneError, match="bands need one number per example"):
        bp.plot.bands(np.zeros((3, 2)), said, axes=new())


def test_weights_are_counted_and_cut(mlp: Callable[..., Any]) -> None:
    model = mlp(hidden=(8, 8))
    axes = bp.plot.signal_to_noise(model, sparsities=(0.5, 0.9), axes=new())
    assert [text.get_text() for text in axes.texts] == ["50 %", "90 %"]
    everything = np.concatenate([one.ravel() for one in scores_of(model).values()])
    cuts = [line.get_xdata()[0] for line in axes.lines]
    np.testing.assert_allclose(cuts, 10 * np.log10(np.quantile(everything, [0.5, 0.9])))  # as a sweep's cuts_db are
    top = axes.patches[-1].get_data()[0]
    assert top.sum() == 64 * 8 + 8 * 8 + 8 * 10
    pruned, report = bp.prune(model, sparsity=0.75)
    for said in (report, pruned):
        axes = bp.plot.sparsity(said, axes=new())
        assert [text.get_text() for text in axes.texts] == [
            f"{one.prunable - one.pruned:,} left" for one in report.layers
        ]
    layers = {"dense_1": {"prunable": 100, "nonzeros": 25}}
    assert [text.get_text() for text in bp.plot.sparsity(layers, axes=new()).texts] == ["25 left"]
    with pytest.raises(bp.BpruneError, match=r"sparsities must be in \(0, 1\), got 90"):
        bp.plot.signal_to_noise(model, sparsities=(90,), axes=new())


def test_units_stand_layer_by_layer(mlp: Callable[..., Any]) -> None:
    axes = bp.plot.units(mlp(hidden=(8, 6)), axes=new())
    assert len(axes.get_xticks()) == 3
    assert sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == ".") == 24
    with pytest.raises(
        bp.BpruneError, match="units have no measure 'scale': expected 'snr', for the prior gives units no scales"
    ):
        bp.plot.units(mlp(hidden=(8,)), measure="scale", axes=new())


def test_a_sweep_is_drawn_from_its_json() -> None:
    rows = [{"requested": s, "accuracy": 0.9 - s / 10, "nll": 0.3 + s} for s in (0.0, 0.5, 0.9)]
    result = {
        "rows": rows,
        "scores": {"edges_db": [0, 1, 2], "counts": [3, 1], "cuts_db": [None, 0.5, 1.5], "criterion": "snr"},
    }
    axes = bp.plot.sweep(result, axes=new())
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.9, 0.85, 0.81])
    assert [text.get_text() for text in bp.plot.histogram(result, axes=new()).texts] == ["50 %", "90 %"]


def test_a_training_is_drawn_by_epoch() -> None:
    rows = [{"epoch": i, "nll": 1 / i, "val_nll": 2 / i if i > 1 else None, "kl/dense_1": 3.0 * i} for i in (1, 2, 3)]
    training, validation = bp.plot.history(rows, axes=new()).lines
    np.testing.assert_allclose(training.get_xydata(), [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    np.testing.assert_allclose(validation.get_xydata().astype(float), [[1, np.nan], [2, 1], [3, 2 / 3]])
    assert [one.get_label() for one in (training, validation)] == ["NLL, training", "NLL, validation"]
    [line] = bp.plot.divergences(rows, axes=new()).lines
    assert (line.get_label(), list(line.get_ydata())) == ("dense_1", [3, 6, 9])
    with pytest.raises(bp.BpruneError, match="no score 'accuracy': expected one of 'nll'"):
        bp.plot.history(rows, score="accuracy", axes=new())
    for nothing in ([], [{"epoch": 1, "nll": 1.0}]):
        with pytest.raises(bp.BpruneError, match="no KL of a layer"):
            bp.plot.divergences(nothing, axes=new())


def test_names_of_classes_are_a_list_of_one_for_each() -> None:
    said = Prediction({"probabilities": P, "entropy": P[:, 0]}, {"inputs": Head("classification")}, "mean")
    pixels = np.zeros((4, 2, 2))
    for wrong, why in (("ab", "is the string 'ab': expected a list of 2"), (["a"], "1 class names for 2 classes")):
        with pytest.raises(bp.BpruneError, match=why):
            bp.plot.by_class(P, Y, class_names=wrong, axes=new())
        with pytest.raises(bp.BpruneError, match=why):
            bp.plot.examples(pixels, P, Y, by="entropy", count=2, class_names=wrong)
        with pytest.raises(bp.BpruneError, match=why):
            said.columns(wrong)
    assert list(said.columns({1: "b"})["label"]) == list(said.columns([0, "b"])["label"])


def test_pictures_make_their_own_axes_and_need_no_tensorflow_to_import() -> None:
    from matplotlib import pyplot as plt

    axes = bp.plot.risk_coverage(P, Y)
    assert axes.figure in map(plt.figure, plt.get_fignums())
    plt.close(axes.figure)
    script = "import sys, tfp_bprune as bp; bp.plot.sweep, bp.reports; print('tensorflow' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )


ROWS = [{"requested": s, "nll": 0.1 * seed + s, "weights": 10 - seed} for s in (0.5, 0.9) for seed in (0, 1)]
POINTS = {"run": [(0.5, 0.4, 10), (0.9, 0.95, 100)]}
FORMS = [{"name": "a", "bytes": 2000, "latency_ms": {"64": 3.0, "1": 0.5}}]
TRIAL = {"phase": "global", "nonzeros": 100, "latency": 2.0, "accuracy_drop": 0.01, "on": ["nonzeros"], "point": 4}
FOUND = {"front": [TRIAL], "budget": {"max_accuracy_drop": 0.02}}
PACKED = [
    {**TRIAL, "phase": phase, "bytes": size, "accuracy_drop": drop, "on": ["bytes"], "point": point}
    for point, (phase, size, drop) in enumerate((("bits", 50, 0.015), ("bits", 100, 0.01), ("global", 300, 0.005)), 1)
]
PARTS = {
    "rows": [
        {"layer": None, "tensor": None, "kept": 1, "accuracy": 0.9},
        {"layer": "a", "tensor": "a/kernel", "kept": 0.5, "accuracy": 0.8},
    ]
}
MEASURED: dict[str, Callable[[Any], Any]] = {
    "calibration_curves": lambda axes: bp.plot.calibration_curves(POINTS, axes=axes),
    "risk_curves": lambda axes: bp.plot.risk_curves({"run": [(0.1, 0.0), (1, 0.2)]}, axes=axes),
    "uncertainties": lambda axes: bp.plot.uncertainties({"run": {"right": [1, 2, 3, 4, 5], "wrong": []}}, axes=axes),
    "sizes": lambda axes: bp.plot.sizes(FORMS, axes=axes),
    "latencies": lambda axes: bp.plot.latencies(FORMS, axes=axes),
    "over_seeds": lambda axes: bp.plot.over_seeds({"none": [], "mine": ROWS}, "nll", axes=axes),
    "against": lambda axes: bp.plot.against({"mine": ROWS}, "weights", "nll", axes=axes),
    "losses": lambda axes: bp.plot.losses({"mine": [2.0, 1.0]}, axes=axes),
    "shares": lambda axes: bp.plot.shares([1, 3], [-1, 0, 1], axes=axes),
    "ratios_by_layer": lambda axes: bp.plot.ratios_by_layer({"a": [1, 3]}, [-10, 0, 10], axes=axes),
    "lines": lambda axes: bp.plot.lines({"a": [0, 0.1], "b": None}, [0, 1], axes=axes),
    "points": lambda axes: bp.plot.points({"a": [(1, 2)], "b": []}, axes=axes),
    "front": lambda axes: bp.plot.front(FOUND, [TRIAL], size="latency", axes=axes),
    "sensitivity": lambda axes: bp.plot.sensitivity(PARTS, axes=axes),
}


def points_of(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """Places of points and lines by what the legend calls them."""
    handles, labels = axes.get_legend_handles_labels()
    places = (one.get_offsets() if hasattr(one, "get_offsets") else one.get_xydata() for one in handles)
    return {label: [tuple(xy) for xy in each] for label, each in zip(labels, places, strict=True)}


def test_a_search_for_bytes_is_drawn_by_its_bytes() -> None:
    rows = [{**PACKED[2], "phase": "start", "bytes": 390, "accuracy_drop": 0.007, "on": []}, *PACKED]
    axes = bp.plot.front({"front": PACKED, "budget": {"max_accuracy_drop": 0.02}}, rows, axes=new())
    assert axes.get_xlabel() == "bytes by the model of sizes"
    expected = {"one threshold": [(300, 0.5)], "start": [(390, 0.7)], "fewer bits": [(50, 1.5), (100, 1)]}
    expected |= {"Pareto front": [(50, 1.5), (100, 1), (300, 0.5)]}
    found = points_of(axes)
    assert found.pop("budget")
    assert found.keys() == expected.keys()
    for label, places in expected.items():
        np.testing.assert_allclose(found[label], places)
    assert axes.get_xlim()[0] < 50
    assert axes.get_xlim()[1] > 390
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]  # those of `search --export`


def test_a_search_for_weights_is_drawn_by_weights_and_has_no_front_of_bytes() -> None:
    assert bp.plot.front(FOUND, [TRIAL], axes=new()).get_xlabel() == "weights left"
    axes = bp.plot.front(FOUND, [TRIAL | {"bytes": 400}], size="bytes", axes=new())
    assert points_of(axes)["one threshold"] == [(400, 1)]
    assert "Pareto front" not in points_of(axes)
    with pytest.raises(bp.BpruneError, match="no size 'weights' of a trial: expected one of 'nonzeros', 'bytes', 'lat"):
        bp.plot.front(FOUND, [TRIAL], size="weights", axes=new())


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_before_is_drawn_on_the_axes_given(name: str) -> None:
    axes = new()
    assert MEASURED[name](axes) is axes
    assert axes.has_data()
    assert axes.get_xlabel() or name in ("lines", "points")
    axes.figure.canvas.draw()
    assert MEASURED[name](None) is not axes
    mpl.pyplot.close("all")


def test_scores_over_seeds_are_means_with_their_range() -> None:
    axes = bp.plot.over_seeds({"none": [], "mine": ROWS}, "nll", published={"mine": [None, 0.7]}, axes=new())
    [line] = axes.containers
    np.testing.assert_allclose(line[0].get_xydata(), [[0, 0.55], [1, 0.95]])
    assert line[0].get_color() == style_of(1)["color"]
    assert [[y for _, y in one] for one in line[2][0].get_segments()] == [
        pytest.approx([0.5, 0.6]),
        pytest.approx([0.9, 1.0]),
    ]
    np.testing.assert_allclose(axes.lines[-1].get_xydata(), [[1, 0.7]])


def test_a_sensitivity_has_the_scores_that_were_measured() -> None:
    axes = bp.plot.sensitivity(PARTS, axes=new())
    assert [text.get_text() for text in axes.texts] == ["+10.00"]
    with pytest.raises(bp.BpruneError, match="no score 'nll' here: expected one of 'accuracy'"):
        bp.plot.sensitivity(PARTS, score="nll")
