"""A dataset and an export form from outside of the package, through everything that takes a name of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.extension import dataset, form  # noqa: F401 (registers both)
from tfp_bprune.cli.main import main
from tfp_bprune.evaluation.fresh import check_export
from tfp_bprune.types import ExportError

EXTENSIONS = ["--import", "tests.extension.dataset", "--import", "tests.extension.form"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the rings, from the command line."""
    run = tmp_path_factory.mktemp("rings") / "run"
    words = "train --dataset rings --hidden 16 8 --epochs 3 --batch-size 50 --learning-rate 0.01 --out"
    assert main([*EXTENSIONS, *words.split(), str(run)]) == 0
    return run


@pytest.fixture(scope="module")
def served(trained: Path) -> tuple[Path, Path]:
    """Half of it as a SavedModel and as npz."""
    pruned, _ = bp.prune(bp.load_model(trained).model, sparsity=0.5)
    places = trained.parent / "savedmodel", trained.parent / "npz"
    request = {"dataset": "rings", "validation_fraction": 0.1}
    data = bp.load("rings", batch_size=50).info
    facts = {
        "request": request,
        "data": {"name": "rings", "fingerprint": data.fingerprint, "batch_size": 50, "seed": 0},
    }
    for place in places:
        bp.export(pruned, place, format=place.name, facts=facts)
    return places


def test_its_answers_are_those_of_the_savedmodel(served: tuple[Path, Path]) -> None:
    x = bp.load("rings").examples("test").x
    one, other = bp.reload(served, x, batches=(1, 8), rounds=2)
    assert set(one.outputs) == set(other.outputs) == {"probabilities", "entropy"}
    for name, value in one.outputs.items():
        np.testing.assert_allclose(other.outputs[name], value, atol=1e-5)
    assert {batch: times["median"] > 0 for batch, times in other.latency_ms.items()} == {"1": True, "8": True}


def test_its_process_imports_numpy_alone(served: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from tfp_bprune.evaluation import fresh

    run = subprocess.run

    def watched(words: list[str], **options: Any) -> Any:
        interpreter, isolated, script, request = words
        code = f"import runpy, sys; sys.argv[1:] = [{request!r}]; runpy.run_path({script!r}, run_name='__main__'); "
        code += "assert not {'tensorflow', 'tfp_bprune', 'tests'} & set(sys.modules)"
        return run([interpreter, isolated, "-c", code], **options)

    monkeypatch.setattr(fresh.subprocess, "run", watched)
    assert bp.reload([served[1]], np.zeros((2, 2)))[0].outputs["probabilities"].shape == (2, 2)


@pytest.mark.parametrize("command", ["evaluate", "bench", "inspect"])
def test_the_commands_take_it(served: tuple[Path, Path], capsys: pytest.CaptureFixture[str], command: str) -> None:
    capsys.readouterr()
    paths = [str(place) for place in served] if command == "bench" else [str(served[1])]
    rounds = ["--rounds", "1", "--batch", "1"] if command == "bench" else []
    assert main([*EXTENSIONS, command, *paths, *rounds, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    if command == "bench":
        assert [row["format"] for row in result["rows"]] == ["savedmodel", "npz"]
        assert result["rows"][0]["nll"] == pytest.approx(result["rows"][1]["nll"], abs=1e-5)
    if command == "evaluate":
        assert result["dataset"] == "rings"


def test_the_command_writes_it(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*EXTENSIONS, "export", str(trained), "--format", "npz", "--out", str(out)]) == 0
    manifest = check_export(out)
    assert (manifest["export_format"], set(manifest["files"])) == ("npz", {"model.npz", "README.md"})
    assert manifest["scores"]["nll"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"predictive": "sampled"}, "npz has no predictive 'sampled': expected 'mean'"),
        ({"float16": True}, "npz holds no weights in 'float16', which layer 'dense.*' is to have"),
        ({"kernels": "sparse"}, "npz has no sparse products"),
        ({"task": "regression"}, "npz holds classifiers that end in logits: this one is a regression"),
    ],
)
def test_what_it_cannot_hold_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    model = bp._keras.keras.Sequential([bp._keras.keras.Input((3,)), bp._keras.keras.layers.Dense(2)])
    with pytest.raises(ExportError, match=said):
        bp.export(model, tmp_path / "out", **{"format": "npz", "task": "classification", "from_logits": True} | options)
    assert not list(tmp_path.iterdir())


def test_without_its_module_it_is_unknown(served: tuple[Path, Path]) -> None:
    code = f"import tfp_bprune as bp; bp.reload([{str(served[1])!r}], __import__('numpy').zeros((1, 2)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.splitlines()[-1] == (
        "tfp_bprune.types.ExportError: unknown format 'npz': expected one of 'savedmodel', 'onnx', 'litert', 'openvino', "
        "or import the module that registers it"
    )
