"""What users bring to a training, looked at before it begins: their optimizer, and what their callbacks monitor."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.layers import variational_layers
from tfp_bprune.types import TrainingError

_WITH_KL = {"loss": "nll", "val_loss": "val_nll"}


def own_optimizer(given: Any) -> Any:
    """An optimizer of tf_keras, from itself or its name.

    Raises:
      TrainingError: it is none.
    """
    if isinstance(given, str):
        try:
            return keras.optimizers.get(given)
        except ValueError as error:
            raise TrainingError(
                f"there is no optimizer {given!r} in Keras: expected a name such as 'adam' or 'sgd'"
            ) from error
    if not isinstance(given, keras.optimizers.Optimizer | keras.optimizers.legacy.Optimizer):
        kind = type(given)
        raise TrainingError(
            f"optimizer is a {kind.__module__}.{kind.__name__}: expected one of tf_keras (tf_keras.optimizers.Adam(1e-3)), or its name"
        )
    return given


def checked_callbacks(given: Any) -> list[Any]:
    """Callbacks as `model.fit` takes them, one, several or none, as a list.

    Raises:
      TrainingError: something among them is none of tf_keras.
    """
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    for one in several:
        if not isinstance(one, keras.callbacks.Callback):
            kind = one if isinstance(one, type) else type(one)
            what = "the class" if isinstance(one, type) else "a"
            raise TrainingError(
                f"among callbacks is {what} {kind.__module__}.{kind.__name__}: expected callbacks of tf_keras"
            )
    return list(several)


def warn_of_divergence(model: Any, callbacks: Sequence[Any]) -> None:
    """Warns of callbacks that decide by a loss with the KL of the weights in it."""
    if next(iter(variational_layers(model)), None) is None:
        return
    for one in callbacks:
        watched = getattr(one, "monitor", None)
        if isinstance(one, keras.callbacks.Callback) and watched in _WITH_KL and not _ignores(one):
            warnings.warn(
                f"{type(one).__name__} monitors {watched!r}, which is mostly the KL of the weights: monitor={_WITH_KL[watched]!r} "
                "is the negative log likelihood alone",
                stacklevel=3,
            )


def _ignores(callback: Any) -> bool:
    """Whether it monitors something and does not act on it."""
    return isinstance(callback, keras.callbacks.ModelCheckpoint) and not callback.save_best_only
