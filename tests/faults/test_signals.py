"""SIGINT and SIGTERM at every stage: the exit code, the one line, what goes on, and nothing that is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Process, command
from tests.faults.jobs import JOBS, assert_nothing_aside, assert_whole, quick
from tfp_bprune.files.runs import Run

CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
NOTHING = "nothing was written, run it again"
EPOCH, TRIAL = "continue with --resume from the last finished epoch", "rerun the command to resume after the last trial"
STUDY = "rerun the command to resume after the last finished network"
# By stage: the job, a function that is called there and how often it was before, and how it goes on.
STAGES: dict[str, tuple[str, str, int, str]] = {
    "setting up": ("train", "tfp_bprune.cli.train.request_of", 0, NOTHING),
    "loading data": ("train", "tfp_bprune.data.splits.load", 0, NOTHING),
    "the first epoch": ("train", "tfp_bprune.training.callbacks.KLSchedule.on_epoch_begin", 0, "no epoch was finished, begin again with --resume"),
    "a later epoch": ("train", "tfp_bprune.training.callbacks.KLSchedule.on_epoch_begin", 2, EPOCH),
    "a checkpoint": ("train", "tfp_bprune.training.callbacks.checkpoint", 1, EPOCH),
    "a commit": ("train", "tfp_bprune.files.runs.write_below", 4, EPOCH),
    "the picture of a training": ("train", "tfp_bprune.reports.history_figure", 0, EPOCH),
    "reading a run": ("prune", "tfp_bprune.storage.load_model", 0, NOTHING),
    "pruning": ("prune", "tfp_bprune.pruning.prune", 0, NOTHING),
    "the report of a pruning": ("prune", "tfp_bprune.cli.prune.emit", 0, "OUT is whole"),
    "exporting": ("export", "tfp_bprune.exports.making.Making.write", 0, NOTHING),
    "scoring an export": ("export", "tfp_bprune.evaluation.fresh._run", 0, NOTHING),
    "the report of an export": ("export", "tfp_bprune.cli.export.emit", 0, "OUT is whole"),
    "sweeping": ("sweep", "tfp_bprune.evaluation.sweep.prune", 0, NOTHING),
    "measuring a sweep": ("sweep", "tfp_bprune.evaluation.sweep.reload", 0, NOTHING),
    "searching": ("search", "tfp_bprune.searching.session.Session.trial", 3, TRIAL),
    "before the first trial": ("search", "tfp_bprune.searching.session.Session.trial", 0, NOTHING),
    "exporting what was found": ("search", "tfp_bprune.searching.results.export", 1, TRIAL),
    "tuning": ("tune", "tfp_bprune.training.callbacks.KLSchedule.on_epoch_begin", 1, TRIAL),
    "a network of a study": ("study", "tfp_bprune.studies.networks.Times.on_epoch_end", 0, STUDY),
    "measuring a network": ("study", "tfp_bprune.studies.worker.trained", 0, STUDY),
}  # fmt: skip


SELDOM = ("the first epoch", "a later epoch", "the picture of a training", "reading a run", "exporting", "measuring a sweep",
          "exporting what was found", "measuring a network")  # fmt: skip


@pytest.mark.parametrize("stage", quick(STAGES, *(stage for stage in STAGES if stage not in SELDOM)))
def test_a_signal_at_every_stage(stage: str, tiny_run: Path, tmp_path: Path) -> None:
    number = list(CODES)[list(STAGES).index(stage) % 2]
    (temporary := tmp_path / "temporary").mkdir()
    (name, function, calls, then), place = STAGES[stage], tmp_path / "place"
    words = JOBS[name].at(tiny_run, place)
    first = f"from tests.faults import points; points.signalled_in({function!r}, {int(number)}, {calls})"
    code, _, said = command(*words, first=first, temporary=temporary)
    expected, how = CODES[number]
    lines = [line for line in said.splitlines() if line.startswith("tfp-bprune ")]
    assert (code, lines) == (
        expected,
        [f"tfp-bprune {name}: {how}; {then.replace('OUT', str(place / 'out'))}"],
    ), said
    assert "Traceback" not in said
    assert_whole(place)
    assert_nothing_aside(place, temporary)
    if name == "train" and then == EPOCH:
        run = Run.open(place / "out")
        assert [row["epoch"] for row in run.read_rows()] == list(range(1, run.manifest["epoch"] + 1))


def test_a_run_of_before_that_is_not_to_go_on_is_not_said_to(tiny_run: Path, tmp_path: Path) -> None:
    first = (
        f"from tests.faults import points; points.signalled_in('tfp_bprune.data.splits.load', {int(signal.SIGTERM)})"
    )
    words = [word for word in JOBS["train"].words(tiny_run, tiny_run) if word != "--resume"]
    assert command(*words, first=first) == (143, "", f"tfp-bprune train: terminated; {NOTHING}\n")


_HANGS = """
import signal, time
from tfp_bprune.data import splits
def load(*_, **__):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        print("hangs", flush=True)
        time.sleep(60)
splits.load = load
"""


def test_a_later_signal_ends_at_once_and_one_right_after_the_first_is_the_same(tmp_path: Path) -> None:
    with Process(["train", "--out", tmp_path / "run"], first=_HANGS) as process:
        while process.printed != "hangs\n":
            time.sleep(0.02)
        process.kill(signal.SIGTERM)
        time.sleep(0.3)
        assert process.said == ""
        time.sleep(1)
        process.kill(signal.SIGTERM)
        assert process.wait() == (130, "hangs\n", f"tfp-bprune train: interrupted; {NOTHING}\n")


_LOST = """
import os, signal
from tfp_bprune.data import splits
def load(*_, **__):
    try:
        signal.raise_signal(signal.SIGTERM)
    except BaseException as lost:  # as where a library is imported
        raise ImportError("initialization failed") from lost
splits.load = load
"""


def test_a_signal_that_a_library_makes_another_error_of_is_said_to_be_one(tmp_path: Path) -> None:
    ended = command("train", "--out", tmp_path / "run", first=_LOST)
    assert ended == (143, "", f"tfp-bprune train: terminated; {NOTHING}\n")


_SHOWN = {
    "as native code shows it": "sys.excepthook(*sys.exc_info())",
    "in a callback": "ctypes.CFUNCTYPE(None)(lambda: 1 / 0)()",
    "as an object goes": "type('Gone', (), {'__del__': lambda self: 1 / 0})()",
}


@pytest.mark.parametrize("how", _SHOWN)
def test_what_a_library_shows_of_a_signal_is_not_seen(how: str, tmp_path: Path) -> None:
    first = f"""
import ctypes, signal, sys
from tfp_bprune.data import splits
def load(*_, **__):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as lost:
        {_SHOWN[how]}
        raise SystemError("returned a result with an exception set") from lost
splits.load = load
"""
    ended = command("train", "--out", tmp_path / "run", first=first)
    assert ended == (130, "", f"tfp-bprune train: interrupted; {NOTHING}\n")


def test_signals_that_a_process_is_to_ignore_are_ignored(tiny_run: Path) -> None:
    first = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"from tests.faults import points; points.signalled_in('tfp_bprune.files.runs.Run.verify', {int(signal.SIGINT)})"
    )
    code, _, said = command("inspect", tiny_run, first=first)
    assert (code, said) == (0, "")


def started(words: list[Any]) -> subprocess.Popen[str]:
    """A real process, in a group of its own, that heeds SIGINT whatever this one does."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from tfp_bprune.cli.main import main; sys.exit(main())"
    )
    command_line = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.Popen(command_line, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.parametrize("number", CODES)
def test_a_signal_while_tensorflow_is_imported(number: signal.Signals, tmp_path: Path) -> None:
    process = started(["train", "--out", tmp_path / "run"])
    while f"{'tensorflow'}/" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    code, how = CODES[number]
    assert (process.returncode, said) == (code, f"tfp-bprune train: {how}; {NOTHING}\n")
    assert not (tmp_path / "run").exists()


def group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*JOBS, "demo"])
def test_signals_at_any_moment(name: str, tiny_run: Path, tmp_path: Path) -> None:
    chance = random.Random(name)
    for i in range(6):
        place, number = tmp_path / str(i), list(CODES)[i % 2]
        words = ["demo", "--out", place / "out"] if name == "demo" else JOBS[name].at(tiny_run, place)
        if name == "study":
            words = [1 if word == 0 else word for word in words]  # its networks in processes of their own
        process = started(words)
        time.sleep(chance.uniform(0.3, 20))
        sends = os.killpg if i % 3 == 0 else os.kill  # as the keyboard does, and as a scheduler
        if process.poll() is None:
            sends(process.pid, number)
        _, said = process.communicate(timeout=120)
        code, how = CODES[number]
        assert "Traceback" not in said
        if process.returncode != 0:
            assert process.returncode == code, said
            assert said.splitlines()[-1].startswith(f"tfp-bprune {name}: {how}; ")
        time.sleep(0.5)
        assert group(process.pid) == []
        if place.exists():
            assert_whole(place)
