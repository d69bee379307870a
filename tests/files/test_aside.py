"""What killed processes left aside goes with the next write, what living ones write stays, and no run is half of two."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tfp_bprune.files import aside, runs
from tfp_bprune.files.aside import beside, put_in_place, remove_leftovers, scratch
from tfp_bprune.files.runs import METRICS, Run, rows_to_bytes, write_atomically
from tfp_bprune.trials.log import TrialLog
from tfp_bprune.types import RunError

DEAD, LIVING = ".partial-0123456789abcdef", ".partial-fedcba9876543210"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """As another process has it that writes there: the lock is of what was opened, not of who opened it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def test_a_write_removes_what_killed_ones_left_beside_it_and_nothing_else(tmp_path: Path) -> None:
    for name in (DEAD, LIVING, ".partial-notes", ".partial-0123456789abcdef.txt"):
        (tmp_path / name).write_text("x")
    with locked(tmp_path / LIVING):
        write_atomically(tmp_path / "file", b"x")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == [LIVING, "file"]  # in a folder that is ours alone all go that are so called
    write_atomically(tmp_path / "file", b"y")
    assert names(tmp_path) == ["file"]


def test_what_is_written_is_locked_until_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, seen = os.replace, []

    def late(*arguments: Any, **options: Any) -> None:
        remove_leftovers(tmp_path)
        seen.extend(names(tmp_path))
        replace(*arguments, **options)

    monkeypatch.setattr(os, "replace", late)
    write_atomically(tmp_path / "file", b"x")
    assert len(seen) == 1
    assert (tmp_path / "file").read_bytes() == b"x"


def test_where_there_are_no_locks_files_are_written_and_nothing_is_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / DEAD).write_text("x")
    (tmp_path / ".partial-export-dead").mkdir()
    monkeypatch.setattr(fcntl, "flock", none)
    write_atomically(tmp_path / "file", b"x")
    with beside(tmp_path / "export") as folder:
        put_in_place(folder, tmp_path / "export")
    assert names(tmp_path) == [DEAD, ".partial-export-dead", "export", "file"]


def test_a_leftover_that_is_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / DEAD).symlink_to(tmp_path / "victim")
    os.mkfifo(tmp_path / LIVING)
    write_atomically(tmp_path / "file", b"x")
    assert names(tmp_path) == ["file", "victim"]
    assert (tmp_path / "victim").read_text() == "mine"


def test_exports_that_another_process_writes_into_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "exports" / "deep" / ".partial-export-living").mkdir(parents=True)
    told: list[int] = []
    with beside(tmp_path / "exports") as fresh:
        busy = pytest.raises(RunError, match="exports is being written by another process: wait for it")
        with locked(tmp_path / "exports" / "deep" / ".partial-export-living"), busy:
            put_in_place(fresh, tmp_path / "exports", lambda: told.append(1))
        assert (tmp_path / "exports" / "deep").exists()
        assert told == []
        put_in_place(fresh, tmp_path / "exports", lambda: told.append(1))
    assert told == [1]
    assert names(tmp_path) == ["exports"]
    assert names(tmp_path / "exports") == []


def test_exports_that_cannot_be_replaced_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exports" / "earlier").mkdir(parents=True)
    rename = Path.rename

    def stopped(path: Path, target: Path) -> None:
        if target == tmp_path / "exports" and "old" not in path.name:
            raise KeyboardInterrupt
        rename(path, target)

    with monkeypatch.context() as patched, beside(tmp_path / "exports") as fresh:
        patched.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            put_in_place(fresh, tmp_path / "exports")
    assert names(tmp_path) == ["exports"]
    assert names(tmp_path / "exports") == ["earlier"]


def test_private_folders_go_also_where_their_process_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "tfp-bprune-dead").mkdir()
    (tmp_path / "tfp-bprune-living").mkdir()
    with locked(tmp_path / "tfp-bprune-living"), scratch() as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o77 == 0
        with scratch() as other:
            assert names(tmp_path) == sorted([folder.name, other.name, "tfp-bprune-living"])
    assert names(tmp_path) == ["tfp-bprune-living"]
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with scratch():  # somebody else's are not ours to remove
        assert "tfp-bprune-living" in names(tmp_path)


def test_libraries_write_into_a_private_folder_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with aside.own_temporaries():
        tempfile.mkdtemp()
        assert [p.name.startswith("tfp-bprune-") for p in tmp_path.iterdir()] == [True]
    assert (names(tmp_path), tempfile.tempdir) == ([], str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with aside.own_temporaries():  # a command that needs none works without
        assert tempfile.tempdir == str(tmp_path / "nowhere")


def test_a_folder_that_is_taken_for_a_leftover_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, made = tempfile.mkdtemp, []

    def taken(**options: Any) -> str:
        made.append(make(**options))
        if len(made) < 3:
            remove_leftovers(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", taken)
    with beside(tmp_path / "export") as folder:
        assert (len(made), str(folder)) == (3, made[-1])
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a checkpoint and a row."""
    made = Run.create(tmp_path / "run")
    with made.begun():
        made.commit({"weights/epoch-00001.safetensors": b"1", METRICS: rows_to_bytes([{"epoch": 1, "seconds": 1}])})
    return made


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, act: Any) -> bool:
    """Does something that a kill ends before its write number `step`; whether it came so far."""
    write, left = runs.write_below, iter(range(step))

    def until(*arguments: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_below", until)
        patched.setattr(runs, "write_json", lambda path, value, seal: until(path.parent, path.name, runs.sealed(value)))
        with suppress(KeyboardInterrupt):
            act()
            return False
    return True


@pytest.mark.parametrize("step", range(5))
def test_a_file_that_changes_is_never_other_than_the_manifest_says(
    run: Run, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An epoch that is trained again after a kill takes another time: its row is another one.
    again = {METRICS: rows_to_bytes([{"epoch": 1, "seconds": 2}, {"epoch": 2, "seconds": 2}]), "other": b"x"}
    assert killed_at(step, monkeypatch, lambda: run.commit(again, seed=3)) == (step < 4)
    run.verify()
    assert [row["seconds"] for row in run.read_rows()] in ([1], [], [2, 2])
    with run.locked():
        run.commit(again)
    assert [row["seconds"] for row in run.read_rows()] == [2, 2]


def test_rows_that_are_added_cost_no_further_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    more = {METRICS: rows_to_bytes([{"epoch": 1, "seconds": 1}, {"epoch": 2, "seconds": 1}])}
    assert not killed_at(2, monkeypatch, lambda: run.commit(more))


def test_checkpoints_that_nothing_names_go_with_the_next_write_and_files_of_others_stay(run: Run) -> None:
    weights = run.path / "weights"
    for name in ("epoch-00000.safetensors", "epoch-00001-end.safetensors", "epoch-00001.json", "model.safetensors"):
        (weights / name).write_bytes(b"left")
    for name in ("notes.txt", "epoch-1.safetensors", "my-model.safetensors"):
        (weights / name).write_bytes(b"mine")
    with run.locked():
        pass
    assert names(weights) == ["epoch-00001.safetensors", "epoch-1.safetensors", "my-model.safetensors", "notes.txt"]


def test_weights_in_a_folder_that_holds_no_run_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"mine")
    with Run(tmp_path).locked():
        pass
    assert names(tmp_path / "weights") == ["model.safetensors"]


def test_of_two_that_begin_a_run_one_is_refused(tmp_path: Path) -> None:
    first, second = Run.create(tmp_path / "run"), Run.create(tmp_path / "run")
    with first.begun():
        first.commit({"config.json": b"1"})
    with pytest.raises(RunError, match="already holds a run"), second.begun():
        second.commit({"config.json": b"2"})
    assert first.read("config.json") == b"1"


def test_a_run_that_fails_before_its_first_manifest_leaves_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise RunError("No space left on device")

    monkeypatch.setattr(runs, "write_json", full)
    with pytest.raises(RunError, match="No space"), Run.create(tmp_path / "run").begun() as run:
        run.commit({"config.json": b"{}", "weights/model.safetensors": b"x"})
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".lock"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_a_commit_is_whole(run: Run, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(Exception):
        pass

    def end(*_: Any) -> None:
        raise EndedError

    write, before = runs.write_below, signal.signal(number, end)

    def interrupted(*arguments: Any) -> None:
        signal.raise_signal(number)
        write(*arguments)

    try:
        monkeypatch.setattr(runs, "write_below", interrupted)
        with pytest.raises(EndedError):
            run.commit({"a": b"1", "b": b"2"}, epoch=2)
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)
    assert (run.read("a"), run.read("b"), run.manifest["epoch"]) == (b"1", b"2", 2)


def test_a_trial_that_finds_the_disk_full_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append({"trial": 0})
    before = log.path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left on device"):
            log.append({"trial": 1})
    assert log.path.read_bytes() == before
    log.append({"trial": 1})
    assert [row["trial"] for row in TrialLog(log.path).rows] == [0, 1]
