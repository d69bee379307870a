"""Two real workers: one run directory, equal weights, different noise, and a resume to the same bits."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfp_bprune.models import load_model
from tfp_bprune.runs import Run

pytestmark = [
    pytest.mark.horovod,
    pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not installed"),
]
WORKER = Path(__file__).with_name("horovod_worker.py")
TRAIN = ["--hidden", "16", "--epochs", "2", "--validation-fraction", "0.2"]


def horovodrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs this Python twice, as two workers that know of each other."""
    binaries = str(Path(sys.executable).parent)
    # The workers import what this process imports.
    environment = os.environ | {
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [f"{binaries}/horovodrun", "-np", "2", "-H", "localhost:2", sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_command_line_trains_on_two_workers_and_resumes(tmp_path: Path) -> None:
    words = ["-m", "tfp_bprune.cli.main", "train", *TRAIN, "--out", tmp_path / "run"]
    for extra in ([], ["--resume"]):
        result = horovodrun(*words, *extra)
        assert result.returncode == 0, result.stdout + result.stderr
        run = Run.open(tmp_path / "run")
        assert {"config.json", "metrics.jsonl", "history.png"} <= set(run.verify())
        assert [row["epoch"] for row in run.read_rows()] == [1, 2]
        assert result.stdout.count("trained 2 epochs") == 1  # by the first worker alone
    # N of the evidence lower bound is the whole job's.
    assert run.config["data"]["train_size"] == 1150
    assert {layer.train_size for layer in load_model(run.path).model.layers if hasattr(layer, "train_size")} == {1150}


def test_workers_agree_on_weights_and_differ_in_noise_also_after_a_resume(tmp_path: Path) -> None:
    for mode in ("whole", "interrupt", "continue"):
        result = horovodrun(WORKER, tmp_path, mode)
        assert result.returncode == 0, result.stdout + result.stderr
    for mode in ("whole", "continue"):
        for rank in (0, 1):
            said = json.loads((tmp_path / f"rank-{rank}-{mode}.json").read_text())
            assert (said["rank"], said["workers"], said["different"]) == (rank, 2, 0)
            assert said["equal_draws"] < 0.01
    whole, parts = (Run.open(tmp_path / name) for name in ("whole", "parts"))
    one, other = (run.read_tensors(run.manifest["checkpoint"]) for run in (whole, parts))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
    assert whole.read_rows() == parts.read_rows()


def test_an_error_of_one_worker_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = horovodrun("-m", "tfp_bprune.cli.main", "train", *TRAIN, "--out", tmp_path)
    assert result.returncode != 0
    assert "is not empty (it holds notes.txt)" in result.stderr + result.stdout
