"""What goes wrong in a process, where it is told to: kills, full disks, permissions, signals; for `commands.Process(first=...)`."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import resource
import signal
import sys
from typing import Any

_WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        path, _, flags = arguments
        return isinstance(flags, int) and bool(flags & _FLAGS) and path != os.devnull
    return event in _WRITES


def count_into(path: str) -> None:
    """Adds a line to a file for each thing done to files."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        if _writes(event, arguments):
            os.write(handle, f"{event} {arguments!r}\n".encode())

    sys.addaudithook(seen)


def die_at(number: int) -> None:
    """Kills this process before thing `number`, from 0 on."""
    left = [number]

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        if _writes(event, arguments):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    sys.addaudithook(seen)


def full_from(number: int) -> None:
    """Has the disk be full from thing `number` on: nothing new can be made, what is there can be renamed and removed."""
    left = [number]

    def seen(event: str, arguments: tuple[Any, ...]) -> None:
        if _writes(event, arguments):
            left[0] -= 1
            makes = event == "os.mkdir" or (event == "open" and bool(arguments[2] & os.O_CREAT))
            if left[0] < 0 and makes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(seen)


def files_of(most: int) -> None:
    """Has no file grow beyond so many bytes, whoever writes it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def without_output() -> None:
    """Has standard output be on a full disk."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def as_any_user() -> None:
    """Has permissions count for this process and its children, also where it is the administrator's."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, sets) == 0
    for place in (0, 1, 2):  # of the first 32 capabilities: effective, permitted, inherited
        sets[place] &= ~0b1111  # those that override who owns and may read and write a file
    assert libc.capset(header, sets) == 0


def signalled_in(name: str, number: int, call: int = 0) -> None:
    """Has the process get a signal where it calls a function of a module, or of a class there, the so-manieth time."""
    owner, _, attribute = name.rpartition(".")
    while True:
        try:
            holder = importlib.import_module(owner)
            break
        except ModuleNotFoundError:
            owner, _, rest = owner.rpartition(".")
            attribute = f"{rest}.{attribute}"
    *classes, attribute = attribute.split(".")
    for one in classes:
        holder = getattr(holder, one)
    function, left = getattr(holder, attribute), [call]

    def signalled(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), number)
        left[0] -= 1
        return function(*arguments, **options)

    setattr(holder, attribute, signalled)
