"""SIGINT and SIGTERM: what a command does ends, what it was writing is cleared away, and one line says how it goes on."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfp_bprune.types import BpruneError

PROGRAM = "tfp-bprune"
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_PATIENCE = 1.0  # seconds; who ends a group of processes may send a signal twice
_SIGNALLED = 128
_AGAIN, _NOTHING = "run it again", "nothing was written, run it again"


class Terminated(BaseException):
    """SIGTERM, as SIGINT is KeyboardInterrupt."""


class Signals:
    """A context manager in which SIGINT and SIGTERM raise, and a later one ends this process at once.

    Libraries may lose what is raised or make another error of it, while they are imported above all: `number` keeps what came.
    What they print of it is not shown: native code that is called back from shows an error and goes on with another.
    A signal that this process was started to ignore is ignored, as are all in other threads than the main one.

    Args:
      ends: this process does, right afterwards: no signal is to disturb that.

    Attributes:
      number: of the signal that came; None before.
    """

    def __init__(self, ends: bool) -> None:
        self.number: int | None = None
        self._ends = ends
        self._before: dict[int, Any] = {}
        self._arguments: Any = None
        self._found: set[Any] = set()
        self._since = 0.0
        self._hooks: tuple[Any, Any] = (None, None)

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _WORDS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_IGN if self._ends else before)
        if self.number is not None:
            sys.excepthook, sys.unraisablehook = self._hooks

    def about(self, arguments: Any) -> None:
        """Notes what the command is to do, and what is there before it begins."""
        self._found, self._arguments = set(_there(arguments)), arguments

    def said(self) -> int:
        """Says, in a line on standard error, what came and how it goes on; the exit code."""
        number = signal.SIGINT if self.number is None else self.number
        command = f" {self._arguments.command}" if self._arguments else ""
        then = _how_it_goes_on(self._arguments, self._found)
        print(f"{PROGRAM}{command}: {_WORDS[signal.Signals(number)]}; {then}", file=sys.stderr, flush=True)
        return _SIGNALLED + number

    def _came(self, number: int, _: Any) -> None:
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            self._hooks = sys.excepthook, sys.unraisablehook
            sys.excepthook, sys.unraisablehook = (lambda *_: None), (lambda *_: None)
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        if time.monotonic() > self._since + _PATIENCE:
            os._exit(self.said())


def _there(arguments: Any) -> Iterator[Any]:
    """The files by which one sees how far a command got, and whether they change."""
    for path in _MARKS.get(arguments.command, lambda _: ())(arguments):
        try:
            found = path.stat()
            yield path, found.st_ino, found.st_mtime_ns
        except OSError:  # it is not there
            continue


def _manifest(arguments: Any) -> list[Path]:
    return [arguments.out / "manifest.json"]


def _of_search(arguments: Any) -> list[Path]:
    if arguments.export is not None:
        return [arguments.to / "manifest.json"] if arguments.to else []
    return [] if arguments.sensitivity else [(arguments.out or arguments.run / "search") / "trials.jsonl"]


_MARKS: dict[str, Callable[[Any], Any]] = {
    "demo": _manifest,
    "train": _manifest,
    "prune": _manifest,
    "export": _manifest,
    "sweep": lambda arguments: [arguments.run / "manifest.json"],
    "search": _of_search,
    "tune": lambda arguments: [arguments.out / arguments.method / "oracle.json"],
    "study": lambda arguments: sorted((arguments.networks or arguments.out / "networks").glob("*/manifest.json")),
}


def _how_it_goes_on(arguments: Any, before: set[Any]) -> str:
    from tfp_bprune.cli.common import line_of

    try:
        if arguments is not None and set(_there(arguments)) != before:
            return line_of(_THEN[arguments.command](arguments))
    except (BpruneError, OSError):  # what is there cannot be read
        return _AGAIN
    return _NOTHING


def _of_training(arguments: Any) -> str:
    from tfp_bprune.files.runs import Run

    if Run(arguments.out).manifest.get("epoch"):
        return "continue with --resume from the last finished epoch"
    return "no epoch was finished, begin again with --resume"


def _whole(path: Path) -> str:
    return f"{path} is whole"


_THEN: dict[str, Callable[[Any], str]] = {
    "demo": lambda _: _AGAIN,
    "train": _of_training,
    "prune": lambda arguments: _whole(arguments.out),
    "export": lambda arguments: _whole(arguments.out),
    "sweep": lambda _: _AGAIN,
    "search": lambda arguments: (
        _whole(arguments.to) if arguments.to else "rerun the command to resume after the last trial"
    ),
    "tune": lambda _: "rerun the command to resume after the last trial",
    "study": lambda _: "rerun the command to resume after the last finished network",
}
