"""The one bar for whatever takes long: on standard error, and on a terminal alone."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """What is at work, how much of it is done, since when, and a note.

    A context manager: the bar is drawn within, and left as it is at the end.

    Args:
      what: is at work.
      total: how many steps there are; None where nobody knows.
      done: how many were done before.
      remaining: with the time that is left, by the pace so far.
    """

    def __init__(self, what: str, total: int | None, done: int = 0, remaining: bool = False) -> None:
        console = Console(stderr=True)
        columns: list[Any] = [TextColumn("{task.description}", markup=False)]
        columns += [BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TimeRemainingColumn()] * remaining
        columns += [TextColumn("{task.fields[note]}", markup=False)]
        # Away from a terminal a bar says nothing and would stand before the one line of an error.
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Draws the bar from now on."""
        self._progress.start()

    def stop(self) -> None:
        """Takes the bar off the terminal's live area, and leaves it as it is."""
        self._progress.stop()

    def to(self, done: int | None = None, note: str | None = None) -> None:
        """Moves the bar to so many steps, with another note; what is not given stays."""
        noted = {} if note is None else {"note": note}
        self._progress.update(self._task, completed=done, **noted)  # type: ignore[arg-type]
