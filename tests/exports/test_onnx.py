"""ONNX files: valid, for any batch size, and with TensorFlow's answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports.networks import NETWORKS, assert_answers_as_tensorflow, classifier, pruned_predictor, run
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import Form, export
from tfp_bprune.exports import onnx as exporter
from tfp_bprune.layers import Conv2DFlipout, Conv3DReparameterization, DenseFlipout, GaussianOutput
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, Lowering
from tfp_bprune.types import ExportError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
L = keras.layers


@pytest.fixture(scope="module", params=NETWORKS)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    """One network, pruned to 80 %."""
    return pruned_predictor(request.param)


@pytest.fixture(scope="module")
def content(predictor: Predictor) -> bytes:
    """It as an ONNX file."""
    return exporter.to_onnx(predictor)


@pytest.mark.parametrize("batch", [1, 7])
def test_the_file_answers_as_tensorflow_does(predictor: Predictor, content: bytes, batch: int) -> None:
    assert_answers_as_tensorflow("onnx", predictor, content, batch)


def test_the_graph_is_valid_and_keeps_its_names(content: bytes) -> None:
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["inputs"]
    assert {value.name for value in model.graph.output} == {"probabilities", "entropy"}
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [0, 8, 8, 1]
    assert {o.domain: o.version for o in model.opset_import}[""] == exporter.OPSET


def test_a_certain_answer_has_no_entropy_and_no_nan() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])
    model.set_weights([np.zeros((2, 3)), np.array([0.0, 300.0, 0.0])])
    outputs = run(
        "onnx", exporter.to_onnx(Predictor(model, "mean", lowering=FOR_CONVERTERS)), np.zeros((2, 2), np.float32)
    )
    np.testing.assert_array_equal(outputs["entropy"], 0)
    np.testing.assert_array_equal(outputs["probabilities"], [[0, 1, 0]] * 2)


def test_a_regression_has_mean_and_noise() -> None:
    model = keras.Sequential([keras.Input((5,)), DenseFlipout(6, activation="relu"), DenseFlipout(1), GaussianOutput()])
    predictor, x = (
        Predictor(model, "mean", lowering=FOR_CONVERTERS),
        np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32),
    )
    found = run("onnx", exporter.to_onnx(predictor), x)
    expected = predictor.predict(tf.constant(x))
    assert set(found) == {"mean", "noise_std"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [(("mean", 2, 0, Lowering("sparse", at_load=False)), "Sparse"), (("sampled", 2, 0, FOR_CONVERTERS), "Random")],
)
def test_operations_that_onnx_lacks_are_named(arguments: Any, operation: str) -> None:
    with pytest.raises(ExportError, match=rf"^ONNX has no .*{operation}\w+: use the predictive 'mean' or 'moments'"):
        exporter.to_onnx(Predictor(NETWORKS["mlp"](), *arguments))


def test_wrong_answers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda x: {"probabilities": np.full((len(x["inputs"]), 4), 0.9), "entropy": np.zeros(len(x["inputs"]))}  # noqa: E731
    monkeypatch.setattr(Form, "runner", lambda form, path, batch=None: wrong)
    with pytest.raises(ExportError, match=r"of the ONNX file differs from TensorFlow's by .*expected at most [12]e-04"):
        export(NETWORKS["mlp"](), tmp_path / "out", format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_run_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "to_onnx", lambda predictor, *_: b"no graph")
    with pytest.raises(ExportError, match=r"^onnxruntime failed: .*; use the format 'savedmodel'$"):
        export(NETWORKS["mlp"](), tmp_path / "out", format="onnx")


@pytest.mark.parametrize("package", ["tf2onnx", "onnx", "onnxruntime"])
def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"^the format 'onnx' needs {package}, .*'tfp-bprune\[formats\]'$"):
        exporter.to_onnx(Predictor(NETWORKS["mlp"](), "mean", lowering=FOR_CONVERTERS))


@pytest.mark.parametrize("dilation", [1, 2])
def test_moments_that_onnx_cannot_follow_back_are_refused_in_one_line(tmp_path: Path, dilation: int) -> None:
    layers = [Conv2DFlipout(4, 3, activation="relu", dilation_rate=dilation), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, DenseFlipout(3)])
    with pytest.raises(
        ExportError, match=r"moments back through this network.* use the predictive 'mean', or the format"
    ) as error:
        export(model, tmp_path / "out", predictive="moments", format="onnx", task="classification", from_logits=True)
    assert "\n" not in str(error.value)


def test_small_variances_stay_beside_large_ones_in_whole_numbers(tmp_path: Path) -> None:
    """Rounded in steps of one width they were 0, by which others were divided."""
    x = np.random.default_rng(0).normal(size=(20, 5, 5, 5, 1)).astype(np.float32)
    inputs = keras.Input(x.shape[1:])
    y = Conv3DReparameterization(8, (4, 1, 1), padding="same", activation="tanh", rho_init=-5.0)(inputs)
    model = classifier(keras.Model(inputs, DenseFlipout(4, rho_init=-5.0)(L.Flatten()(y))))
    export(
        model, tmp_path / "out", predictive="moments", format="onnx", precision="int8", representative=x,
        validation=x[:10],
    )  # fmt: skip
