"""Files for batches of one size: what they hold, and that whoever runs them may ask for any number of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.exports.networks import NETWORKS, settled
from tfp_bprune._keras import keras
from tfp_bprune.cli.main import main
from tfp_bprune.exports.loaders.batches import in_batches
from tfp_bprune.files.runs import Run
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.prediction import Predictor
from tfp_bprune.types import ExportError

pytest.importorskip("ai_edge_litert")
pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
FORMATS = ("litert", "onnx")
SIZE = 4


def sizes_in(path: Path) -> list[int]:
    """The sizes of the first axis of inputs and outputs as the file itself has them."""
    if (path / "model.tflite").exists():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_path=str(path / "model.tflite"))
        details = [*interpreter.get_input_details(), *interpreter.get_output_details()]
        return [int(one["shape_signature"][0]) for one in details]
    import onnx

    graph = onnx.load(str(path / "model.onnx")).graph
    return [value.type.tensor_type.shape.dim[0].dim_value for value in (*graph.input, *graph.output)]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 8, 8, 1)).astype(np.float32)


def assert_same(model: Any, place: Path, predictive: Any, atol: float = 1e-5) -> None:
    """An export answers as TensorFlow does, whole batches or not."""
    for count in (1, SIZE, 2 * SIZE + 1):
        x = images(count)
        expected = bp.predict(model, x, predictive=predictive)
        found, [reloaded] = bp.predict(place, x), bp.reload(place, x)
        for name, value in expected.outputs.items():
            np.testing.assert_allclose(found.outputs[name], value, atol=atol, err_msg=name)
            np.testing.assert_allclose(reloaded.outputs[name], value, atol=atol, err_msg=name)


@pytest.mark.parametrize(("name", "predictive"), [("mlp", "moments"), ("lenet", "mean")])
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_for_one_size_answers_any_number(form: str, name: str, predictive: Any, tmp_path: Path) -> None:
    model = settled(NETWORKS[name]())
    manifest = bp.export(model, tmp_path / "fixed", predictive=predictive, format=form, batch=SIZE)
    assert (manifest["batch"], set(sizes_in(tmp_path / "fixed"))) == (SIZE, {SIZE})
    assert f"[{SIZE}, 8, 8, 1]" in (tmp_path / "fixed" / "README.md").read_text()
    assert_same(model, tmp_path / "fixed", predictive)


@pytest.mark.parametrize("form", FORMATS)
def test_without_a_batch_nothing_is_fixed(form: str, tmp_path: Path) -> None:
    manifest = bp.export(NETWORKS["mlp"](), tmp_path / "any", format=form)
    assert "batch" not in manifest
    assert set(sizes_in(tmp_path / "any")) <= {-1, 0}


@pytest.mark.parametrize("form", FORMATS)
def test_ranges_are_settled_by_examples_in_batches_of_that_size(form: str, tmp_path: Path) -> None:
    model = settled(NETWORKS["lenet"]())
    options: Any = {"format": form, "precision": "int8", "representative": images(6)}
    for place, batch in (("any", None), ("fixed", SIZE)):
        bp.export(model, tmp_path / place, batch=batch, **options)
    x = images(5)
    one, other = (bp.predict(tmp_path / place, x).probabilities for place in ("any", "fixed"))
    assert set(sizes_in(tmp_path / "fixed")) == {SIZE}
    np.testing.assert_allclose(one, other, atol=0.02)


@pytest.mark.parametrize("form", FORMATS)
def test_ranges_hold_what_any_single_example_reaches(form: str, tmp_path: Path) -> None:
    inputs = keras.Input((30,))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(40, "relu")(inputs)))
    x = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32)
    options: Any = {"format": form, "precision": "int8", "representative": x, "validation": x, "task": "regression"}
    cost = bp.export(model, tmp_path / "single", batch=1, **options)["precision_cost"]
    assert 0 < cost["difference"] < 0.05


def test_several_inputs_are_of_the_same_size(tmp_path: Path) -> None:
    first, second = keras.Input((3,), name="first"), keras.Input((2,), name="second")
    outputs = DenseFlipout(3, activation="softmax")(keras.layers.Concatenate()([first, second]))
    model = keras.Model([first, second], outputs)
    bp.export(model, tmp_path / "fixed", format="litert", batch=SIZE)
    rng = np.random.default_rng(0)
    x = {"first": rng.normal(size=(6, 3)).astype(np.float32), "second": rng.normal(size=(6, 2)).astype(np.float32)}
    expected = bp.predict(model, x, predictive="mean").probabilities
    np.testing.assert_allclose(bp.predict(tmp_path / "fixed", x).probabilities, expected, atol=1e-6)


def test_times_are_those_of_whole_batches(tmp_path: Path) -> None:
    bp.export(NETWORKS["mlp"](), tmp_path / "fixed", format="litert", batch=SIZE)
    [reloaded] = bp.reload(tmp_path / "fixed", images(3), batches=(1, 9), rounds=2)
    assert set(reloaded.latency_ms) == {"1", "9"}


def test_the_command_takes_it(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "fixed"
    assert main(["export", str(tiny_run), "--format", "litert", "--batch", "2", "--no-score", "--out", str(out)]) == 0
    assert (Run.open(out).manifest["batch"], set(sizes_in(out))) == (2, {2})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 4}, r"^a fixed batch is for the formats 'onnx' and 'litert', got 'savedmodel': leave batch out$"),
        *(
            ({"batch": batch, "format": "litert"}, rf"^batch must be a whole number from 1 to 65536, got {batch}$")
            for batch in (0, -1, 2.0, True, 65537)
        ),
    ],
)
def test_what_is_no_size_is_refused(options: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        bp.export(NETWORKS["mlp"](), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", FORMATS)
def test_a_manifest_with_another_size_ends_in_one_line(form: str, tmp_path: Path) -> None:
    bp.export(NETWORKS["lenet"](), tmp_path / "fixed", format=form, batch=SIZE)
    Run(tmp_path / "fixed").record(batch=SIZE + 1)
    with pytest.raises(ExportError) as error:
        bp.predict(tmp_path / "fixed", images(3))
    assert "\n" not in str(error.value)


def test_what_fills_the_last_batch_is_an_example() -> None:
    """Zeros would be no word of a vocabulary that begins with 1, and could be told apart by what computes over a batch."""
    seen = []

    def run(inputs: Any) -> Any:
        seen.append(inputs["x"].tolist())
        return {"twice": 2 * inputs["x"]}

    found = in_batches(run, 3)({"x": np.arange(1, 6)})
    assert (found["twice"].tolist(), seen) == ([2, 4, 6, 8, 10], [[1, 2, 3], [4, 5, 5]])


def test_a_predictor_for_one_size_gives_the_answers_of_any() -> None:
    predictor, x = Predictor(NETWORKS["lenet"](), "moments"), images(SIZE)
    expected, found = predictor.predict(x), predictor.for_batches_of(SIZE)(x)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
    with pytest.raises((TypeError, ValueError)):
        predictor.for_batches_of(SIZE)(x[:2])
