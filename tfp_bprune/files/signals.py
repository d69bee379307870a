"""Signals that wait until what is being written is whole."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

_ENDING: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Has SIGINT and SIGTERM wait, where this process does more than to ignore them or to end at once."""
    came: list[int] = []

    def wait(number: int, _: Any) -> None:
        came.append(number)

    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _ENDING}
            for number in (number for number, handler in handlers.items() if callable(handler)):
                before[number] = handlers[number]
                signal.signal(number, wait)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            os.kill(os.getpid(), number)
