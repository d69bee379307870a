"""kill -9 at any moment: nothing partial at a final name, nothing aside after the next run, which finds what an undisturbed one does."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Process, command
from tests.faults.jobs import JOBS, QUICK, Job, assert_nothing_aside, assert_whole, quick

FAST, SLOW = 2, 20


@dataclass
class Undisturbed:
    """What a job that nobody ends finds, and how long it takes."""

    job: Job
    run: Path
    result: Any
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], Undisturbed]:
    """Of a job; run once."""
    known: dict[Job, Undisturbed] = {}

    def of(job: Job) -> Undisturbed:
        if job not in known:
            place, begin = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
            code, _, said = command(*job.at(tiny_run, place), kind=job.kind)
            assert code == 0, said
            known[job] = Undisturbed(job, tiny_run, job.result(place), time.monotonic() - begin)
        return known[job]

    return of


def ended_well(job: Job, place: Path, temporary: Path, words: list[Any]) -> Any:
    """What the job finds when it is run to its end; one that was done already says so."""
    code, _, said = command(*words, temporary=temporary, kind=job.kind)
    if code == 2:
        assert not job.goes_on
        assert "already" in said
        assert said.count("\n") == 1
    else:
        assert code == 0, said
    assert_whole(place)
    assert_nothing_aside(place, temporary)
    return job.result(place)


def killed(known: Undisturbed, kills: int, chance: random.Random, tmp_path: Path) -> int:
    """Kills a job so many times, each followed by the next; how many ended before their kill came."""
    early, landed, round_ = 0, 0, 0
    (temporary := tmp_path / "temporary").mkdir()
    place = tmp_path / "place-0"
    while landed < kills:
        words = known.job.at(known.run, place)
        with Process(words, temporary=temporary, kind=known.job.kind) as process:
            time.sleep(chance.uniform(0, known.seconds))
            process.kill()
            code, _, said = process.wait()
        assert_whole(place)
        landed, early = landed + (code == -signal.SIGKILL), early + (code != -signal.SIGKILL)
        assert code in (0, 2, -signal.SIGKILL), said
        if code != -signal.SIGKILL:  # it is done: another one begins, elsewhere
            assert ended_well(known.job, place, temporary, words) == known.result
            round_ += 1
            place = tmp_path / f"place-{round_}"
    if place.exists():
        assert ended_well(known.job, place, temporary, known.job.at(known.run, place)) == known.result
    return early


# A training is killed three times in tests/training/test_resume.py.
@pytest.mark.parametrize("name", quick(QUICK, *(name for name in QUICK if name != "train")))
def test_two_kills_leave_no_trace(name: str, undisturbed: Callable[[Job], Undisturbed], tmp_path: Path) -> None:
    killed(undisturbed(QUICK[name]), FAST, random.Random(name), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", JOBS)
def test_twenty_kills_leave_no_trace(name: str, undisturbed: Callable[[Job], Undisturbed], tmp_path: Path) -> None:
    early = killed(undisturbed(JOBS[name]), SLOW, random.Random(f"{name} again"), tmp_path)
    print(f"{name}: {SLOW} kills landed, {early} came too late, {undisturbed(JOBS[name]).seconds:.1f} s undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", JOBS)
def test_a_kill_before_each_thing_done_to_files_leaves_no_trace(
    name: str, undisturbed: Callable[[Job], Undisturbed], tmp_path: Path
) -> None:
    known = undisturbed(JOBS[name])
    (temporary := tmp_path / "temporary").mkdir()
    counted = tmp_path / "counted"
    code, _, said = command(
        *known.job.at(known.run, tmp_path / "first"),
        first=f"from tests.faults.points import count_into; count_into({str(counted)!r})",
    )
    assert code == 0, said
    points = len(counted.read_text().splitlines())
    for number in range(points):
        place = tmp_path / f"place-{number}"
        words = known.job.at(known.run, place)
        first = f"from tests.faults.points import die_at; die_at({number})"
        code, _, said = command(*words, first=first, temporary=temporary)
        assert code in (-signal.SIGKILL, 0), (number, said)
        assert_whole(place)
        assert ended_well(known.job, place, temporary, words) == known.result, number
        shutil.rmtree(place)
    print(f"{name}: {points} points")
