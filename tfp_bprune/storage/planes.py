"""Arrays in entropy-coded bytes: in, and back to the last bit.

    coded:KEY   the first bytes of all numbers, then all second ones, and so on, as a zlib stream, uint8 [n]
    type:KEY    nothing, but of the type of the array, and of its shape behind a side of 0

Trained floats look random in most bits of their mantissa. Their signs and exponents, and of deviations the mantissa's first
bits too, take few values: byte by byte that is what a Huffman code needs. Nothing longer than a byte repeats, so that zlib is
to look for runs of one byte and for no other matches (its strategy `Z_RLE`): an eighth of the time, and fewer bytes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tfp_bprune.types import RunError

Arrays = dict[str, np.ndarray]

CODED, TYPE = "coded", "type"
_MOST = 1032  # bytes that a byte of a stream stands for: matches of 258 bytes take two bits, one each for length and distance
_LEVEL, _WINDOW, _MEMORY = 6, 15, 9  # zlib's; the largest memory makes the longest blocks with a code of their own


@dataclass(frozen=True)
class Coded:
    """An array that is still coded; type, shape and size are known.

    Attributes:
      key: that it is stored under.
      stream: uint8 [n].
      dtype, shape: of the array.
    """

    key: str
    stream: np.ndarray
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """How many sides it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many numbers it has; of Python, so that no shape makes it overflow."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def read(self) -> np.ndarray:
        """The array. No more is unpacked than a byte beyond its size.

        Raises:
          RunError: the stream is damaged, ends too soon or too late, or has bytes behind its end.
        """
        stream = zlib.decompressobj(_WINDOW)
        try:
            planes = stream.decompress(self.stream.data, self.nbytes + 1)
        except zlib.error as error:
            raise damaged(self.key, f"its stream is none of zlib ({error})") from error
        if len(planes) > self.nbytes:
            raise damaged(self.key, f"its stream holds more than its {self.nbytes} bytes")
        if len(planes) < self.nbytes:
            raise damaged(self.key, f"its stream holds {len(planes)} bytes, expected {self.nbytes}")
        if not stream.eof:
            raise damaged(self.key, "its stream has no end")
        if stream.unused_data:
            raise damaged(self.key, f"{len(stream.unused_data)} bytes follow the end of its stream")
        by_number = np.frombuffer(planes, np.uint8).reshape(self.dtype.itemsize, -1).T
        return np.ascontiguousarray(by_number).view(self.dtype).reshape(self.shape)


def coded(key: str, array: np.ndarray) -> Arrays:
    """What stands for an array of numbers."""
    array = np.asarray(array, order="C")  # without a side for a number that has none
    planes = np.ascontiguousarray(array.reshape(-1, 1).view(np.uint8).T)
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, zlib.Z_RLE)
    stream = packer.compress(planes.data) + packer.flush()
    return {
        f"{CODED}:{key}": np.frombuffer(stream, np.uint8),
        f"{TYPE}:{key}": np.empty((0, *array.shape), array.dtype),
    }


def opened(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | Coded]:
    """Arrays by key as they are stored; those of which `coded` made two entries are unpacked when they are read.

    Raises:
      RunError: an entry lacks the other, or is of another kind; or the array has more bytes than such a stream can hold.
    """
    return dict(_opened(stored))


def _opened(stored: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray | Coded]]:
    for key, array in stored.items():
        form, _, of = key.partition(":")
        if form not in (CODED, TYPE):
            yield key, array
            continue
        if f"{CODED}:{of}" not in stored or f"{TYPE}:{of}" not in stored:
            raise damaged(of, f"of its {CODED} and its {TYPE} only one is there")
        if of in stored:
            raise damaged(of, "it is stored both as it is and coded")
        if form == CODED:
            yield of, _checked(of, array, stored[f"{TYPE}:{of}"])


def _checked(key: str, stream: np.ndarray, like: np.ndarray) -> Coded:
    if stream.ndim != 1 or stream.dtype != np.uint8:
        raise damaged(key, f"its stream must be a vector of uint8, found {stream.dtype} {list(stream.shape)}")
    if not like.ndim or like.shape[0] or like.dtype.kind not in "fiu":
        raise damaged(key, f"its type must be an empty array of numbers, found {like.dtype} {list(like.shape)}")
    found = Coded(key, stream, like.dtype, like.shape[1:])
    if found.nbytes > _MOST * len(stream):
        raise damaged(
            key,
            f"its stream of {len(stream)} bytes holds {_MOST * len(stream)} at most, expected {found.nbytes}",
        )
    return found


def damaged(name: str, what: str) -> RunError:
    """What is said of a weight that cannot be decoded."""
    return RunError(f"stored weight {name} cannot be decoded: {what}; restore the run from a copy")
