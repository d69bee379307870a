"""`reload` runs every format in a fresh process, refuses what it cannot run before it starts one, reports failures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation import fresh, reload
from tfp_bprune.evaluation.score import record_scores
from tfp_bprune.exports import export
from tfp_bprune.pruning import prune
from tfp_bprune.types import DataError, ExportError, RunError

FORMATS: tuple[Any, ...] = ("savedmodel", "onnx", "litert")


@pytest.fixture(scope="module")
def exported(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny network."""
    place = tmp_path_factory.mktemp("exported") / "mean"
    export(tiny_model, place)
    return place


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (3, 8, 8), (3, 64), (3, 9, 8, 1)])
def test_examples_of_another_shape_are_refused(exported: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"takes examples of shape \(8, 8, 1\): got \d of shape"):
        reload([exported], np.zeros(shape, np.float32))


def test_what_is_no_export_is_refused(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a run: expected a folder written by `tfp-bprune export`"):
        reload([exported, tiny_run], np.zeros((1, 8, 8, 1)))
    with pytest.raises(RunError, match="holds no run"):
        reload([tmp_path], np.zeros((1, 8, 8, 1)))


def test_what_fails_in_the_fresh_process_is_one_line(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\n  ...\nOSError: SavedModel file does not exist\n")
    monkeypatch.setattr(fresh.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ExportError, match=r"failed in a fresh process: OSError: SavedModel file does not exist$"):
        reload([exported], np.zeros((1, 8, 8, 1)))


def test_an_export_that_fails_to_run_keeps_its_manifest(
    exported: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (exported / "manifest.json").read_bytes()
    failed = subprocess.CompletedProcess([], 1, "", "OSError: no\n")
    monkeypatch.setattr(fresh.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ExportError, match="failed in a fresh process: OSError: no"):
        record_scores(exported, digits.examples("valid"))
    assert (exported / "manifest.json").read_bytes() == before


@pytest.fixture(scope="module")
def in_all_formats(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny network at 80 %, a folder a format."""
    place = tmp_path_factory.mktemp("formats")
    pruned = prune(tiny_model, sparsity=0.8)[0]
    for name in FORMATS:
        export(pruned, place / name, format=name)
    return [place / name for name in FORMATS]


def test_every_format_gives_the_same_answers_and_a_latency(in_all_formats: list[Path], images: np.ndarray) -> None:
    x = images[:7]
    first, *others = reload(in_all_formats, x, batches=(1, 3), rounds=2, threads=1)
    assert first.outputs["probabilities"].shape == (7, 10)
    for other in others:
        assert set(other.outputs) == set(first.outputs)
        for name, value in first.outputs.items():
            np.testing.assert_allclose(other.outputs[name], value, atol=1e-5)
    for result in (first, *others):
        assert set(result.latency_ms) == {"1", "3"}
        assert all(times["median"] > 0 for times in result.latency_ms.values())


@pytest.mark.parametrize(("name", "banned"), [("onnx", "ai_edge_litert"), ("litert", "onnxruntime")])
def test_a_runtime_runs_alone(
    in_all_formats: list[Path], images: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str, banned: str
) -> None:
    run = subprocess.run

    def watched(words: list[str], **options: Any) -> Any:
        """The same script, after which its process checks what it has imported."""
        interpreter, isolated, script, request = words
        code = f"import runpy, sys; sys.argv[1:] = [{request!r}]; runpy.run_path({script!r}, run_name='__main__'); "
        code += f"assert not {{'tensorflow', {banned!r}}} & set(sys.modules)"
        return run([interpreter, isolated, "-c", code], **options)

    monkeypatch.setattr(fresh.subprocess, "run", watched)
    path = in_all_formats[FORMATS.index(name)]
    assert reload([path], images[:2])[0].outputs["probabilities"].shape == (2, 10)


def test_without_its_runtime_an_export_is_refused_in_one_line(
    in_all_formats: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"^the format 'onnx' needs onnxruntime, .*'tfp-bprune\[formats\]'$"):
        reload(in_all_formats, np.zeros((1, 8, 8, 1)))


def test_a_damaged_file_is_noticed(in_all_formats: list[Path], copied: Callable[[Path], Path]) -> None:
    path = copied(in_all_formats[2])
    content = bytearray((path / "model.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.tflite").write_bytes(content)
    with pytest.raises(RunError, match=r"model.tflite does not match its SHA-256"):
        reload([path], np.zeros((1, 8, 8, 1)))


def test_several_inputs_are_given_by_name(tmp_path: Path) -> None:
    one, other = keras.Input((2,), name="one"), keras.Input((None,), dtype="int32", name="other")
    embedded = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(5, 2)(other))
    model = keras.Model([one, other], keras.layers.Dense(1)(keras.layers.Concatenate()([one, embedded])))
    export(model, tmp_path / "out", task="regression")
    x = {"other": np.array([[1, 2, 3]] * 4), "one": np.random.default_rng(0).normal(size=(4, 2))}
    [found] = reload([tmp_path / "out"], x, batches=(2,), rounds=1)
    expected = model.predict([x["one"], x["other"]], verbose=0)[:, 0]
    np.testing.assert_allclose(found.outputs["mean"], expected, rtol=1e-5)
    assert set(found.latency_ms) == {"2"}
    with pytest.raises(DataError, match=r"takes the inputs 'one', 'other': got none for 'other'"):
        reload([tmp_path / "out"], {"one": x["one"]})
    with pytest.raises(DataError, match=r"takes examples 'one' of shape \(2,\): got 4 of shape \(3,\)"):
        reload([tmp_path / "out"], {"one": np.zeros((4, 3)), "other": x["other"]})
