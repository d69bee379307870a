"""What Keras's own callbacks know at the end of an epoch, as arrays: so that a resumed run decides as an unbroken one.

Those that wait for an improvement forget what they saw when training begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.types import Json

PREFIX = "training/"
_C: Any = keras.callbacks
_KNOWN = {
    _C.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch"),
    _C.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    _C.ModelCheckpoint: ("best",),
}


def states_of(callbacks: Sequence[Any]) -> dict[str, np.ndarray]:
    """What there is to keep of `callbacks`, by name."""
    found: dict[str, np.ndarray] = {}
    for prefix, callback, names in _kept(callbacks):
        found |= {prefix + name: np.asarray(getattr(callback, name), np.float64) for name in names}
        for i, weight in enumerate(getattr(callback, "best_weights", None) or []):
            found[f"{prefix}best_weights/{i:05d}"] = np.asarray(weight)
    return found


def set_states(callbacks: Sequence[Any], arrays: dict[str, np.ndarray]) -> None:
    """Gives `callbacks` what `states_of` took from callbacks of the same kinds in the same order."""
    for prefix, callback, names in _kept(callbacks):
        for name in names:
            if prefix + name in arrays:
                value = float(arrays[prefix + name])
                setattr(callback, name, value if name == "best" else int(value))
        weights = [array for name, array in sorted(arrays.items()) if name.startswith(f"{prefix}best_weights/")]
        if weights:
            callback.best_weights = weights


class SetStates(keras.callbacks.Callback):
    """Does `set_states` when training begins, after the callbacks have forgotten."""

    def __init__(self, callbacks: Sequence[Any], arrays: dict[str, np.ndarray]) -> None:
        super().__init__()
        self._callbacks, self._arrays = callbacks, arrays

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Gives them what they knew."""
        set_states(self._callbacks, self._arrays)


def _kept(callbacks: Sequence[Any]) -> list[tuple[str, Any, tuple[str, ...]]]:
    found = []
    for i, callback in enumerate(callbacks):
        for kind, names in _KNOWN.items():
            if isinstance(callback, kind):
                found.append((f"{PREFIX}{i:02d}-{kind.__name__}/", callback, names))
    return found
