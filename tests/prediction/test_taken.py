"""Dense kernels of which some inputs are read by nothing: the others are taken alone where that is faster, for the same answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.exports.networks import classifier, run, settled
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import litert, onnx
from tfp_bprune.files.reading import read_json
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout
from tfp_bprune.prediction import Predictor, cost, kernels
from tfp_bprune.prediction.cost import CONVERTED, CONVERTED_FEW, Costs, takes
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, DenseKernel, Lowering
from tfp_bprune.prediction.value import Value

L = keras.layers
MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "taken.json"
FREE = Costs(take_call=1e-9, take=1e-9, skip=1e-9)
CONVERTING = replace(FOR_CONVERTERS, costs=FREE)
LOWERINGS = [Lowering("dense", costs=FREE), Lowering("sparse", costs=FREE), Lowering(costs=FREE), CONVERTING]


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("read", [[], [7], [0, 3, 4, 300, 599], list(range(600))], ids=len)
def test_products_are_those_of_all_inputs(read: list[int], lowering: Lowering, columns: bool) -> None:
    random = np.random.default_rng(0)
    left = np.isin(np.arange(600), read)[:, None] & (random.random((600, 90)) < 0.9)
    loc, scale = random.normal(size=(2, 600, 90)).astype(np.float32) * left
    loc[:300] = 0  # an input may be read by noise alone
    kernel, x = DenseKernel(loc, scale, lowering), random.normal(size=(5, 600)).astype(np.float32)
    found = None if kernel.read is None else kernel.read.tolist()
    assert found == (read if 0 < len(read) < 600 else None)
    assert kernel.shape == (600 if found is None else len(found), 90)
    value = kernel.laid(Value(tf.constant(x.T if columns else x), tf.constant((x.T if columns else x) ** 2), columns))
    for by, of, weights in (
        (kernel.by_mean, value.mean, loc),
        (kernel.by_square, value.variance, loc),
        (kernel.by_variance, value.mean, scale),
    ):
        product = Value(by(value, of), columns=value.columns).as_rows().mean
        expected = (x if of is value.mean else x**2) @ (weights if by == kernel.by_mean else weights**2)
        np.testing.assert_allclose(product, expected, rtol=1e-4, atol=1e-4)


def test_inputs_are_taken_where_that_is_faster() -> None:
    """By costs that are shipped for a clear saving alone; of means and variances it spares two products."""
    assert takes("auto", (784, 300), 200, 60_000, Costs())
    assert takes("dense", (784, 300), 160, 48_000, CONVERTED)
    assert not takes("auto", (784, 47), 88, 4136, Costs())
    assert takes("auto", (784, 120), 160, 19_200, Costs(), products=2) > takes("auto", (784, 120), 160, 19_200, Costs())
    for costs in cost.SHIPPED:
        assert not takes("dense", (784, 300), 760, 200_000, costs)
        assert not takes("dense", (20, 10), 3, 30, costs)
    assert not takes("auto", (784, 300), 200, 600, Costs())  # which is sparse, and reads no others anyway


def test_products_in_whole_numbers_read_all_where_others_take() -> None:
    """A layer with 500 units that reads half of 784 pixels; by its own precision, whatever the others have."""
    shape, read = (784, 500), 381
    assert takes("dense", shape, read, read * 500, CONVERTED)
    assert not takes("dense", shape, read, read * 500, CONVERTED_FEW)
    kernel = np.ones(shape, np.float32) * (np.arange(784) < read)[:, None]
    lowering = replace(FOR_CONVERTERS, by_layer={"few": "int8"})
    assert DenseKernel(kernel, None, lowering.of("few")).read is None
    assert len(DenseKernel(kernel, None, lowering.of("other")).read) == read  # type: ignore[arg-type]
    assert lowering.of("few").of("other").costs == CONVERTED_FEW


@pytest.mark.parametrize(("storage", "mean", "most"), [("float32", 1.04, 1.6), ("int8", 1.06, 1.75)])
def test_what_is_chosen_for_converters_is_near_the_best_of_what_was_measured(
    storage: str, mean: float, most: float
) -> None:
    """`benchmarks/taken.py`: the slower of batches of 32 and 256, beside the best; those of 1 differ by microseconds."""
    costs = {"float32": CONVERTED, "int8": CONVERTED_FEW}[storage]
    behind: dict[Any, float] = {}
    for row in json.loads(MEASURED.read_text())["rows"]:
        if row["precision"] == storage and row["batch"] > 1:
            shape, read = (row["inputs"], row["units"]), round(row["part"] * row["inputs"])
            way = "taken" if takes("dense", shape, read, read * shape[1], costs) else "all"
            key = (row["format"], *shape, read)
            behind[key] = max(behind.get(key, 1.0), row[way] / min(row["all"], row["taken"]))
    assert len(behind) == 90
    assert np.mean(list(behind.values())) < mean
    assert max(behind.values()) < most


@pytest.mark.parametrize("costs", [CONVERTED, CONVERTED_FEW])
@pytest.mark.parametrize("batch", [1, 32, 256])
def test_what_is_chosen_for_converters_is_near_the_best_of_the_model(costs: Costs, batch: int) -> None:
    """Within 1.25 times the cheaper way and 30 microseconds, what a clear saving at a batch of 64 leaves at others."""
    for inputs, units, part in itertools.product((256, 784, 3072), (50, 109, 500), np.linspace(0.1, 0.9, 9)):
        read = round(part * inputs)
        whole = costs.dense(batch, (inputs, units))
        some = costs.dense(batch, (read, units)) + costs.taken(batch, read, inputs)
        chosen = some if takes("dense", (inputs, units), read, read * units, costs) else whole
        assert chosen <= 1.25 * min(whole, some) + 30


def test_costs_of_before_say_nothing_of_taking(tmp_path: Any) -> None:
    cost.save(Costs(entry=0.125), tmp_path / "costs.json")
    held = read_json(tmp_path / "costs.json", {})
    before = {name: value for name, value in held.items() if name not in ("take_call", "take", "skip", "sha256")}
    (tmp_path / "before.json").write_text(str(before).replace("'", '"'))
    assert cost.read(tmp_path / "before.json") == Costs(entry=0.125)


def entering() -> Any:
    """Pixels of which the borders are read by nothing."""
    model = keras.Sequential(
        [keras.Input((24, 24, 1)), L.Flatten(), DenseFlipout(300, "relu", name="d"), DenseFlipout(3)]
    )
    return unread(model, np.abs(np.arange(24) - 12)[:, None] + np.abs(np.arange(24) - 12) < 7)


def flattened() -> Any:
    """Filters of which some positions are read by nothing."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), Conv2DFlipout(12, 3, padding="same", activation="relu"), L.Flatten(),
         DenseFlipout(60, "relu", name="d"), DenseFlipout(3)]
    )  # fmt: skip
    return unread(model, np.random.default_rng(0).random(768) < 0.2)


def unread(model: Any, read: np.ndarray) -> Any:
    """The network, settled, of which layer `d` reads these inputs alone."""
    classifier(settled(model))
    posterior = model.get_layer("d").kernel_posterior
    posterior.mask.assign(np.broadcast_to(read.reshape(-1, 1), posterior.mask.shape))
    return model


BUILDS: list[Callable[[], Any]] = [entering, flattened]


@pytest.mark.parametrize("predictive", ["mean", "moments", "sampled"])
@pytest.mark.parametrize("build", BUILDS)
def test_answers_are_those_without_it(build: Any, predictive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In all predictives and forms; what noise reaches is read whole where it is followed back, as it is in moments."""
    model = build()
    x = np.random.default_rng(1).normal(size=(9, *model.input_shape[1:])).astype(np.float32)
    lowerings = [Lowering(costs=FREE), CONVERTING]
    predictors = [Predictor(model, predictive, samples=5, lowering=lowering) for lowering in lowerings]
    told = {predictor.products()["d"]["taken"] for predictor in predictors}
    count = int(model.get_layer("d").kernel_posterior.mask.numpy()[:, 0].sum())
    assert told == {None if predictive == "moments" and build is flattened else count}
    monkeypatch.setattr(kernels, "takes", lambda *_: False)
    without = Predictor(model, predictive, samples=5, lowering=Lowering("dense"))
    assert without.products()["d"]["taken"] is None
    expected = {name: value.numpy() for name, value in without.predict(x).items()}
    found = [{name: value.numpy() for name, value in one.predict(x).items()} for one in predictors]
    if predictive == "mean":
        found.append(run("onnx", onnx.to_onnx(predictors[1]), x))
    if predictive == "mean" or (predictive == "moments" and build is entering):
        found.append(run("litert", litert.to_litert(predictors[1]), x))
    for outputs in found:
        for name, value in expected.items():
            np.testing.assert_allclose(outputs[name], value, rtol=2e-4, atol=2e-5)


def test_manifests_of_every_form_say_how_many_are_taken(tmp_path: Any) -> None:
    model = entering()
    count = int(model.get_layer("d").kernel_posterior.mask.numpy()[:, 0].sum())
    saved = bp.export(model, tmp_path / "saved", costs=FREE)
    assert saved["layers"]["d"]["shape"] == [count, 300]
    converted = bp.export(model, tmp_path / "litert", format="litert")
    assert saved["layers"]["d"]["taken"] == converted["layers"]["d"]["taken"] == count
    x = np.ones((2, 24, 24, 1), np.float32)
    [place] = (tmp_path / "saved").rglob("saved_model.pb")
    loaded = tf.saved_model.load(str(place.parent)).signatures["serving_default"](inputs=tf.constant(x))
    np.testing.assert_allclose(loaded["probabilities"], tf.nn.softmax(bp.strip(model)(x)), rtol=1e-4)
