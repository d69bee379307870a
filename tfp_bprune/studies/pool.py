"""Many tasks, some at once: each in a fresh process, with a bar and the time that is left."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import tfp_bprune
from tfp_bprune.files.runs import Run
from tfp_bprune.studies.worker import Task, perform
from tfp_bprune.types import BpruneError

_LOOK_EVERY = 0.2  # seconds


@dataclass
class _Running:
    """A task at work in a process of its own; `errors` is where it writes them."""

    task: Task
    process: subprocess.Popen[str]
    errors: IO[str]
    begin: float = field(default_factory=time.monotonic)

    def last_words(self) -> str:
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else f"ended with code {self.process.returncode}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()
        self.errors.close()


class Durations:
    """Seconds that tasks take, by the kind of their network, and what is left by them."""

    def __init__(self) -> None:
        self._known: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Notes a finished task."""
        self._known.setdefault(kind, []).append(seconds)

    def expected(self, kind: str) -> float | None:
        """The median of its kind; of all where none of its kind is done; None where nothing is."""
        pools = self._known.get(kind) or [s for known in self._known.values() for s in known]
        return statistics.median(pools) if pools else None

    def left(self, waiting: Sequence[str], running: Sequence[tuple[str, float]], jobs: int) -> float | None:
        """Seconds until all is done, for kinds that wait and (kind, seconds at work) that run; None if not known."""
        if self.expected("") is None:
            return None
        rest = [max(0.0, (self.expected(kind) or 0.0) - spent) for kind, spent in running]
        ahead = sum(self.expected(kind) or 0.0 for kind in waiting)
        return max([*rest, (sum(rest) + ahead) / max(1, jobs)])


def complete(tasks: Sequence[Task], jobs: int) -> None:
    """Performs all tasks that are not done, `jobs` at a time.

    Args:
      jobs: processes at once; 0 performs the tasks in this process, one after the other.

    Raises:
      BpruneError: a task failed; the others were finished before this is raised.
    """
    waiting = [task for task in {task.result: task for task in tasks}.values() if not task.done]
    durations, failures = _known_durations(tasks), []
    running: list[_Running] = []
    with _bar() as bar, _stopped_at_the_end(running):
        row = bar.add_task("study", total=len(tasks), completed=len(tasks) - len(waiting), left="")
        while waiting or running:
            if jobs == 0:
                failures += _perform_here(waiting.pop(0), durations)
            while waiting and len(running) < jobs:
                running.append(_started(waiting.pop(0)))
            for one in [r for r in running if r.process.poll() is not None]:
                running.remove(one)
                failures += _ended(one, durations)
            at_work = [(r.task.spec.kind, time.monotonic() - r.begin) for r in running]
            left = durations.left([t.spec.kind for t in waiting], at_work, jobs)
            bar.update(row, completed=len(tasks) - len(waiting) - len(running), left=time_left(left))
            time.sleep(_LOOK_EVERY if jobs else 0)
    if failures:
        raise BpruneError(f"{len(failures)} of {len(tasks)} networks failed; the first, {failures[0]}")


@contextlib.contextmanager
def _stopped_at_the_end(running: list[_Running]) -> Iterator[None]:
    """Whatever ends the study, also Ctrl-C, ends the processes that it started."""
    try:
        yield
    finally:
        for one in running:
            one.stop()


def _known_durations(tasks: Sequence[Task]) -> Durations:
    durations = Durations()
    for task in tasks:
        run = Run(task.store / task.spec.key)
        if run.exists and run.manifest.get("seconds"):
            durations.add(task.spec.kind, run.manifest["seconds"])
    return durations


def _perform_here(task: Task, durations: Durations) -> list[str]:
    begin = time.monotonic()
    try:
        perform(task)
    except BpruneError as error:
        return [f"{task.spec.key}: {error}"]
    durations.add(task.spec.kind, time.monotonic() - begin)
    return []


def _started(task: Task) -> _Running:
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by _Running.stop)
    words = [sys.executable, "-m", "tfp_bprune.studies.worker"]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors, text=True, env=environment()
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(json.dumps(task.to_json()))
    return _Running(task, process, errors)


def environment() -> dict[str, str]:
    """This process's environment, in which a child finds the same package and TensorFlow says nothing of itself."""
    package = str(Path(tfp_bprune.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _ended(one: _Running, durations: Durations) -> list[str]:
    failed = one.process.returncode != 0
    words = f"{one.task.spec.key}: {one.last_words()}" if failed else ""
    one.stop()
    if not failed:
        durations.add(one.task.spec.kind, time.monotonic() - one.begin)
    return [words] if failed else []


def _bar() -> Any:
    console = Console(stderr=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    # Away from a terminal a bar says nothing and would stand before the one line of an error.
    return Progress(*columns, TextColumn("{task.fields[left]}"), console=console, disable=not console.is_terminal)


def time_left(seconds: float | None) -> str:
    """Seconds as a person reads them.

    >>> time_left(None), time_left(40), time_left(600), time_left(9000)
    ('', 'less than a minute left', 'about 10 min left', 'about 2.5 h left')
    """
    if seconds is None:
        return ""
    if seconds < 60:
        return "less than a minute left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
