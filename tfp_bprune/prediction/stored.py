"""Arrays on their way through a SavedModel: small in its files, decoded once when it is loaded, ready in every call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.storage.compress import SKIP, gaps_of

Storage = Literal["float32", "float16"]
_MOST = float(np.finfo(np.float16).max)


class Decoded(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed when the model is loaded and kept for every call; its files hold what `decode` reads.

    A table of TensorFlow's does the same with its initializer, so every loader of SavedModels runs it, C++ ones too; all
    of them restore variables before.

    Args:
      decode: computes the tensor; runs now, and in every process that loads the model.
      key: a name for the content: models that share it share the tensor.
      stored: what `decode` reads: a variable, or what holds some.
    """

    def __init__(self, decode: Callable[[], Any], key: str, stored: Any) -> None:
        super().__init__(device="CPU")
        self._decode, self._key = decode, key
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
      matrices: all of the pattern's shape.
    """

    def __init__(self, pattern: np.ndarray, matrices: list[np.ndarray], storage: Storage) -> None:
        super().__init__()
        gaps = gaps_of(pattern)
        values = narrowed(np.stack([matrix[pattern] for matrix in matrices]), storage)
        self.shape, self.nbytes = pattern.shape, gaps.nbytes + values.nbytes
        self.key = digest(gaps, values, np.array(pattern.shape))
        self._gaps = tf.Variable(gaps, trainable=False)
        self._values = tf.Variable(values, trainable=False)

    def indices(self) -> Any:
        """Rows and columns [places, 2] as a tensor, int64, in order."""
        places = self._places()
        return tf.stack([places // self.shape[1], places % self.shape[1]], axis=1)

    def entries(self, which: int, squared: bool = False) -> Any:
        """The entries [places] of one matrix, or their squares, as a float32 tensor."""
        return widened(self._values[which], squared)

    def matrix(self, which: int, squared: bool = False) -> Any:
        """One matrix, or the squares of its entries, dense: [rows, columns]."""
        rows, columns = self.shape
        size = tf.constant([rows * columns], tf.int64)
        flat = tf.scatter_nd(self._places()[:, None], self.entries(which, squared), size)
        return tf.reshape(flat, self.shape)

    def _places(self) -> Any:
        gaps = tf.cast(self._gaps, tf.int64)
        ends = gaps != SKIP
        places = tf.cumsum(gaps + tf.cast(ends, tf.int64)) - 1
        return tf.gather_nd(places, tf.where(ends))[:-1]  # the last gap is the one before the end of the matrix


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
