"""Arrays on their way through a SavedModel: small in its files, decoded once when it is loaded, ready in every call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.block import Block, deflated, graph_function
from tfp_bprune.prediction.coded import Coded
from tfp_bprune.prediction.grids import Grid, Levels, Steps
from tfp_bprune.prediction.rice import Rice
from tfp_bprune.storage.compress import SKIP, gaps_of
from tfp_bprune.types import Storage

_MOST = float(np.finfo(np.float16).max)


class Decoded(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed when the model is loaded and kept for every call; its files hold what `decode` reads.

    A table of TensorFlow's does the same with its initializer, so every loader of SavedModels runs it, C++ ones too; all
    of them restore variables before.

    Args:
      decode: computes the tensor; runs now, and in every process that loads the model.
      key: a name for the content: models that share it share the tensor.
      stored: what `decode` reads: a variable, or what holds some.

    Attributes:
      stored: this.
    """

    def __init__(self, decode: Callable[[], Any], key: str, stored: Any) -> None:
        super().__init__(device="CPU")
        self._decode, self._key, self.stored = decode, key, stored
        self._track_trackable(stored, "stored")
        with tf.init_scope():
            value = decode()
            self._dtype, self._shape = value.dtype, value.shape
            tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=value)

    def _create_resource(self) -> Any:
        return tf.raw_ops.VarHandleOp(dtype=self._dtype, shape=self._shape, shared_name=self._key)

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._decode())

    def read(self) -> Any:
        """The tensor."""
        value = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)
        return tf.ensure_shape(value, self._shape)


class Packed(tf.Module):
    """The entries of matrices [rows, columns] at the places of one pattern, as files hold them.

    Args:
      pattern: which places.
      matrices: all of the pattern's shape; floats, or the codes of a grid.
      storage: of those that are floats.
      by_row: whether a grid has a scale for each row, and not for each column.
      block: for the small arrays of the network.

    Attributes:
      nbytes: in a file, apart from those in the block.
    """

    def __init__(
        self,
        pattern: np.ndarray,
        matrices: Sequence[np.ndarray | Grid],
        storage: Storage,
        by_row: bool = False,
        block: Block | None = None,
    ) -> None:
        super().__init__()
        self.shape, self._by_row = pattern.shape, by_row
        self._places = Places(pattern, block)
        self._parts = [_part(matrix, pattern, storage, block) for matrix in matrices]
        self.nbytes = self._places.nbytes + sum(part.nbytes for part in self._parts)
        self.key = digest(np.array([self._places.key, *(part.key for part in self._parts)]))

    def indices(self) -> Any:
        """Rows and columns [places, 2] as a tensor, int64, in order."""
        places = self._places.read()
        return tf.stack([places // self.shape[1], places % self.shape[1]], axis=1)

    def entries(self, which: int, squared: bool = False) -> Any:
        """The entries [places] of one matrix, or their squares, as a float32 tensor."""
        wide = self._parts[which].read(self._channels)
        return tf.square(wide) if squared else wide

    def matrix(self, which: int, squared: bool = False) -> Any:
        """One matrix, or the squares of its entries, dense: [rows, columns]."""
        return _dense(self._places.read(), self.entries(which, squared), self.shape)

    def _channels(self) -> Any:
        """Of each entry the number of its scale [places]."""
        places = self._places.read()
        return places // self.shape[1] if self._by_row else places % self.shape[1]


class Places(tf.Module):
    """Where a pattern has entries: the gaps before them, a byte each (`storage.compress`), or in a block in the bits of a Rice code, where
    that takes fewer bytes.

    Args:
      pattern: bool, of any shape.
      block: for the small arrays of the network.

    Attributes:
      key: a name for the content.
      nbytes: in a file, apart from those in the block.
    """

    def __init__(self, pattern: np.ndarray, block: Block | None = None) -> None:
        super().__init__()
        gaps, places = gaps_of(pattern), np.flatnonzero(pattern)
        self.key, self.nbytes = digest(np.array(pattern.shape), gaps), 0
        self._rice = Rice(places, block) if block is not None and _takes_rice(places, gaps, block) else None
        if self._rice is None:
            self._gaps = Coded(gaps, block=block, kind="places")
            self.nbytes = self._gaps.nbytes

    def read(self) -> Any:
        """The places in the flat pattern, in order, as a tensor int64 [places]."""
        if self._rice is not None:
            return self._rice.read()
        gaps = tf.cast(self._gaps.read(), tf.int64)
        ends = gaps != SKIP
        places = tf.cumsum(gaps + tf.cast(ends, tf.int64)) - 1
        return tf.gather_nd(places, tf.where(ends))[:-1]  # the last gap is the one before the end of the matrix


def _takes_rice(places: np.ndarray, gaps: np.ndarray, block: Block) -> bool:
    """Whether a Rice code takes fewer bytes than the gaps' own Huffman code, and the block has room for it."""
    size = Rice.size(places)
    return block.takes(size) and size < len(deflated([gaps.tobytes()]))


class _Part(tf.Module):
    """The entries of one matrix.

    Args:
      arrays: what it is.

    Attributes:
      key: a name for the content.
      nbytes: in a file.
    """

    def __init__(self, *arrays: np.ndarray, nbytes: int) -> None:
        super().__init__()
        self.key, self.nbytes = digest(*arrays), nbytes

    def read(self, channels: Callable[[], Any]) -> Any:
        """The entries as a float32 tensor; `channels` gives the number of each one's scale."""
        raise NotImplementedError


class _Floats(_Part):
    def __init__(self, values: np.ndarray) -> None:
        super().__init__(values, nbytes=values.nbytes)
        self._values = tf.Variable(values, trainable=False)

    def read(self, channels: Callable[[], Any]) -> Any:
        return widened(self._values)


class _Steps(_Part):
    def __init__(self, grid: Steps, pattern: np.ndarray, block: Block | None) -> None:
        codes, scale = Coded(grid.codes[pattern], grid.bits, block), Halves(grid.scale, block)
        super().__init__(grid.codes[pattern], grid.scale, nbytes=codes.nbytes + scale.nbytes)
        self._codes, self._zero, self._scale = codes, float(grid.zero), scale
        self._one = len(grid.scale) == 1

    def read(self, channels: Callable[[], Any]) -> Any:
        scale = self._scale.read()
        return _multiples(self._codes.read(), self._zero, scale if self._one else tf.gather(scale, channels()))


class _Levels(_Part):
    def __init__(self, grid: Levels, pattern: np.ndarray, block: Block | None) -> None:
        codes, table = Coded(grid.codes[pattern], grid.bits, block), Halves(grid.levels, block)
        super().__init__(grid.codes[pattern], grid.levels, nbytes=codes.nbytes + table.nbytes)
        self._codes, self._levels = codes, table

    def read(self, channels: Callable[[], Any]) -> Any:
        return tf.gather(self._levels.read(), tf.cast(self._codes.read(), tf.int32))


class Multiples(tf.Module):
    """All numbers of an array as multiples of one step, also those that are 0.

    Args:
      grid: of the array, which lies there as one row.
      block: for the small arrays of the network.

    Attributes:
      key: a name for the content.
    """

    def __init__(self, grid: Steps, block: Block | None) -> None:
        super().__init__()
        self.key, self._zero = digest(grid.codes, grid.scale), float(grid.zero)
        self._codes, self._scale = Coded(grid.codes[0], grid.bits, block, "biases"), Halves(grid.scale, block)

    def read(self) -> Any:
        """The numbers as a float32 tensor [n]."""
        return _multiples(self._codes.read(), self._zero, self._scale.read())


class Halves(tf.Module):
    """Numbers that bfloat16 holds, in two bytes each: a variable, or in the block, all upper bytes before all lower ones.

    Args:
      numbers: float32 [n].
      block: for the small arrays of the network.
    """

    def __init__(self, numbers: np.ndarray, block: Block | None = None) -> None:
        super().__init__()
        self.nbytes = 2 * len(numbers)
        self._block = block if block is not None and block.takes(self.nbytes) else None
        if self._block is None:
            self._held = tf.Variable(tf.cast(numbers, tf.bfloat16), trainable=False)
            return
        self.nbytes = 0
        upper = numbers.astype(np.float32).view(np.uint32) >> 16
        planes = np.stack([upper >> 8, upper & 255]).astype(np.uint8)
        self._number = self._block.add(planes.reshape(-1), "scales")

    def read(self) -> Any:
        """The numbers as a float32 tensor [n]."""
        if self._block is None:
            return widened(self._held)
        return _of_planes(self._block.read(self._number))


def _scattered(places: Any, entries: Any, shape: Any) -> Any:
    return tf.reshape(tf.scatter_nd(tf.expand_dims(places, 1), entries, tf.reduce_prod(shape, keepdims=True)), shape)


def _stepped(codes: Any, zero: Any, scale: Any) -> Any:
    return (tf.cast(codes, tf.float32) - zero) * scale


def _joined(planes: Any) -> Any:
    """Numbers of bfloat16 of which all upper bytes come before all lower ones, as float32."""
    upper_last = tf.reverse(tf.reshape(planes, [2, -1]), [0])
    return widened(tf.bitcast(tf.transpose(upper_last), tf.bfloat16))


# What the arrays of a network have in common to read them.
_FLOATS, _BYTES = tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.uint8)
_dense = graph_function(_scattered, tf.TensorSpec([None], tf.int64), _FLOATS, tf.TensorSpec([2], tf.int64))
_multiples = graph_function(_stepped, _BYTES, tf.TensorSpec([], tf.float32), _FLOATS)
_of_planes = graph_function(_joined, _BYTES)


def _part(matrix: np.ndarray | Grid, pattern: np.ndarray, storage: Storage, block: Block | None) -> _Part:
    if isinstance(matrix, Steps):
        return _Steps(matrix, pattern, block)
    if isinstance(matrix, Levels):
        return _Levels(matrix, pattern, block)
    assert isinstance(matrix, np.ndarray)
    return _Floats(narrowed(matrix[pattern], storage))


def narrowed(array: np.ndarray, storage: Storage) -> np.ndarray:
    """The numbers in the type of `storage`; those beyond float16's range become its largest."""
    return array.astype(np.float32) if storage == "float32" else np.clip(array, -_MOST, _MOST).astype(np.float16)


def widened(stored: Any, squared: bool = False) -> Any:
    """What files hold as float32, or its squares."""
    wide = tf.cast(stored, tf.float32)
    return tf.square(wide) if squared else wide


def digest(*arrays: np.ndarray) -> str:
    """A name for the content of arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype}{array.shape}".encode())
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:32]
