"""Small arrays of bytes of a whole network in one zlib stream, which TensorFlow unpacks when a SavedModel is loaded.

A stream for each array would pay for a header, a checksum and a Huffman code of its own. Here arrays of one kind, such as
the codes of all layers' weights, lie side by side and share a code where that takes fewer bytes.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from tfp_bprune._keras import tf

Kind = Literal["remainders", "places", "codes", "scales", "biases"]
_KINDS: tuple[Kind, ...] = get_args(Kind)
_MOST = 2**16  # bytes unpacked: each array that is read unpacks all of them
_LEVEL, _WINDOW, _MEMORY = 9, 15, 9
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE, zlib.Z_FILTERED, zlib.Z_DEFAULT_STRATEGY)
_ROUNDS = 3


@dataclass(frozen=True)
class _Part:
    content: bytes
    kind: Kind


class _Parts:
    """What was added, and the function that unpacks it, kept from TensorFlow, which would track them."""

    def __init__(self) -> None:
        self.all: list[_Part] = []
        self.starts: dict[int, int] = {}
        self.unpacked: Any = None


class Block(tf.Module):
    """Arrays that are added one by one; once it is closed, files hold their one stream in the place of them.

    Attributes:
      nbytes: of the stream; 0 until it is closed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0
        self._parts, self._held = _Parts(), None

    def takes(self, size: int) -> bool:
        """Whether there is room for so many bytes more."""
        return self._held is None and size + sum(len(part.content) for part in self._parts.all) <= _MOST

    def add(self, numbers: np.ndarray, kind: Kind) -> int:
        """Adds bytes, uint8 [n], beside others of their kind; gives the number by which they are read."""
        self._parts.all.append(_Part(numbers.tobytes(), kind))
        return len(self._parts.all) - 1

    def close(self) -> None:
        """Makes the stream of what was added."""
        parts = self._parts
        if not parts.all:
            return
        order = sorted(range(len(parts.all)), key=lambda i: _KINDS.index(parts.all[i].kind))
        contents = [parts.all[i].content for i in order]
        parts.starts = dict(zip(order, itertools.accumulate(map(len, contents), initial=0), strict=False))
        stream = deflated(contents)
        self._held = tf.Variable(stream, trainable=False)
        self.nbytes = len(stream)
        # A function that all readers call: operations of its own for each would be most of a small network's file.
        parts.unpacked = graph_function(self._unpacked, *[tf.TensorSpec([], tf.int32)] * 2)

    def read(self, number: int) -> tf.Tensor:
        """What was added under this number, as a tensor uint8 [n]."""
        content = self._parts.all[number].content
        if self._held is None:
            return tf.constant(np.frombuffer(content, np.uint8))
        start = self._parts.starts[number]
        return self._parts.unpacked(start, start + len(content))

    def _unpacked(self, start: Any, end: Any) -> Any:
        stream = tf.io.decode_compressed(tf.convert_to_tensor(self._held), "ZLIB")
        return tf.io.decode_raw(stream, tf.uint8)[start:end]


def graph_function(body: Callable[..., Any], *arguments: tf.TensorSpec) -> Any:
    """A TensorFlow function of `body`, traced once for tensors like `arguments`. A call in a graph adds one operation to it."""
    return tf.function(body, arguments, autograph=False)


def deflated(parts: Sequence[bytes]) -> bytes:
    """All parts in a row as a zlib stream, of which each block has the Huffman code that is best for it.

    Blocks end at the end of a part, wherever that was found to take fewer bytes: at first everywhere, then ends are left out
    and put in again, one at a time, as long as the stream gets shorter.
    """
    cuts = frozenset(range(len(parts) - 1))
    least, strategy = min((len(_stream(parts, cuts, one)), i) for i, one in enumerate(_STRATEGIES))
    for _ in range(_ROUNDS):
        before = least
        for end in range(len(parts) - 1):
            tried = cuts ^ {end}
            size = len(_stream(parts, tried, _STRATEGIES[strategy]))
            if size < least:
                least, cuts = size, tried
        if least == before:
            break
    return min((_stream(parts, cuts, one) for one in _STRATEGIES), key=len)


def _stream(parts: Iterable[bytes], cuts: frozenset[int], strategy: int) -> bytes:
    """The stream of which a block ends behind each part in `cuts`, by its number."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, strategy)
    found = [packer.compress(part) + (packer.flush(zlib.Z_BLOCK) if i in cuts else b"") for i, part in enumerate(parts)]
    return b"".join(found) + packer.flush()
