"""Whole numbers of a few bits each, one after the other in bytes; the highest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import tf

_BYTE = 8


def to_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Numbers [n] below 2^bits as bytes, uint8 [ceil(n * bits / 8)]."""
    shifts = np.arange(bits)[::-1]
    return np.packbits((np.asarray(numbers)[:, None] >> shifts & 1).astype(bool))


def from_bits(stored: Any, bits: int, count: int | None = None) -> Any:
    """The first `count` numbers of so many bits in bytes, all of them if it is None, as a tensor int32 [count]."""
    shifts = tf.constant(np.arange(_BYTE)[::-1], tf.uint8)
    each = tf.bitwise.bitwise_and(tf.bitwise.right_shift(stored[:, None], shifts), tf.constant(1, tf.uint8))
    flat = tf.reshape(each, [-1])
    rows = tf.cast(flat[:, None] if count is None else tf.reshape(flat[: count * bits], [count, bits]), tf.int32)
    return tf.reduce_sum(rows * tf.constant(2 ** np.arange(bits)[::-1], tf.int32), 1)
