"""How trainings of several workers are made to end: at a batch on all, by a death of one; and what a command said."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.cli.main import main
from tfp_bprune.files.runs import Run
from tfp_bprune.types import Json


class Interrupt(keras.callbacks.Callback):
    """Ends training on all workers at the same batch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Stops at the third epoch."""
        if epoch == 2:
            raise InterruptedError


def die() -> None:
    """Ends this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_third_checkpoint() -> None:
    """From now on this process is killed where the third checkpoint would get its name, its content being written."""
    replace = os.replace

    def killed(source: Any, target: Any, **folders: Any) -> None:
        if str(target).endswith("epoch-00003.safetensors"):
            die()
        replace(source, target, **folders)

    os.replace = killed


def die_after(run: Path) -> None:
    """From now on this process is killed in the middle of an epoch of `run` after the first."""

    def watch() -> None:
        while not (Run(run).exists and Run.open(run).manifest.get("epoch", 0) >= 1):
            time.sleep(0.01)
        die()

    threading.Thread(target=watch, daemon=True).start()


def commanded(*words: object) -> Json:
    """The exit code of a command, and what this rank said on standard output."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main([*map(str, words)])
    return {"code": code, "said": said.getvalue()}
