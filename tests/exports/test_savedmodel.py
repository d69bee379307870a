"""Exports as those who serve them have them: a folder and TensorFlow."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import forks
from tfp_bprune._keras import tf
from tfp_bprune.evaluation.fresh import check_export
from tfp_bprune.exports import describe, export, savedmodel
from tfp_bprune.exports.forms import form_of
from tfp_bprune.files.runs import Run
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.pruning import prune
from tfp_bprune.storage import load_model
from tfp_bprune.types import ExportError, RunError

KINDS = {
    "mean": ("mean", "auto"),
    "sparse": ("mean", "sparse"),
    "csr": ("mean", "csr"),
    "sampled": ("sampled", "auto"),
    "sampled-csr": ("sampled", "csr"),
}
BATCHES = (1, 7, 300)

# Loads each export where nothing but TensorFlow is on the path of imports, and answers in several batch sizes.
STRANGER = """
import sys, json
import numpy as np, tensorflow as tf
x, folders = np.load(sys.argv[1]), sys.argv[2:]
for folder in folders:
    serve = tf.saved_model.load(folder + "/1").signatures["serving_default"]
    for batch in (1, 7, 300):
        outputs = {k: v.numpy() for k, v in serve(inputs=tf.constant(x[:batch])).items()}
        np.savez(f"{folder}-{batch}.npz", **outputs)
    spec = serve.structured_input_signature[1]["inputs"].shape.as_list()
    print(json.dumps([spec, sorted(m for m in sys.modules if m.startswith(("tfp_bprune", "tensorflow_probability")))]))
"""


@pytest.fixture(scope="module")
def pruned(tiny_model: Any) -> Any:
    """The trained digits network at 90 %."""
    return prune(tiny_model, sparsity=0.9)[0]


@pytest.fixture(scope="module")
def exports(pruned: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network in several forms."""
    place = tmp_path_factory.mktemp("exports")
    for name, (predictive, kernels) in KINDS.items():
        export(pruned, place / name, predictive=predictive, samples=8, kernels=kernels)  # type: ignore[arg-type]
    return {name: place / name for name in KINDS}


@pytest.fixture(scope="module")
def strangers_view(exports: dict[str, Path], images: np.ndarray) -> list[Any]:
    """What a process with TensorFlow alone printed; its predictions lie beside the exports."""
    place = next(iter(exports.values())).parent
    np.save(place / "x.npy", images[:300])
    words = [sys.executable, "-I", "-c", STRANGER, str(place / "x.npy"), *map(str, exports.values())]
    result = forks.run(words, cwd="/")
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_tensorflow_alone_loads_and_runs_them_at_any_batch_size(strangers_view: list[Any]) -> None:
    assert strangers_view == [[[None, 8, 8, 1], []]] * len(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_fresh_process_gets_the_same_answers(
    exports: dict[str, Path], strangers_view: list[Any], pruned: Any, images: np.ndarray, name: str
) -> None:
    predictive, kernels = KINDS[name]
    predictor = Predictor(pruned, predictive, 8, 0, Lowering(kernels))  # type: ignore[arg-type]
    for batch in BATCHES:
        served = dict(np.load(f"{exports[name]}-{batch}.npz"))
        here = predictor.predict(tf.constant(images[:batch]))
        assert set(served) == set(here)
        for key, value in here.items():
            assert served[key].shape[0] == batch
            np.testing.assert_allclose(served[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_nothing_of_the_package_is_in_the_files(exports: dict[str, Path], name: str) -> None:
    for file in exports[name].rglob("*"):
        if file.is_file() and file.name not in ("manifest.json", "README.md"):  # the card names the package
            content = file.read_bytes()
            assert b"tfp_bprune" not in content, file
            assert b"tensorflow_probability" not in content, file
    assert (exports[name] / "1" / "saved_model.pb").is_file()


@pytest.mark.parametrize("name", KINDS)
def test_the_manifest_says_what_it_is_and_verifies(exports: dict[str, Path], pruned: Any, name: str) -> None:
    manifest = check_export(exports[name])
    assert set(Run(exports[name]).verify()) == {
        str(p.relative_to(exports[name])) for p in exports[name].rglob("*") if p.is_file() and p.name != "manifest.json"
    }
    kernels = 64 * 16 + 16 * 10
    assert (manifest["kind"], manifest["predictive"], manifest["task"]) == ("export", KINDS[name][0], "classification")
    assert (manifest["prunable"], manifest["parameters"]) == (kernels, kernels + 26)
    assert manifest["nonzeros"] == kernels - round(0.9 * kernels) == describe(pruned)["nonzeros"]
    assert manifest["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert manifest["bytes"] == sum(f.stat().st_size for f in (exports[name] / "1").rglob("*") if f.is_file())
    assert manifest["input_shape"] == [8, 8, 1]
    assert ("samples" in manifest) == (KINDS[name][0] == "sampled")
    assert manifest["layers"]["logits"]["form"] == (KINDS[name][1] if KINDS[name][1] != "auto" else "dense")


def test_a_changed_byte_is_noticed(exports: dict[str, Path], copied: Callable[[Path], Path]) -> None:
    path = copied(exports["mean"])
    file = path / "1" / "saved_model.pb"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"saved_model.pb does not match its SHA-256"):
        check_export(path)


def test_a_regression_is_exported(regression_run: Path, tmp_path: Path) -> None:
    manifest = export(
        load_model(regression_run).model,
        tmp_path / "out",
        predictive="sampled",
        samples=3,
        facts={"dataset": "diabetes"},
    )
    assert (manifest["task"], manifest["dataset"]) == ("regression", "diabetes")
    serve = tf.saved_model.load(str(tmp_path / "out" / "1")).signatures["serving_default"]
    outputs = serve(inputs=tf.zeros((4, 10)))
    assert {name: tuple(v.shape) for name, v in outputs.items()} == dict.fromkeys(
        ("mean", "noise_std", "weights_std"), (4,)
    )


@pytest.mark.parametrize("there", ["file", "folder"])
def test_an_export_never_overwrites(pruned: Any, tmp_path: Path, there: str) -> None:
    target = tmp_path / "out"
    target.mkdir() if there == "folder" else target.write_text("mine")
    with pytest.raises(ExportError, match="already exists"):
        export(pruned, target)
    assert list(tmp_path.rglob("*")) == [target]


@pytest.mark.parametrize(("error", "raised"), [(RuntimeError, ExportError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_a_failed_export_leaves_nothing_behind(
    pruned: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    raised: type[BaseException],
) -> None:
    def half(predictor: Any, folder: str, **_: Any) -> None:
        Path(folder).mkdir()
        (Path(folder) / "saved_model.pb").write_bytes(b"half")
        raise error

    monkeypatch.setattr(savedmodel.tf.saved_model, "save", half)
    with pytest.raises(raised):
        export(pruned, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_take_it_is_one_clear_error(pruned: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match=r"cannot write .*choose a folder that can be written"):
        export(pruned, tmp_path / "file" / "out")


@pytest.mark.parametrize(("file_format", "file"), [("onnx", "model.onnx"), ("litert", "model.tflite")])
def test_other_formats_have_the_same_folder(pruned: Any, tmp_path: Path, file_format: Any, file: str) -> None:
    manifest = export(pruned, tmp_path / "out", format=file_format)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {file, "manifest.json", "README.md"}
    assert manifest == check_export(tmp_path / "out")
    assert (manifest["export_format"], set(manifest["files"])) == (file_format, {file, "README.md"})
    content = (tmp_path / "out" / file).read_bytes()
    assert (manifest["bytes"], manifest["bytes_gzip"]) == (len(content), len(gzip.compress(content, 6)))
    assert b"tfp_bprune" not in content


def test_a_savedmodel_says_its_format_too(exports: dict[str, Path]) -> None:
    manifest = check_export(exports["mean"])
    assert manifest["export_format"] == form_of(manifest).name == form_of({}).name == "savedmodel"
    assert 0 < manifest["bytes_gzip"] < manifest["bytes"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "pickle"}, r"unknown format 'pickle': expected one of 'savedmodel', 'onnx', 'litert', 'openvino'"),
        (
            {"format": "litert", "kernels": "sparse"},
            r"LiteRT has no sparse products: expected kernels 'auto' or 'dense', got 'sparse'",
        ),
        (
            {"format": "litert", "kernels": "csr"},
            r"LiteRT has no sparse products: expected kernels 'auto' or 'dense', got 'csr'",
        ),
        ({"kernels": "crs"}, r"unknown kernels 'crs': expected one of 'auto', 'dense', 'sparse', 'csr'"),
        ({"kernels": "csr", "predictive": "moments"}, r"predictive 'moments' has no csr products: expected kernels"),
        ({"format": "litert", "predictive": "sampled"}, r"LiteRT has no StatelessRandom"),
    ],
)
def test_formats_refuse_what_they_cannot_hold(
    pruned: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export(pruned, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_dead_units_make_an_export_smaller(tiny_model: Any, exports: dict[str, Path], tmp_path: Path) -> None:
    whole = export(tiny_model, tmp_path / "whole")
    assert check_export(exports["mean"])["bytes"] < whole["bytes"]
    assert whole["sparsity"] == 0
