"""Fully connected networks: the 784-500-500-10 of the published comparisons, and any other widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.networks.factory import LayerFactory
from tfp_bprune.types import BpruneError


def mlp(x: Any, outputs: int, make: LayerFactory, hidden: Sequence[int] = (500, 500)) -> Any:
    """ReLU layers of `hidden` units, then `outputs` linear ones.

    Args:
      x: the rescaled inputs [batch, ...], flattened here.

    Returns:
      Logits, or standardized predictions, [batch, outputs].
    """
    if not hidden or min(hidden) < 1:
        raise BpruneError(f"hidden must be one or more positive layer widths, got {list(hidden)}")
    if len(x.shape) > 2:
        x = keras.layers.Flatten(name="flatten")(x)
    for i, units in enumerate(hidden, start=1):
        x = make.dense(units, f"dense_{i}", activation="relu")(x)
        x = make.dropout(f"dropout_{i}")(x)
    return make.dense(outputs, "logits")(x)
