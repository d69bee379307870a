"""Two real workers: one run directory, equal weights and masks, different noise; killed ones; resumes to the same bits."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tfp_bprune.files.runs import Run
from tfp_bprune.storage import load_model

if importlib.util.find_spec("horovod") is None:
    pytest.skip("Horovod is not installed; it needs Python 3.11 and TensorFlow 2.18", allow_module_level=True)
pytestmark = pytest.mark.horovod
WORKER = Path(__file__).with_name("horovod_worker.py")
TRAIN = ["--hidden", "16", "--epochs", "2", "--validation-fraction", "0.2"]


def command(*options: object) -> list[str]:
    """`horovodrun` of this environment with two workers."""
    return [f"{Path(sys.executable).parent}/horovodrun", "-np", "2", *map(str, options), sys.executable]


def environment() -> dict[str, str]:
    """The workers import what this process imports."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def horovodrun(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs this Python twice, as two workers that know of each other."""
    full = [*command("-H", "localhost:2"), *map(str, words)]
    return subprocess.run(full, capture_output=True, text=True, env=environment(), timeout=120, check=False)


def kill(rank: int, run: Path) -> None:
    """Kills the worker of that rank which trains into `run`, in the middle of an epoch after the first."""
    deadline = time.monotonic() + 90
    while not (Run(run).exists and Run.open(run).manifest.get("epoch", 0) >= 1):
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.05)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run) in process.cmdline() and process.environ().get("HOROVOD_RANK") == str(rank):
                process.kill()
                return
    raise AssertionError(f"no worker of rank {rank} was found")


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    result = horovodrun(WORKER, folder, "whole")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_workers_agree_on_weights_and_differ_in_noise_also_after_a_resume(tmp_path: Path, whole: Path) -> None:
    for mode in ("interrupt", "continue"):
        result = horovodrun(WORKER, tmp_path, mode)
        assert result.returncode == 0, result.stdout + result.stderr
    for folder, mode in ((whole, "whole"), (tmp_path, "continue")):
        for rank in (0, 1):
            said = json.loads((folder / f"rank-{rank}-{mode}.json").read_text())
            assert (said["rank"], said["workers"], said["different"]) == (rank, 2, 0)
            assert said["equal_draws"] < 0.01
    runs = Run.open(whole / "whole"), Run.open(tmp_path / "parts")
    one, other = (run.read_tensors(run.manifest["checkpoint"]) for run in runs)
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
    assert runs[0].read_rows() == runs[1].read_rows()


def test_an_error_of_one_worker_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = horovodrun("-m", "tfp_bprune.cli.main", "train", *TRAIN, "--out", tmp_path)
    assert result.returncode != 0
    assert "is not empty (it holds notes.txt)" in result.stderr + result.stdout


def test_two_workers_take_the_gradient_of_one_process_on_both_batches(tmp_path: Path) -> None:
    result = horovodrun(WORKER.with_name("horovod_gradients.py"), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert any(size % 2 for size in first["sizes"])  # a global batch that cannot be halved was among them
    for said in (first, second):
        assert said["gradient"] < 1e-5
        assert said["equal"]
        assert said["kl"][0] == pytest.approx(said["kl"][1], rel=1e-6)
        assert said["masks"] == "the masks of rank 1 differ from rank 0's: prune every worker's model alike"
    assert first["kept"] == second["kept"] < 1024
    assert first["accuracy"] == second["accuracy"]


LONG = ["-m", "tfp_bprune.cli.main", "train", "--hidden", "16", "--epochs", "150"]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_elastic_job_goes_on_without_a_killed_worker(tmp_path: Path, rank: int) -> None:
    discover = tmp_path / "discover.sh"
    # A host that lost a worker is not used again, hence two names of this one.
    discover.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")
    discover.chmod(0o755)
    elastic = ["--min-np", 1, "--max-np", 2, "--host-discovery-script", discover, "--network-interface", "lo"]
    words = [*command(*elastic), *LONG, "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()) as job:
        kill(rank, tmp_path / "run")
        output, _ = job.communicate(timeout=120)
    assert job.returncode == 0, output
    assert "rank 0 of 1 workers" in output
    run = Run.open(tmp_path / "run")
    run.verify()
    assert [row["epoch"] for row in run.read_rows()] == list(range(1, 151))
    assert run.read_rows()[-1]["val_accuracy"] > 0.9


def test_a_job_that_is_not_elastic_ends_with_a_killed_workers_rank_and_resumes_on_one(tmp_path: Path) -> None:
    words = [*command("-H", "localhost:2"), *LONG, "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()) as job:
        kill(1, tmp_path / "run")
        output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "Process name: 1" in output, output
    epochs = Run.open(tmp_path / "run").manifest["epoch"]
    assert 1 <= epochs < 150
    alone = [sys.executable, *LONG, "--out", str(tmp_path / "run"), "--resume"]
    subprocess.run(alone, check=True, capture_output=True, env=environment(), timeout=120)
    assert [row["epoch"] for row in Run.open(tmp_path / "run").read_rows()] == list(range(1, 151))


def test_a_checkpoint_that_rank_0_was_killed_in_leaves_the_one_before(tmp_path: Path, whole: Path) -> None:
    assert horovodrun(WORKER, tmp_path, "killed").returncode != 0
    run = Run.open(tmp_path / "parts")
    run.verify()
    assert run.manifest["epoch"] == 2
    result = horovodrun(WORKER, tmp_path, "continue")
    assert result.returncode == 0, result.stdout + result.stderr
    unbroken = Run.open(whole / "whole")
    assert run.read(run.manifest["checkpoint"]) == unbroken.read(unbroken.manifest["checkpoint"])
