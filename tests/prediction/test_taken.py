"""Dense kernels of which some inputs are read by nothing: the others are taken alone where that is faster, for the same answers."""

from __future__ import annotations

from collections.abc import Callable
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
from tfp_bprune.prediction.cost import CONVERTED, Costs, takes
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, DenseKernel, Lowering
from tfp_bprune.prediction.value import Value

L = keras.layers
FREE = Costs(take_call=1e-9, take=1e-9, skip=1e-9)
LOWERINGS = [Lowering("dense", costs=FREE), Lowering("sparse", costs=FREE), Lowering(costs=FREE), FOR_CONVERTERS]


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
    assert takes("dense", (784, 47), 88, 4136, CONVERTED)
    assert not takes("auto", (784, 47), 88, 4136, Costs())
    assert takes("auto", (784, 120), 160, 19_200, Costs(), products=2) > takes("auto", (784, 120), 160, 19_200, Costs())
    for costs in (Costs(), CONVERTED):
        assert not takes("dense", (784, 300), 760, 200_000, costs)
        assert not takes("dense", (20, 10), 3, 30, costs)
    assert not takes("auto", (784, 300), 200, 600, Costs())  # which is sparse, and reads no others anyway


def test_costs_of_before_say_nothing_of_taking(tmp_path: Any) -> None:
    cost.save(Costs(entry=0.125), tmp_path / "costs.json")
    held = read_json(tmp_path / "costs.json", {})
    before = {name: value for name, value in held.items() if name not in ("take_call", "take", "skip", "sha256")}
    (tmp_path / "before.json").write_text(str(before).replace("'", '"'))
    assert cost.read(tmp_path / "before.json") == Costs(entry=0.125)


def entering() -> Any:
    """Pixels of which the borders are read by nothing."""
    model = keras.Sequential(
        [keras.Input((24, 24, 1)), L.Flatten(), DenseFlipout(60, "relu", name="d"), DenseFlipout(3)]
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
    lowerings = [Lowering(costs=FREE), FOR_CONVERTERS]
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
    assert saved["layers"]["d"]["shape"] == [count, 60]
    converted = bp.export(model, tmp_path / "litert", format="litert")
    assert saved["layers"]["d"]["taken"] == converted["layers"]["d"]["taken"] == count
    x = np.ones((2, 24, 24, 1), np.float32)
    [place] = (tmp_path / "saved").rglob("saved_model.pb")
    loaded = tf.saved_model.load(str(place.parent)).signatures["serving_default"](inputs=tf.constant(x))
    np.testing.assert_allclose(loaded["probabilities"], tf.nn.softmax(bp.strip(model)(x)), rtol=1e-4)
