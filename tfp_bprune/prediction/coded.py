"""Small whole numbers in the fewest bytes: as they are, their bits one after the other, or compressed by their frequency.

What is read is bytes of TensorFlow's own operations, so every process with TensorFlow alone reads it.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tfp_bprune._keras import tf

_BYTE = 8
_SAVED = 256  # bytes that compressing must save, for the operations that undo it


class Coded(tf.Module):
    """Numbers [n] below 2^bits, in the form that takes the fewest bytes in a file.

    Args:
      numbers: uint8.
      bits: of each.

    Attributes:
      content: the bytes.
      nbytes: how many.
    """

    def __init__(self, numbers: np.ndarray, bits: int = _BYTE) -> None:
        super().__init__()
        self._count, self._bits = len(numbers), bits
        packed = numbers if bits == _BYTE else np.packbits(_as_bits(numbers, bits))
        compressed = min((zlib.compress(one.tobytes(), 9) for one in (numbers, packed)), key=len)
        self._compressed = len(compressed) + _SAVED < packed.nbytes
        self._packed = bits < _BYTE and not (self._compressed and zlib.decompress(compressed) == numbers.tobytes())
        self.content = compressed if self._compressed else packed.tobytes()
        self.nbytes = len(self.content)
        self._held = tf.Variable(compressed if self._compressed else packed, trainable=False)

    def read(self) -> Any:
        """The numbers as a tensor, uint8 [n]."""
        stored = tf.convert_to_tensor(self._held)
        if self._compressed:
            stored = tf.io.decode_raw(tf.io.decode_compressed(stored, "ZLIB"), tf.uint8)
        return _from_bits(stored, self._count, self._bits) if self._packed else stored


def _as_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    return np.unpackbits(numbers[:, None], axis=1)[:, _BYTE - bits :]


def _from_bits(stored: Any, count: int, bits: int) -> Any:
    """Numbers of so many bits each, the highest first."""
    shifts = tf.constant(np.arange(_BYTE)[::-1], tf.uint8)
    each = tf.bitwise.bitwise_and(tf.bitwise.right_shift(stored[:, None], shifts), tf.constant(1, tf.uint8))
    rows = tf.cast(tf.reshape(tf.reshape(each, [-1])[: count * bits], [count, bits]), tf.int32)
    weights = tf.constant(2 ** np.arange(bits)[::-1], tf.int32)
    return tf.cast(tf.reduce_sum(rows * weights, 1), tf.uint8)
