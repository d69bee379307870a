"""A progress bar on standard error for `model.fit`."""

from __future__ import annotations

from tfp_bprune._keras import keras
from tfp_bprune._progress import Bar
from tfp_bprune.types import Json

_SHOWN = ("loss", "val_nll", "val_accuracy", "val_mse")


class ProgressBar(keras.callbacks.Callback):
    """Shows epochs done, the time left, and the last epoch's figures."""

    def __init__(self, epochs: int, start: int = 0, description: str = "train") -> None:
        super().__init__()
        self._bar = Bar(description, epochs, start, remaining=True)

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Starts the bar."""
        self._bar.start()

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Moves the bar by one epoch."""
        figures = "  ".join(f"{name} {logs[name]:.4g}" for name in _SHOWN if logs and name in logs)
        self._bar.to(epoch + 1, figures)

    def on_train_end(self, logs: Json | None = None) -> None:
        """Leaves the finished bar."""
        self.close()

    def close(self) -> None:
        """Takes the bar off the terminal's live area, also after an error."""
        self._bar.stop()
