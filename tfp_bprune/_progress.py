"""Progress of whatever takes long, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS, _OFTEN = 10.0, 0.5  # between two lines in a log, between two changes of the line in a notebook
_NARROW, _WIDE = 80, 120  # terminals below the first have no room for a bar, below the second for a short one
PROGRESS = {"tfp_bprune": {"progress": True}}  # metadata of what is shown in notebooks, so that it can be told apart
_quiet = False


@contextlib.contextmanager
def quietly(on: bool = True) -> Iterator[None]:
    """Within it nothing but errors and results that were asked for is printed."""
    global _quiet
    before, _quiet = _quiet, on or _quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether nothing but errors is to be printed."""
    return _quiet


class Bar:
    """What is at work, how much of it is done, since when, and a note.

    A context manager: the bar is drawn within, and left as it is at the end. Where standard error is no terminal, as in a pipe
    or a log, and with `NO_COLOR`, it is a line every ten seconds and one at the end; in a notebook one line that changes.

    Args:
      what: is at work.
      total: how many steps there are; None where nobody knows.
      done: how many were done before.
      remaining: with the time that is left, by the pace so far.
    """

    def __init__(self, what: str, total: int | None, done: int = 0, remaining: bool = False) -> None:
        console = Console(stderr=True)
        drawn = console.is_terminal and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")
        self._log = None if drawn or _quiet else _Log(what, total, done)
        self._progress = Progress(*_columns(console.width, remaining), console=console, disable=not drawn or _quiet)
        self._task = self._progress.add_task(what, total=total, completed=done, note="")
        self._room = console.width - _taken(what, total, console.width, remaining)

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
        if self._log is not None:
            self._log.to(done, note)
        noted = {} if note is None else {"note": _cut(note, self._room)}
        self._progress.update(self._task, completed=done, **noted)  # type: ignore[arg-type]


class _Log:
    """Progress as lines of text: one after each ten seconds of work, and one when all is done; or, in a notebook, one line."""

    def __init__(self, what: str, total: int | None, done: int) -> None:
        self._what, self._total, self._done, self._note = what, total, done, ""
        self._begun = self._said = time.monotonic()
        line = _line_of_a_notebook()
        self._say, self._every = (line, _OFTEN) if line else (_to_standard_error, _SECONDS)

    def to(self, done: int | None, note: str | None) -> None:
        """Notes how far the work is, and says so where it is time to."""
        moved = done is not None and done > self._done
        self._done, self._note = done if done is not None else self._done, note if note is not None else self._note
        now = time.monotonic()
        if now - self._said >= self._every or (moved and self._total is not None and self._done >= self._total):
            self._said, seconds = now, round(now - self._begun)
            of_all = "" if self._total is None else f"/{self._total}"
            parts = [f"{self._what} {self._done}{of_all}", f"{seconds // 60}:{seconds % 60:02} min", self._note]
            self._say("  ".join(part for part in parts if part))


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _line_of_a_notebook() -> Callable[[str], None] | None:
    """Shows a line below the cell in the place of the one before; None outside of notebooks."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return None
    shown: list[Any] = []

    def show(line: str) -> None:
        content = {"text/plain": line}
        if shown:
            shown[0].update(content, raw=True, metadata=PROGRESS)
        else:
            shown.append(display(content, raw=True, metadata=PROGRESS, display_id=True))

    return show


def _columns(width: int, remaining: bool) -> list[Any]:
    """What matters first: on a narrow terminal the bar goes, then the end of the note."""
    bar = [] if width < _NARROW else [BarColumn(20 if width < _WIDE else 40)]
    times = [TimeElapsedColumn(), *[TimeRemainingColumn()] * remaining]
    note = TextColumn("{task.fields[note]}", markup=False)
    return [TextColumn("{task.description}", markup=False), *bar, MofNCompleteColumn(), *times, note]


def _taken(what: str, total: int | None, width: int, remaining: bool) -> int:
    """Characters that all but the note take, a space after each."""
    bar = 0 if width < _NARROW else 21 if width < _WIDE else 41
    return len(what) + 1 + bar + 2 * len(str(total or 10**6)) + 2 + 8 * (1 + remaining)


def _cut(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: max(0, room - 1)]}…"
