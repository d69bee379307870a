"""Small whole numbers in the fewest bytes: as they are, their bits one after the other, or compressed by their frequency.

What is read is bytes of TensorFlow's own operations, so every process with TensorFlow alone reads it. Where a network has a
block for its small arrays (`block.Block`), numbers are a byte each of it as long as there is room.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.bits import from_bits, to_bits
from tfp_bprune.prediction.block import Block, Kind

_BYTE = 8
_SAVED = 256  # bytes that compressing must save, for the operations that undo it


class Coded(tf.Module):
    """Numbers [n] below 2^bits, in the form that takes the fewest bytes in a file.

    Args:
      numbers: uint8.
      bits: of each.
      block: for the small arrays of the network, and what of them the numbers are.

    Attributes:
      nbytes: in a file, apart from those in the block.
    """

    def __init__(
        self, numbers: np.ndarray, bits: int = _BYTE, block: Block | None = None, kind: Kind = "codes"
    ) -> None:
        super().__init__()
        self._count, self._bits, self.nbytes = len(numbers), bits, 0
        self._block = block if block is not None and block.takes(len(numbers)) else None
        if self._block is not None:
            self._number = self._block.add(numbers, kind)
            return
        packed = numbers if bits == _BYTE else to_bits(numbers, bits)
        compressed = min((zlib.compress(one.tobytes(), 9) for one in (numbers, packed)), key=len)
        self._compressed = len(compressed) + _SAVED < packed.nbytes
        self._packed = bits < _BYTE and not (self._compressed and zlib.decompress(compressed) == numbers.tobytes())
        self.nbytes = len(compressed) if self._compressed else packed.nbytes
        self._held = tf.Variable(compressed if self._compressed else packed, trainable=False)

    def read(self) -> Any:
        """The numbers as a tensor, uint8 [n]."""
        if self._block is not None:
            return self._block.read(self._number)
        stored = tf.convert_to_tensor(self._held)
        if self._compressed:
            stored = tf.io.decode_raw(tf.io.decode_compressed(stored, "ZLIB"), tf.uint8)
        return tf.cast(from_bits(stored, self._bits, self._count), tf.uint8) if self._packed else stored
