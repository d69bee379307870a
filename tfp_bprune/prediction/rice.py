"""Where a pattern has entries, in the bits of a Rice code: what a pattern of few entries takes without a table of frequencies.

Rice & Plaunt 1971, Adaptive variable-length coding for efficient compression of spacecraft television data, IEEE Transactions on
Communication Technology 19. A gap g before an entry is its quotient g >> k in unary, as many zeros and a one, and the k bits of its
remainder. Gaps between entries that lie there independently of each other are distributed geometrically, for which no code of whole bits
is better where 2^k is their right scale (Gallager & van Voorhis 1975, Optimal source codes for geometrically distributed integer alphabets,
IEEE Transactions on Information Theory 21). With k = 0 the quotients are the pattern itself, a bit an entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.bits import each_bit, from_bits, to_bits
from tfp_bprune.prediction.block import Block, graph_function

_MOST_BITS = 31  # of a remainder


class Rice(tf.Module):
    """The places of a pattern's entries in two parts of a block.

    Args:
      places: of the entries in the flat pattern, in order, int [n].
      block: that holds the parts.
    """

    def __init__(self, places: np.ndarray, block: Block) -> None:
        super().__init__()
        gaps = _gaps(places)
        self._block, self._count, self._width = block, len(gaps), _width(gaps)
        quotients, remainders = _parts(gaps, self._width)
        self._quotients, self._remainders = block.add(quotients, "places"), block.add(remainders, "remainders")

    @staticmethod
    def size(places: np.ndarray) -> int:
        """Bytes of both parts."""
        gaps = _gaps(places)
        return sum(len(part) for part in _parts(gaps, _width(gaps)))

    def read(self) -> tf.Tensor:
        """The places, as a tensor int64 [n]."""
        quotients, remainders = self._block.read(self._quotients), self._block.read(self._remainders)
        return _places(quotients, remainders, self._count, self._width)


def _gaps(places: np.ndarray) -> np.ndarray:
    return np.diff(np.asarray(places, np.int64), prepend=-1) - 1


def _width(gaps: np.ndarray) -> int:
    """Of the remainders, where the code takes the fewest bits."""
    return min(range(_MOST_BITS + 1), key=lambda width: len(gaps) * (width + 1) + int(np.sum(gaps >> width)))


def _parts(gaps: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Quotients in unary and remainders, as bytes."""
    ends = np.cumsum((gaps >> width) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, bool)
    unary[ends] = True
    return np.packbits(unary), to_bits(gaps & ((1 << width) - 1), width)


def _read(quotients: Any, remainders: Any, count: Any, width: Any) -> Any:
    """The places that both parts stand for."""
    ends = tf.squeeze(tf.where(each_bit(quotients)), 1)
    zeros = ends - tf.range(tf.cast(count, tf.int64))  # up to the end of each quotient
    rests = tf.cast(from_bits(remainders, width, count), tf.int64)
    return zeros * tf.pow(tf.constant(2, tf.int64), tf.cast(width, tf.int64)) + tf.cumsum(rests + 1) - 1


_BYTES, _NUMBER = tf.TensorSpec([None], tf.uint8), tf.TensorSpec([], tf.int32)
_places = graph_function(_read, _BYTES, _BYTES, _NUMBER, _NUMBER)
