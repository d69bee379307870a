"""A progress bar on standard error for `model.fit`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tfp_bprune._keras import keras
from tfp_bprune.types import Json

_SHOWN = ("loss", "val_nll", "val_accuracy", "val_mse")


class ProgressBar(keras.callbacks.Callback):
    """Shows epochs done, the time left, and the last epoch's figures."""

    def __init__(self, epochs: int, start: int = 0, description: str = "train") -> None:
        super().__init__()
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ]
        console = Console(stderr=True)
        # Away from a terminal a bar says nothing and would stand before the one line of an error.
        self._progress = Progress(
            *columns, TextColumn("{task.fields[figures]}"), console=console, disable=not console.is_terminal
        )
        self._task: Any = self._progress.add_task(description, total=epochs, completed=start, figures="")

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Starts the bar."""
        self._progress.start()

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Moves the bar by one epoch."""
        figures = "  ".join(f"{name} {logs[name]:.4g}" for name in _SHOWN if logs and name in logs)
        self._progress.update(self._task, completed=epoch + 1, figures=figures)

    def on_train_end(self, logs: Json | None = None) -> None:
        """Leaves the finished bar."""
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal's live area, also after an error."""
        self._progress.stop()
