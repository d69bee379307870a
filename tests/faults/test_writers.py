"""Two writers of every kind in one place: one wins, the other says so in one line, and what is there is whole."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Process
from tests.faults.jobs import JOBS, Job, assert_nothing_aside, assert_whole, quick

_SAYS = ("is being written by another process", "already exists", "already holds a run")


def together(*words: list[Any], temporary: Path) -> list[tuple[int, str, str]]:
    """What becomes of commands that are begun at once."""
    with ExitStack() as stack:
        processes = [stack.enter_context(Process(one, temporary=temporary)) for one in words]
        return [process.wait() for process in processes]


def assert_refused(said: str) -> None:
    """In one line, which says why."""
    lines = [line for line in said.splitlines() if line.startswith("tfp-bprune ")]
    assert len(lines) == 1, said
    assert any(words in lines[0] for words in _SAYS), said
    assert "Traceback" not in said


# The same twice, but for what each is to find: a mixture of both would match neither.
ANOTHER = {"train": ("--epochs", 3), "prune": ("--sparsity", 0.25), "sweep": ("--sparsity", 0.25)}


def changed(name: str, words: list[Any]) -> list[Any]:
    option, value = ANOTHER.get(name, ("", None))
    return [value if option and before == option else word for before, word in zip(["", *words], words, strict=False)]


@pytest.mark.parametrize("name", quick(JOBS, "train", "prune", "export"))
def test_of_two_that_write_the_same_place_one_is_refused(name: str, tiny_run: Path, tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    job, place = JOBS[name], tmp_path / "place"
    words = [word for word in job.at(tiny_run, place) if word != "--resume"]
    ends = together(words, changed(name, words), temporary=temporary)
    codes = sorted(code for code, _, _ in ends)
    if codes != [0, 0] or not (job.goes_on or job.copies) or name == "train":  # one may begin when the other is done
        assert codes == [0, 2], ends
        assert_refused(next(said for code, _, said in ends if code == 2))
    assert_whole(place)
    assert_nothing_aside(place, temporary)
    assert job.result(place)


def test_an_export_beside_a_sweep_of_the_same_run(tiny_run: Path, tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    sweep, place = JOBS["sweep"], tmp_path / "place"
    words = sweep.at(tiny_run, place)
    run = place / "out"
    inside = ["export", run, "--no-score", "--out", run / "exports" / "0.5-mean"]
    outside = ["export", run, "--no-score", "--out", tmp_path / "served"]
    ends = together(words, inside, outside, temporary=temporary)
    assert ends[2][0] == 0, ends[2]
    for code, _, said in ends[:2]:
        assert code in (0, 2), said
        if code == 2:
            assert_refused(said)
    assert_whole(place)
    assert_whole(tmp_path / "served")
    assert_nothing_aside(place, temporary)
    assert 0 in [code for code, _, _ in ends[:2]]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", JOBS)
def test_five_that_write_the_same_place(name: str, tiny_run: Path, tmp_path: Path) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    job: Job = JOBS[name]
    for round_ in range(4):
        place = tmp_path / f"place-{round_}"
        words = job.at(tiny_run, place)
        ends = together(*[words] * 5, temporary=temporary)
        assert 0 in [code for code, _, _ in ends]
        for code, _, said in ends:
            assert code in (0, 2), said
            if code == 2:
                assert_refused(said)
        assert_whole(place)
        assert_nothing_aside(place, temporary)
        assert job.result(place)
