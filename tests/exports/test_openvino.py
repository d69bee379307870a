"""OpenVINO reads each form that is made for it, and answers as TensorFlow does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.exports.networks import NETWORKS, settled
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import openvino as exporter
from tfp_bprune.layers import DenseFlipout, GaussianOutput
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import FOR_CONVERTERS
from tfp_bprune.types import ExportError

openvino = pytest.importorskip("openvino")
FILES = {"openvino": "1", "onnx": "model.onnx", "litert": "model.tflite"}
PACKAGES = {"onnx": "tf2onnx", "litert": "ai_edge_litert"}


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 8, 8, 1)).astype(np.float32)


def pruned(name: str) -> Any:
    return bp.prune(settled(NETWORKS[name]()), sparsity=0.9)[0]


def by_meaning(compiled: Any, x: np.ndarray, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name; of a LiteRT file, whose signature OpenVINO does not read, in the order of names, as TensorFlow has it."""
    found = [(port.get_any_name(), value) for port, value in compiled(x).to_dict().items()]
    if {name for name, _ in found} == set(expected):
        return dict(found)
    return dict(zip(sorted(expected), (value for _, value in sorted(found)), strict=True))


@pytest.mark.parametrize("form", FILES)
@pytest.mark.parametrize(
    ("name", "predictive"), [("mlp", "mean"), ("mlp", "moments"), ("lenet", "mean"), ("residual", "mean")]
)
def test_it_reads_what_export_writes(form: str, name: str, predictive: Any, tmp_path: Path) -> None:
    """As a user has it: the file alone, and nothing of this package."""
    pytest.importorskip(PACKAGES.get(form, "openvino"))
    model = pruned(name)
    bp.export(model, tmp_path / "out", predictive=predictive, format=form)
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(str(tmp_path / "out" / FILES[form])), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for count in (1, 5):
        expected = bp.predict(model, images(count), predictive=predictive).outputs
        found = by_meaning(compiled, images(count), expected)
        for output, value in expected.items():
            np.testing.assert_allclose(found[output], value, atol=1e-5, err_msg=output)


def test_the_usual_savedmodel_of_a_wide_pruned_network_is_what_it_cannot_read(tmp_path: Path) -> None:
    """Why there is a form of its own; should OpenVINO once read it, the form can go."""
    keras.utils.set_random_seed(0)
    model, _ = bp.prune(wide(), sparsity=0.9)
    bp.export(model, tmp_path / "usual")
    with pytest.raises(RuntimeError, match="Cannot find requested variable"):
        openvino.Core().read_model(str(tmp_path / "usual" / "1"))
    manifest = bp.export(model, tmp_path / "ours", format="openvino")
    x = np.random.default_rng(0).normal(size=(7, 150)).astype(np.float32)
    expected = bp.predict(model, x, predictive="mean").outputs
    for name, value in bp.predict(tmp_path / "ours", x).outputs.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert manifest["difference"] < 1e-4


def wide() -> Any:
    """A network whose kernels are packed once they are pruned."""
    layers = [DenseFlipout(201, activation="relu"), DenseFlipout(50, activation="softmax")]
    return keras.Sequential([keras.Input((150,)), *layers])


def test_tensorflow_reads_it_too(tmp_path: Path) -> None:
    model = pruned("mlp")
    bp.export(model, tmp_path / "out", format="openvino", predictive="moments")
    served = tf.saved_model.load(str(tmp_path / "out" / "1")).signatures["serving_default"]
    expected = bp.predict(model, images(3), predictive="moments").outputs
    for name, value in served(inputs=tf.constant(images(3))).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)


def test_a_regression_reloads_and_is_scored_there(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((5,)), DenseFlipout(6, activation="tanh"), DenseFlipout(2), GaussianOutput()])
    bp.export(model, tmp_path / "out", format="openvino")
    x = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
    [found] = bp.reload(tmp_path / "out", x, batches=(4,), rounds=2)
    for name, value in bp.predict(model, x, predictive="mean").outputs.items():
        np.testing.assert_allclose(found.outputs[name], value, rtol=1e-4, atol=1e-5)
    assert found.latency_ms["4"]["median"] > 0


@pytest.mark.parametrize(
    ("name", "predictive", "said"),
    [
        ("mlp", "sampled", r"^OpenVINO has no .*StatelessRandomNormalV2: use the predictive 'mean' or 'moments'"),
        (
            "lenet",
            "moments",
            r"^OpenVINO has no .*MaxPoolGrad, which following moments back through this network takes: use",
        ),
    ],
)
def test_operations_that_it_lacks_are_named(name: str, predictive: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said) as error:
        bp.export(NETWORKS[name](), tmp_path / "out", predictive=predictive, format="openvino")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernels": "sparse"}, "OpenVINO has no sparse products: expected kernels 'auto' or 'dense', got 'sparse'"),
    ],
)
def test_what_it_cannot_hold_is_refused(options: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        bp.export(NETWORKS["mlp"](), tmp_path / "out", format="openvino", **options)


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportError, match=r"^the format 'openvino' needs openvino, .*'tfp-bprune\[openvino\]'$"):
        exporter.to_openvino(Predictor(NETWORKS["mlp"](), "mean", lowering=FOR_CONVERTERS), tmp_path / "1")


def test_a_graph_that_does_more_than_compute_is_refused(tmp_path: Path) -> None:
    class Evil(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], name="inputs")])
        def predict(self, inputs: Any) -> Any:
            tf.io.write_file(str(tmp_path / "canary"), "x")
            return {"mean": inputs[:, 0]}

    evil = Evil()
    tf.saved_model.save(evil, str(tmp_path / "evil"), signatures={"serving_default": evil.predict})
    content = (tmp_path / "evil" / "saved_model.pb").read_bytes()
    assert exporter.OPENVINO.check is not None
    with pytest.raises(ExportError, match="'WriteFile', which can do more than compute"):
        exporter.OPENVINO.check("1/saved_model.pb", content, "evil")
