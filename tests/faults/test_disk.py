"""Disks that are full and folders that cannot be written: one line, exit code 2, nothing partial, nothing aside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command
from tests.faults.jobs import JOBS, assert_whole, quick

_PROGRESS = re.compile(r"\w+ \d+/\d+ .*")
_NOTES = ("scoring it on", "comparing moments", "measuring dense", "the export is not scored", "inputs are random")
Copy = Callable[[Path], Path]


def refused(*words: Any, first: str, temporary: Path, kind: str = "command") -> str:
    """The one line of a command that meets a full disk; notes of what it does, and how far it is, may come before."""
    code, out, said = command(*words, first=f"from tests.faults import points; {first}", temporary=temporary, kind=kind)
    lines = [line for line in said.splitlines() if not line.startswith(_NOTES) and not _PROGRESS.fullmatch(line)]
    assert (code, out if words[0] != "demo" else "") == (2, ""), (code, out, said)
    assert len(lines) == 1, said
    assert lines[0].startswith(f"tfp-bprune {words[0]}: ")
    assert list(temporary.iterdir()) == []
    return lines[0]


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where a command writes what is no result."""
    (folder := tmp_path / "temporary").mkdir()
    return folder


def left(place: Path) -> list[str]:
    """What is there, but for locks."""
    return sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file() and p.name != ".lock")


# How large a file may be: enough to begin, too little to end.
SIZES = {
    "train": 12_000,
    "prune": 2_000,
    "export": 6_000,
    "sweep": 6_000,
    "search": 8_000,
    "tune": 4_000,
    "study": 60_000,
}


@pytest.mark.parametrize("name", quick(SIZES, "prune", "export", "tune"))
def test_a_file_that_finds_no_place(name: str, tiny_run: Path, tmp_path: Path, temporary: Path) -> None:
    job, place = JOBS[name], tmp_path / "place"
    words = job.at(tiny_run, place)
    before = left(place)
    line = refused(*words, first=f"points.files_of({SIZES[name]})", temporary=temporary)
    assert "File too large" in line
    assert_whole(place)
    assert not list(place.rglob(".partial-*"))
    if not job.goes_on:
        assert left(place) == before


@pytest.mark.parametrize("name", quick(JOBS, "train", "prune", "export", "sweep", "search"))
def test_a_disk_that_is_full_from_a_moment_on(name: str, tiny_run: Path, tmp_path: Path, temporary: Path) -> None:
    assert full(name, 6, tiny_run, tmp_path / "place", temporary)


def full(name: str, number: int, run: Path, place: Path, temporary: Path) -> bool:
    """Runs a job on a disk that is full from thing `number` on; whether it met that."""
    job = JOBS[name]
    words = job.at(run, place)
    before = left(place)
    code, _, said = command(
        *words, first=f"from tests.faults import points; points.full_from({number})", temporary=temporary
    )
    lines = [line for line in said.splitlines() if line.startswith(f"tfp-bprune {name}: ")]
    assert code in (0, 2), said
    assert "Traceback" not in said  # where there is no place for its own files TensorFlow says so, and works on
    assert_whole(place)
    assert not list(place.rglob(".partial-*"))
    assert list(temporary.iterdir()) == []
    if code == 2:
        assert len(lines) == 1, said
        assert "No space left on device" in lines[0]
    if code == 2 and not job.goes_on and name != "sweep":
        assert left(place) == before
    return code == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", JOBS)
def test_a_disk_that_is_full_from_any_moment_on(name: str, tiny_run: Path, tmp_path: Path, temporary: Path) -> None:
    number = 0
    while full(name, number, tiny_run, tmp_path / f"place-{number}", temporary):
        number += 1
    print(f"{name}: {number} moments")
    assert number > 3


def test_output_that_finds_no_place(tiny_run: Path, tmp_path: Path, temporary: Path) -> None:
    for words in (["inspect", tiny_run], ["inspect", tiny_run, "--json", "-"]):
        line = refused(*words, first="points.without_output()", temporary=temporary)
        assert line == "tfp-bprune inspect: No space left on device"


OTHERS: dict[str, Callable[[Path, Path], list[Any]]] = {
    "inspect": lambda run, out: ["inspect", run, "--json", out / "x.json"],
    "evaluate": lambda run, out: ["evaluate", run, "--json", out / "x.json"],
    "sensitivity": lambda run, out: ["search", run, "--sensitivity", "--out", out / "x"],
    "costs": lambda run, out: ["export", run, "--calibrate", "--costs", out / "x.json", "--no-score", "--out", out / "x"],
    "demo": lambda run, out: ["demo", "--out", out / "x"],
}  # fmt: skip


@pytest.fixture
def locked_up(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Takes away the right to write a folder and those below."""
    taken: list[Path] = []

    def lock(folder: Path) -> None:
        for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
            path.chmod(0o555)
            taken.append(path)

    yield lock
    for path in taken:
        path.chmod(0o755)


@pytest.mark.parametrize("name", [*JOBS, *OTHERS])
def test_a_folder_that_cannot_be_written(
    name: str, tiny_run: Path, tmp_path: Path, temporary: Path, locked_up: Callable[[Path], None]
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    words = JOBS[name].at(tiny_run, place) if name in JOBS else OTHERS[name](tiny_run, place)
    before = sorted(place.rglob("*"))
    locked_up(place)
    line = refused(*words, first="points.as_any_user()", temporary=temporary)
    assert "Permission denied" in line
    assert str(place) in line
    assert sorted(place.rglob("*")) == before


def test_a_run_in_a_folder_that_cannot_be_written_is_read(
    tiny_run: Path, copied: Copy, tmp_path: Path, temporary: Path, locked_up: Callable[[Path], None]
) -> None:
    run = copied(tiny_run)
    locked_up(run)
    for words in (
        ["inspect", run],
        ["prune", run, "--sparsity", 0.5, "--out", tmp_path / "pruned"],
        ["export", run, "--no-score", "--out", tmp_path / "export"],
    ):
        first = "from tests.faults import points; points.as_any_user()"
        code, _, said = command(*words, first=first, temporary=temporary)
        assert (code, said) == (0, "")
    assert not os.access(run / ".lock", os.X_OK)
