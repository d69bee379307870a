"""Masks in TensorBoard: Keras's callback shows every weight as an image, and would end training at truth values."""

from __future__ import annotations

from functools import wraps
from typing import Any

from tfp_bprune._keras import keras, tf


def show_masks() -> None:
    """Has `keras.callbacks.TensorBoard(write_images=True)` show boolean weights, 1 for kept and 0 for pruned."""
    callback, name = keras.callbacks.TensorBoard, "_log_weight_as_image"
    original = getattr(callback, name, None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def log(self: Any, weight: Any, *arguments: Any) -> None:
        original(self, tf.cast(weight, tf.float32) if weight.dtype == tf.bool else weight, *arguments)

    setattr(callback, name, log)
