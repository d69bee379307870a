"""How the processes of a study begin; it imports nothing, so that this comes before TensorFlow does."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import tfp_bprune

_PR_SET_PDEATHSIG = 1
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def environment() -> dict[str, str]:
    """This process's environment, in which a child finds the same package and TensorFlow says nothing of itself."""
    package = str(Path(tfp_bprune.__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | _QUIET | {"PYTHONPATH": os.pathsep.join(paths)}


def begin(errors: str) -> None:
    """Makes this process, which was started for one task, end with the study, and say nothing but into the file `errors`.

    Ctrl-C on a terminal reaches it too; it is for the study to end it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    for path, descriptor in ((os.devnull, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.update(_QUIET)


def _end_with_parent() -> None:
    """On Linux; a process that lived on would hold a network that the study, begun again, takes up."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it ended before this was asked for
        os._exit(1)
