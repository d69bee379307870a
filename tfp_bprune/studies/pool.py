"""Many tasks, some at once: each in a fresh process, with a bar and the time that is left."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from tfp_bprune._progress import Bar
from tfp_bprune._registry import extensions
from tfp_bprune.files.aside import scratch
from tfp_bprune.files.runs import Run
from tfp_bprune.studies.process import begin
from tfp_bprune.studies.worker import Task, alone, perform
from tfp_bprune.types import BpruneError

_LOOK_EVERY = 0.2  # seconds


@dataclass
class _Turn:
    """A task, and when it was begun, if it was."""

    task: Task
    begun: float | None = None

    @property
    def kind(self) -> str:
        return self.task.spec.kind

    @property
    def seconds(self) -> float:
        """At work until now."""
        return 0.0 if self.begun is None else time.monotonic() - self.begun

    def here(self) -> str:
        """Performs the task in this process; what went wrong, in one line."""
        self.begun = time.monotonic()
        try:
            perform(self.task)
        except BpruneError as error:
            return str(error)
        return ""

    def aside(self) -> str:
        """The same in a process of its own, in a pool of its own: one that dies takes no other with it."""
        self.begun, started_anew = time.monotonic(), multiprocessing.get_context("spawn")
        with scratch() as folder:
            (said := folder / "said").touch()
            try:
                with ProcessPoolExecutor(1, started_anew, begin, (str(said),)) as process:
                    # It inherits what this thread blocks: an interrupt must not end it before it knows whose that is.
                    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
                    return process.submit(alone, self.task, extensions()).result()
            except BrokenProcessPool:
                lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
                return lines[-1] if lines else _DIED


_DIED = "its process was ended, or could not begin (a script that calls this needs `if __name__ == '__main__':`)"


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
    turns = [_Turn(task) for task in {task.result: task for task in tasks}.values() if not task.done]
    durations, failures = _known_durations(tasks), []
    looks = _in_turns(turns, jobs)
    with Bar("study", len(tasks), len(tasks) - len(turns)) as bar, contextlib.closing(looks):
        for ended, rest in looks:
            for turn, words in ended:
                failures += [f"{turn.task.spec.key}: {words}"] if words else []
                if not words:
                    durations.add(turn.kind, turn.seconds)
            running = [(turn.kind, turn.seconds) for turn in rest if turn.begun is not None]
            left = durations.left([turn.kind for turn in rest if turn.begun is None], running, jobs)
            bar.to(len(tasks) - len(rest), time_left(left))
    if failures:
        raise BpruneError(f"{len(failures)} of {len(tasks)} networks failed; the first, {failures[0]}")


Ended = tuple[_Turn, str]


def _in_turns(turns: Sequence[_Turn], jobs: int) -> Generator[tuple[list[Ended], list[_Turn]], None, None]:
    """Whenever some have ended, and every now and then: those, each with what went wrong, and the rest."""
    if jobs == 0:
        for number, turn in enumerate(turns, 1):
            yield [(turn, turn.here())], list(turns[number:])
        return
    with ThreadPoolExecutor(jobs) as threads:
        open_ = {threads.submit(turn.aside): turn for turn in turns}
        with _stopped_at_the_end(open_):
            while open_:
                done = wait(open_, _LOOK_EVERY, FIRST_COMPLETED).done
                yield [(open_.pop(future), future.result()) for future in done], list(open_.values())


@contextlib.contextmanager
def _stopped_at_the_end(open_: dict[Future[str], _Turn]) -> Iterator[None]:
    """Whatever ends the study, also Ctrl-C, ends the processes that it started."""
    others = set(multiprocessing.active_children())
    try:
        yield
    finally:
        waiting = {future for future in open_ if not future.cancel()}
        while waiting:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            waiting = wait(waiting, _LOOK_EVERY).not_done


def _known_durations(tasks: Sequence[Task]) -> Durations:
    durations = Durations()
    for task in tasks:
        run = Run(task.store / task.spec.key)
        if run.exists and run.manifest.get("seconds"):
            durations.add(task.spec.kind, run.manifest["seconds"])
    return durations


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
