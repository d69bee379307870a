"""Real workers: one run directory, equal weights and masks, different noise; killed ones; resumes to the same bits."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training.horovod_worker import LONG
from tfp_bprune.cli.main import main
from tfp_bprune.files.runs import Run
from tfp_bprune.graphs.shrink import units
from tfp_bprune.storage import load_model

if importlib.util.find_spec("horovod") is None:
    pytest.skip("Horovod is not installed; it needs Python 3.11 and TensorFlow 2.18", allow_module_level=True)
pytestmark = pytest.mark.horovod
WORKER = Path(__file__).with_name("horovod_worker.py")


def command(*options: object) -> list[str]:
    """`horovodrun` of this environment, and this Python to be run."""
    return [f"{Path(sys.executable).parent}/horovodrun", *map(str, options), sys.executable]


def environment() -> dict[str, str]:
    """The workers import what this process imports."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Starts:
    """The starts of `horovod_worker.py`, one after the other, each when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: dict[int, subprocess.CompletedProcess[str]] = {}
        (folder / "foreign").mkdir()
        (folder / "foreign" / "notes.txt").write_text("mine")

    def upto(self, number: int) -> subprocess.CompletedProcess[str]:
        """How a start ended, after those before it."""
        for start in range(len(self.ended) + 1, number + 1):
            words = [*command("-np", 2, "-H", "localhost:2"), str(WORKER), str(self.folder), str(start)]
            self.ended[start] = subprocess.run(
                words, capture_output=True, text=True, env=environment(), timeout=240, check=False
            )
            shutil.copytree(self.folder, self.folder.with_name(f"after-{start}"))
        return self.ended[number]

    def after(self, number: int, name: str) -> Run:
        """A run as it was left by a start."""
        self.upto(number)
        return Run.open(self.folder.with_name(f"after-{number}") / name)

    def said(self, number: int) -> list[dict[str, Any]]:
        """What both ranks found in a start."""
        result = self.upto(number)
        files = [self.folder / f"{number}-{rank}.json" for rank in (0, 1)]
        assert all(file.exists() for file in files), result.stdout + result.stderr
        return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Starts:
    return Starts(tmp_path_factory.mktemp("horovod"))


def test_two_workers_take_the_gradient_of_one_process_on_both_batches(starts: Starts) -> None:
    first, second = (said["gradients"] for said in starts.said(1))
    assert any(size % 2 for size in first["sizes"])  # a global batch that cannot be halved was among them
    for said in (first, second):
        assert said["gradient"] < 1e-5
        assert said["equal"]
        assert said["kl"][0] == pytest.approx(said["kl"][1], rel=1e-6)
        assert said["masks"] == "the masks of rank 1 differ from rank 0's: prune every worker's model alike"
    assert first["kept"] == second["kept"] < 1024
    assert first["accuracy"] == second["accuracy"]


def test_two_workers_that_accumulate_batches_learn_what_one_process_learns_of_all_of_them(starts: Starts) -> None:
    for said in (said["gradients"]["parts"] for said in starts.said(1)):
        assert said["equal"]
        assert said["difference"] < 1e-5 * said["moved"]
        ours, alone = said["rows"]
        assert ours[0] == alone[0] == 2 * 13  # steps of 100 examples: the workers exchange once in two batches
        assert ours[1:] == pytest.approx(alone[1:], rel=2e-5)


def test_an_error_of_one_worker_ends_the_job(starts: Starts) -> None:
    result = starts.upto(1)
    assert result.returncode != 0
    assert "is not empty (it holds notes.txt)" in result.stderr + result.stdout


@pytest.mark.parametrize("start", [1, 2])
def test_the_command_line_trains_on_two_workers_and_resumes(starts: Starts, start: int) -> None:
    first, second = (said["command"] for said in starts.said(start))
    assert (first["code"], second["code"]) == (0, 0)
    assert first["said"].count("trained 2 epochs") == 1  # by the first worker alone
    assert second["said"] == ""
    run = starts.after(start, "command")
    assert {"config.json", "metrics.jsonl", "history.png"} <= set(run.verify())
    assert [row["epoch"] for row in run.read_rows()] == [1, 2]
    # N of the evidence lower bound is the whole job's.
    assert run.config["data"]["train_size"] == 1150
    assert {layer.train_size for layer in load_model(run.path).model.layers if hasattr(layer, "train_size")} == {1150}


def test_workers_agree_on_weights_and_differ_in_noise_also_after_a_resume(starts: Starts) -> None:
    for start, what in ((1, "whole"), (2, "continued"), (3, "continued")):
        for rank, found in enumerate(said[what] for said in starts.said(start)):
            assert (found["rank"], found["workers"], found["different"]) == (rank, 2, 0)
            assert found["equal_draws"] < 0.01


def test_a_network_shrinks_alike_on_all_workers(starts: Starts) -> None:
    first, second = (said["shrunk"] for said in starts.said(1))
    assert first["different"] == second["different"] == 0
    assert first["equal_draws"] < 0.01
    assert first["units"] == second["units"]
    run = starts.after(1, "shrunk")
    rows = [{key: row[key] for key in row if key.startswith("units/")} for row in run.read_rows()]
    assert len(rows) == 4
    [hidden] = {key for key in rows[0] if not key.endswith("logits")}
    assert rows[0][hidden] == 16 > rows[-1][hidden]
    assert units(load_model(run.path).model) == first["units"]


def assert_same_bits(one: Run, other: Run) -> None:
    """The last checkpoints and the histories are equal."""
    tensors, others = (run.read_tensors(run.manifest["checkpoint"]) for run in (one, other))
    assert tensors.keys() == others.keys()
    for name, array in tensors.items():
        assert array.tobytes() == others[name].tobytes(), name
    assert one.read_rows() == other.read_rows()
    assert one.manifest["epoch"] == 4


def test_a_resume_ends_in_the_bits_of_an_unbroken_training(starts: Starts) -> None:
    assert_same_bits(starts.after(1, "whole"), starts.after(2, "interrupted"))


def test_a_checkpoint_that_rank_0_was_killed_in_leaves_the_one_before(starts: Starts) -> None:
    assert starts.upto(2).returncode != 0
    run = starts.after(2, "killed")
    run.verify()
    assert run.manifest["epoch"] == 2
    whole, again = starts.after(1, "whole"), starts.after(3, "killed")
    assert_same_bits(whole, again)
    assert whole.read(whole.manifest["checkpoint"]) == again.read(again.manifest["checkpoint"])


def test_a_job_that_is_not_elastic_ends_with_a_killed_workers_rank_and_resumes_on_one(starts: Starts) -> None:
    result = starts.upto(3)
    assert result.returncode != 0
    assert "Process name: 1" in result.stdout + result.stderr
    run = starts.after(3, "long")
    assert 1 <= run.manifest["epoch"] < 30
    assert main([*LONG, str(run.path), "--resume"]) == 0
    assert [row["epoch"] for row in run.read_rows()] == list(range(1, 31))


def kill(rank: int, run: Path, after: int) -> None:
    """Kills the worker that began with that rank and trains into `run`, in the middle of an epoch later than `after`."""
    deadline = time.monotonic() + 90
    while not (Run(run).exists and Run.open(run).manifest.get("epoch", 0) > after):
        assert time.monotonic() < deadline, "training did not go on"
        time.sleep(0.05)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run) in process.cmdline() and process.environ().get("HOROVOD_RANK") == str(rank):
                process.kill()
                return
    raise AssertionError(f"no worker of rank {rank} was found")


def test_an_elastic_job_goes_on_without_killed_workers_the_first_and_another_one(tmp_path: Path) -> None:
    discover, out = tmp_path / "discover.sh", tmp_path / "run"
    # A host that lost a worker is not used again, hence three names of this one.
    hosts = ("localhost", "127.0.0.1", socket.gethostname())
    discover.write_text("#!/bin/sh\n" + "".join(f"echo {host}:1\n" for host in hosts))
    discover.chmod(0o755)
    elastic = ["-np", 3, "--min-np", 1, "--max-np", 3, "--host-discovery-script", discover, "--network-interface", "lo"]
    words = ["-m", "tfp_bprune.cli.main", "train", "--hidden", "16", "--epochs", "60", "--learning-rate", "0.003"]
    words = [*command(*elastic), *words, "--out", str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()) as job:
        kill(0, out, 0)
        kill(2, out, Run.open(out).manifest["epoch"] + 1)
        output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert "rank 1 of 2 workers" in output
    assert "rank 0 of 1 workers" in output
    run = Run.open(out)
    run.verify()
    assert [row["epoch"] for row in run.read_rows()] == list(range(1, 61))
    assert run.read_rows()[-1]["val_accuracy"] > 0.9
