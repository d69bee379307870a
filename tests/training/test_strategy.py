"""Real replicas of tf.distribute: two in a process, and two workers; the loss of one process, equal weights, kills, resumes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.training.strategy_worker import LONG
from tfp_bprune._keras import tf
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import Run
from tfp_bprune.storage import load_model
from tfp_bprune.training import Strategy, detect
from tfp_bprune.types import TrainingError

WORKER = "tests.training.strategy_worker"
KINDS = ("mirrored", "multiworker")


def addresses(count: int) -> list[str]:
    """Free ones of this machine."""
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{one.getsockname()[1]}" for one in with_sockets]
    for one in with_sockets:
        one.close()
    return found


class Starts:
    """The starts of `strategy_worker.py` of a kind, one after the other, each when it is first asked for."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.ended: dict[int, list[tuple[int, str]]] = {}

    def upto(self, number: int) -> list[tuple[int, str]]:
        """Exit code and output of each rank of a start, after those before it."""
        for start in range(len(self.ended) + 1, number + 1):
            self.ended[start] = self._run(start)
            shutil.copytree(self.folder, self.folder.with_name(f"{self.kind}-after-{start}"))
        return self.ended[number]

    def _run(self, start: int) -> list[tuple[int, str]]:
        words = [sys.executable, "-m", WORKER, self.kind, str(self.folder), str(start)]
        places = addresses(2) if self.kind == "multiworker" else [""]
        jobs = [
            subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(places, rank),
                cwd=Path(__file__).parents[2],
            )
            for rank in range(len(places))
        ]
        said = [job.communicate(timeout=300)[0] for job in jobs]
        return [(job.returncode, one) for job, one in zip(jobs, said, strict=True)]

    def after(self, number: int, name: str) -> Run:
        """A run as it was left by a start."""
        self.upto(number)
        return Run.open(self.folder.with_name(f"{self.kind}-after-{number}") / name)

    def said(self, number: int) -> list[dict[str, Any]]:
        """What each rank found in a start."""
        ended = self.upto(number)
        files = [self.folder / f"{number}-{rank}.json" for rank in range(len(ended))]
        assert all(file.exists() for file in files), "\n".join(said for _, said in ended)
        return [json.loads(file.read_text()) for file in files]


def environment(places: list[str], rank: int) -> dict[str, str]:
    """What a worker is told."""
    cluster = {"cluster": {"worker": places}, "task": {"type": "worker", "index": rank}}
    path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return os.environ | path | ({"TF_CONFIG": json.dumps(cluster)} if len(places) > 1 else {})


@pytest.fixture(scope="module")
def each(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Starts]:
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("strategy") / kind
        folder.mkdir()
        made[kind] = Starts(kind, folder)
    return made


@pytest.fixture(params=KINDS)
def starts(request: Any, each: dict[str, Starts]) -> Starts:
    return each[request.param]


@pytest.fixture
def workers(each: dict[str, Starts]) -> Starts:
    return each["multiworker"]


@pytest.mark.parametrize("which", ["beside", "parts"])
def test_two_replicas_learn_what_one_process_learns_of_both_batches(starts: Starts, which: str) -> None:
    said = [found[which] for found in starts.said(1)]
    for values in zip(*(beside["digests"] for beside in said), strict=True):
        assert len({one for each in values for one in each}) == 1
    for beside in said:
        assert beside["difference"] < 1e-5 * beside["moved"]
        # Of odd batches the examples weigh differently in the mean of the losses, as with Horovod; metrics are sums.
        ours, alone = beside["rows"]
        np.testing.assert_allclose(ours, alone, rtol=2e-5)


def test_replicas_have_equal_weights_and_masks_and_noise_of_their_own(starts: Starts) -> None:
    found = starts.said(1) if starts.kind == "mirrored" else [*starts.said(1), *starts.said(2)]
    for what in ("whole", "continued"):
        trained = [said[what] for said in found if what in said]
        assert {said["size"] for said in trained} == {2}
        for values in zip(*(said["digests"] for said in trained), strict=True):
            assert len({one for each in values for one in each}) == 1
        assert {said["kept"] for said in trained} == {trained[0]["kept"]}
        assert len({tuple(draw) for said in trained for draw in said["draws"]}) == 2


def assert_same_bits(one: Run, other: Run) -> None:
    """The last checkpoints and the histories are equal."""
    tensors, others = (run.read_tensors(run.manifest["checkpoint"]) for run in (one, other))
    assert tensors.keys() == others.keys()
    for name, array in tensors.items():
        assert array.tobytes() == others[name].tobytes(), name
    assert one.read_rows() == other.read_rows()
    assert one.manifest["epoch"] == 4


def test_a_resume_ends_in_the_bits_of_an_unbroken_training(starts: Starts) -> None:
    assert_same_bits(starts.after(1, "whole"), starts.after(1, "interrupted"))


def test_the_first_worker_alone_writes_and_metrics_are_of_all_examples(starts: Starts) -> None:
    rows = [said["whole"]["rows"] for said in starts.said(1)]
    ours = [{key: row[key] for key in row if not key.startswith("kl/")} for row in rows[0]]
    for others in rows[1:]:
        assert ours == [{key: row[key] for key in row if not key.startswith("kl/")} for row in others]
    run = starts.after(1, "whole")
    run.verify()
    assert run.read_rows() == rows[0]
    assert {layer.train_size for layer in load_model(run.path).model.layers if hasattr(layer, "train_size")} == {1294}


def test_a_network_that_would_shrink_is_refused(starts: Starts) -> None:
    for found in starts.said(1):
        assert found["shrink"].startswith("a network cannot shrink under tf.distribute")


def test_a_death_of_the_first_worker_ends_the_job_and_its_last_checkpoint_goes_on(workers: Starts) -> None:
    (first, _), (second, said) = workers.upto(1)
    assert first == -signal.SIGKILL
    assert second not in (0, -signal.SIGKILL), said
    assert workers.after(1, "killed").manifest["epoch"] == 2
    assert_same_bits(workers.after(1, "whole"), workers.after(2, "killed"))


def test_the_command_trains_on_two_workers_and_one_goes_on_after_the_death_of_the_other(workers: Starts) -> None:
    first, second = (said["command"] for said in workers.said(2))
    assert (first["code"], second["code"]) == (0, 0)
    assert first["said"].count("trained 2 epochs") == 1
    assert second["said"] == ""
    assert {"config.json", "metrics.jsonl", "history.png"} <= set(workers.after(2, "command").verify())
    (code, said), (killed, _) = workers.upto(2)
    assert killed == -signal.SIGKILL
    assert code != 0, said
    run = workers.after(2, "long")
    assert 1 <= run.manifest["epoch"] < 30
    alone = [word for word in LONG if word not in ("--distribute", "multiworker")]
    assert main([*alone, str(run.path), "--resume"]) == 0
    assert [row["epoch"] for row in run.read_rows()] == list(range(1, 31))


def test_a_strategy_of_one_replica_is_one_process(digits: Splits, mlp: Any) -> None:
    settings = bp.Settings(epochs=1)
    first, second = mlp(), mlp()
    bp.fit(first, digits, settings=settings, distributor=tf.distribute.MirroredStrategy(["CPU:0"]), progress=False)
    bp.fit(second, digits, settings=settings, progress=False)
    for ours, theirs in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


SEVERAL = """
import numpy as np, tfp_bprune as bp
from tfp_bprune._keras import keras, tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
x, y = np.random.default_rng(0).normal(size=(40, 5)).astype("float32"), np.arange(40) % 3
for units in (4, 7):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = bp.bayesianize(keras.Sequential([keras.Input([5]), keras.layers.Dense(units), keras.layers.Dense(3)]))
    bp.fit(model, x, y, epochs=1, distributor=strategy, progress=False)
print("trained", bp.prune(model, sparsity=0.5)[1].pruned)
"""


def test_networks_made_in_scopes_train_one_after_the_other_in_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", SEVERAL], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("trained 28")


def test_a_strategy_that_fit_was_not_given_is_refused(digits: Splits, mlp: Any) -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = mlp()
        with pytest.raises(TrainingError, match="fit was called in the scope of a MirroredStrategy: call it outside"):
            bp.fit(model, digits, epochs=1, progress=False)
    with pytest.raises(
        TrainingError, match="was made in the scope of a MirroredStrategy: expected distributor=strategy"
    ):
        bp.fit(model, digits, epochs=1, progress=False)
    bp.fit(model, digits, epochs=1, progress=False, distributor=strategy)


@pytest.mark.parametrize(
    "config",
    [None, "no", "[]", '{"cluster": {"worker": ["a:1"]}}', '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}']
    + [json.dumps({"cluster": {"worker": w}, "task": {"type": "worker", "index": i}}) for w, i in (([], 0), (["a:1"], 1))],
)  # fmt: skip
def test_workers_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch, config: str | None) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(TrainingError, match="need to know each other: expected TF_CONFIG="):
        Strategy("multiworker")


def test_what_cannot_be_combined_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match=r"distributor is a OneDeviceStrategy.*: expected a MirroredStrategy"):
        Strategy(tf.distribute.OneDeviceStrategy("CPU:0"))
    with pytest.raises(TrainingError, match="expected 'mirrored' or 'multiworker'"):
        Strategy("ring")
    with pytest.raises(TrainingError, match="compression 'fp16' is Horovod's"):
        detect("fp16", "mirrored")
    monkeypatch.setenv("HOROVOD_RANK", "0")
    with pytest.raises(TrainingError, match="horovodrun started this process"):
        detect(distribution="mirrored")


def test_the_chief_is_the_first_worker() -> None:
    from tfp_bprune.training.strategy import _rank_in_cluster

    def resolver(task: str, index: int, *jobs: str) -> Any:
        return SimpleNamespace(task_type=task, task_id=index, cluster_spec=lambda: SimpleNamespace(jobs=jobs))

    assert _rank_in_cluster(resolver("chief", 0, "chief", "worker")) == 0
    assert _rank_in_cluster(resolver("worker", 0, "chief", "worker")) == 1
    assert _rank_in_cluster(resolver("worker", 1, "worker")) == 1
