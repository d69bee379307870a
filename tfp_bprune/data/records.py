"""Image classifications read from TFRecord files by the number of an example, so that memory holds a batch and not the data."""

from __future__ import annotations

import copy
import hashlib
import os
import struct
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import Arrays
from tfp_bprune.data.splits import EVALUATION_BATCH, Split, as_float
from tfp_bprune.types import DataError

Decode = Callable[[Any], tuple[Any, Any]]
_HEADER, _FOOTER = 12, 4  # the length of a record and its checksum; the checksum of what is in it
_SHOWN_AT_ONCE = 100


class Records:
    """Where each record of some files begins, and what is there.

    Building it reads the headers alone; each record takes 24 bytes of memory.

    Args:
      paths: of TFRecord files, in their order.

    Attributes:
      counts: how many each file has.
      digest: a hash of the lengths and checksums of all records, in their order.

    Raises:
      DataError: a file cannot be read, or is cut.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._files: dict[int, int] = {}
        digest, found = hashlib.sha256(), []
        for number, path in enumerate(paths):
            try:
                places = _places(self._file(number), path, digest)
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}): prepare the dataset anew") from error
            found.append(np.column_stack([np.full(len(places), number), places]))
        self.counts = [len(places) for places in found]
        self._places = np.concatenate(found) if found else np.zeros((0, 3), np.int64)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """The records with these numbers, as an array of bytes objects.

        Raises:
          DataError: a file became shorter meanwhile.
        """
        found = np.empty(len(numbers), object)
        for i, (file, begin, length) in enumerate(self._places[numbers].tolist()):
            found[i] = os.pread(self._file(file), length, begin)
            if len(found[i]) != length:
                raise DataError(f"{self._paths[file]} has changed while it is read: prepare the dataset anew")
        return found

    def _file(self, number: int) -> int:
        if number not in self._files:
            self._files[number] = os.open(self._paths[number], os.O_RDONLY | os.O_CLOEXEC)
        return self._files[number]

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


def _places(file: int, path: Path, digest: Any) -> np.ndarray:
    """Where the records of a file begin and how long they are [n, 2]."""
    size, at, found = os.fstat(file).st_size, 0, array("q")
    while at < size:
        header = os.pread(file, _HEADER, at)
        length = struct.unpack("<Q", header[:8])[0] if len(header) == _HEADER else size
        end = at + _HEADER + length + _FOOTER
        if end > size:
            raise DataError(f"{path} is cut after {len(found):,} records: prepare the dataset anew")
        digest.update(header + os.pread(file, _FOOTER, end - _FOOTER))
        found.extend((at + _HEADER, length))
        at = end
    return np.array(found, np.int64).reshape(-1, 2)


class StoredSplit(Split):
    """A split whose examples are on disk: `x` and `y` read all of them, `batches` and training a batch at a time.

    Args:
      name: as of any split.
      records: where they are.
      chosen: which of them.
      decode: an image and its label of a record, as TensorFlow's operations.
      named: inputs and targets under the names that a network has for them.
    """

    _records: Records
    _chosen: np.ndarray
    _decode: Decode
    _named: Any

    def __init__(self, name: str, records: Records, chosen: np.ndarray, decode: Decode, named: Any = None) -> None:
        vars(self).update(name=name, _records=records, _chosen=chosen, _decode=decode, _named=named)

    def __len__(self) -> int:
        return len(self._chosen)

    def __repr__(self) -> str:
        return f"StoredSplit({self.name!r}: {len(self):,} examples on disk)"

    @property
    def x(self) -> Arrays:
        """All examples, in memory."""
        return self._whole()[0]

    @property
    def y(self) -> Arrays:
        """All targets, in memory."""
        return self._whole()[1]

    def rows(self, chosen: Any) -> Split:
        """The examples with these numbers, or in this slice, still on disk."""
        return self._with(_chosen=self._chosen[chosen])

    def called(self, name: str) -> Split:
        """The same under another name."""
        return self._with(name=name)

    def renamed(self, inputs: Callable[[Any], Any], targets: Callable[[Any], Any]) -> Split:
        """The same with inputs and targets under other names."""
        return self._with(_named=(inputs, targets))

    def batches(self, batch_size: int = EVALUATION_BATCH) -> tf.data.Dataset:
        """All examples once, in order."""
        numbers = tf.data.Dataset.range(len(self)).batch(batch_size)
        return numbers.map(self.taker()).map(as_float).prefetch(1)

    def taker(self) -> Callable[[Any], tuple[Any, Any]]:
        """Reads and decodes the examples with some numbers."""

        def read(numbers: np.ndarray) -> np.ndarray:
            return self._records.read(self._chosen[numbers])

        def taken(numbers: Any) -> tuple[Any, Any]:
            contents = tf.ensure_shape(tf.numpy_function(read, [numbers], tf.string), [None])
            kinds = tf.nest.map_structure(lambda one: one.dtype, self._decode_spec())
            found = tf.map_fn(self._decode, contents, fn_output_signature=kinds, parallel_iterations=_SHOWN_AT_ONCE)
            x, y = tf.nest.map_structure(lambda t, s: tf.ensure_shape(t, [None, *s.shape]), found, self._decode_spec())
            return (self._named[0](x), self._named[1](y)) if self._named else (x, y)

        return taken

    @property
    def parallel(self) -> Any:
        """How many batches are made at once."""
        return tf.data.AUTOTUNE

    def _decode_spec(self) -> Any:
        return tf.function(self._decode).get_concrete_function(tf.TensorSpec([], tf.string)).structured_outputs

    def _whole(self) -> tuple[Arrays, Arrays]:
        parts = [taken for taken in tf.data.Dataset.range(len(self)).batch(EVALUATION_BATCH).map(self.taker())]
        return tf.nest.map_structure(lambda *ones: np.concatenate([one.numpy() for one in ones]), *parts)

    def _with(self, **changed: Any) -> StoredSplit:
        made = copy.copy(self)
        vars(made).update(changed)
        return made
