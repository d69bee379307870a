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


def from_bits(stored: Any, bits: Any, count: Any) -> Any:
    """The first `count` numbers of so many bits in bytes, as a tensor int32 [count]; both may be tensors."""
    flat = tf.slice(each_bit(stored), [0], [count * bits])
    rows = tf.cast(tf.reshape(flat, [count, bits]), tf.int32)
    return tf.reduce_sum(rows * tf.pow(2, tf.range(bits - 1, -1, -1)), 1)


def each_bit(stored: Any) -> Any:
    """The bits of bytes, as a tensor uint8 [8 * bytes] of zeros and ones."""
    shifts = tf.constant(np.arange(_BYTE)[::-1], tf.uint8)
    shifted = tf.bitwise.right_shift(tf.expand_dims(stored, 1), shifts)
    return tf.reshape(tf.bitwise.bitwise_and(shifted, tf.constant(1, tf.uint8)), [-1])
