"""Batches that are not held in memory, a tf.data dataset or a Keras Sequence, walked through as splits are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.arrays import Arrays, as_arrays, by_name, count, leaves, mapped, rows
from tfp_bprune.data.info import Info, described_targets, examples_of, info_from
from tfp_bprune.data.splits import Split, Splits, as_float, with_target_scale
from tfp_bprune.data.targets import SaidTask, Target
from tfp_bprune.types import DataError


@dataclass(frozen=True, repr=False)
class Stream(Splits):
    """Splits whose training examples, and perhaps those of validation, come in batches of their own.

    `parts` hold no training examples; `size` and `batches` say how many there are in an epoch. Nothing says in which order
    they come, so that a killed training cannot go on to the same bits.
    """

    dataset: Any = None
    size: int = 0
    batches: int = 0
    valid_dataset: Any = None
    valid_size: int = 0

    @property
    def train_size(self) -> int:
        """Number of training examples: the N of the evidence lower bound."""
        return self.size

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return self.batches

    def seen(self, name: str) -> int:
        """How many examples of the split there are in an epoch."""
        if name == "valid":
            return super().seen(name) if self.valid_dataset is None else self.valid_size
        return self.size

    @property
    def train(self) -> Any:
        """One epoch."""
        return self.dataset

    @property
    def valid(self) -> Any:
        """The validation examples, in batches."""
        return self.valid_dataset if self.valid_dataset is not None else super().valid

    def epochs(self, start: int = 0) -> Any:
        """Endless training batches."""
        return self.dataset.repeat().prefetch(2)

    def merged(self, count: int) -> Stream:
        """The same in batches `count` times as large."""
        if count == 1:
            return self
        size = count * self.batch_size
        return replace(self, dataset=self.dataset.rebatch(size), batch_size=size, batches=-(-self.size // size))

    def renamed(self, inputs: Callable[[Any], Any], targets: Callable[[Any], Any]) -> Stream:
        """The batches with inputs and targets under other names."""

        def map_of(dataset: Any) -> Any:
            return None if dataset is None else dataset.map(lambda x, y, *w: (inputs(x), targets(y), *w))

        return replace(self, dataset=map_of(self.dataset), valid_dataset=map_of(self.valid_dataset))

    def shard(self, rank: int, workers: int) -> Splits:
        """Refused: whose examples are whose cannot be told.

        Raises:
          DataError: there are several workers.
        """
        if workers > 1:
            raise DataError("batches of a dataset cannot be shared by workers: give all workers the same arrays")
        return self


def is_stream(data: Any) -> bool:
    """Whether it is a dataset of TensorFlow or a Sequence of Keras."""
    return isinstance(data, tf.data.Dataset | keras.utils.Sequence)


def stream(data: Any, task: SaidTask, seed: int) -> tuple[Stream, Info]:
    """A stream of a dataset of batches (x, y) or (x, y, weights), and what it is made of.

    It is read once, for the number of examples and for what the targets are.

    Raises:
      DataError: it is endless, empty, or its elements are no batches of (x, y); or what its targets are is not certain.
    """
    name = "the dataset"
    read = _read(_dataset(data, name), name)
    y, targets = described_targets(read.y, name, task)
    info = with_target_scale(info_from(read.x, y, targets, name), y)
    x = examples_of(read.x, name)
    parts = {key: Split(key, rows(x, slice(0, 0)), rows(y, slice(0, 0))) for key in ("train", "valid", "test")}
    batch = -(-count(y) // read.batches)
    made = Stream(parts, info, batch, seed, dataset=_numbered(read.dataset, info), size=count(y), batches=read.batches)
    return made, info


def with_validation(made: Splits, data: Any) -> Stream:
    """A stream with another one to validate on.

    Raises:
      DataError: as in `stream`, or the first is none.
    """
    if not isinstance(made, Stream):
        raise DataError("validation_data is a dataset while the training examples are arrays: give it as arrays (x, y)")
    read = _read(_dataset(data, "the validation dataset"), "the validation dataset")
    return replace(made, valid_dataset=_numbered(read.dataset, made.info), valid_size=count(read.y))


@dataclass(frozen=True)
class _Read:
    """A dataset that was read once: its first examples, all targets, how many batches."""

    dataset: Any
    x: Arrays
    y: Arrays
    batches: int


def _read(dataset: Any, name: str) -> _Read:
    first, targets, batches = None, [], 0
    for element in dataset:
        if not isinstance(element, tuple) or len(element) not in (2, 3):
            raise DataError(f"{name} has elements that are a {type(element).__name__}: expected batches (x, y)")
        first = element[0] if first is None else first
        targets.append(as_arrays(_as_tuples(element[1]), name, "targets"))
        batches += 1
    if first is None:
        raise DataError(f"{name} is empty: expected at least one batch (x, y)")
    if any(one.ndim < 1 for one in leaves(targets[0])):
        raise DataError(f"{name} has elements of one example: expected batches, as dataset.batch(32) makes them")
    parts = [leaves(one) for one in targets]
    whole = iter([np.concatenate(list(column)) for column in zip(*parts, strict=True)])
    return _Read(
        dataset, as_arrays(_as_tuples(first), name, "examples"), mapped(lambda _: next(whole), targets[0]), batches
    )


def _as_tuples(structure: Any) -> Any:
    return tuple(structure) if isinstance(structure, list) else structure


def _dataset(data: Any, name: str) -> Any:
    """A dataset as it is, a Sequence as one."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise DataError(f"{name} is endless: expected one epoch, leave out repeat()")
        return data
    if not len(data):
        raise DataError(f"{name} is empty: expected at least one batch (x, y)")

    def batches() -> Iterator[Any]:
        for i in range(len(data)):
            yield tuple(map(_arrays_of, data[i]))
        data.on_epoch_end()

    def spec(array: Any) -> Any:
        return tf.TensorSpec([None, *array.shape[1:]], array.dtype)

    return tf.data.Dataset.from_generator(
        batches, output_signature=tf.nest.map_structure(spec, tuple(map(_arrays_of, data[0])))
    )


def _arrays_of(part: Any) -> Any:
    return mapped(np.asarray, _as_tuples(part))


def _numbered(dataset: Any, info: Info) -> Any:
    """Batches with examples as a network takes them, and targets in the one form that their task has."""

    def read(x: Any, y: Any, *weights: Any) -> tuple[Any, ...]:
        x, y = _as_tuples(x), _as_tuples(y)
        found = {name: _read_batch(one, info.targets[name]) for name, one in by_name(y).items()}
        if isinstance(y, dict):
            return (*as_float(x, found), *weights)
        return (*as_float(x, tuple(found.values()) if isinstance(y, tuple) else found[""]), *weights)

    return dataset.map(read)


def _read_batch(y: Any, target: Target) -> Any:
    """As `targets.read_target` has them."""
    rank, width = len(y.shape) - 1 - len(target.positions), y.shape[-1]
    several = target.task == "multilabel" or (target.task == "regression" and target.classes > 1)
    if rank and width == 1 and not several:
        y = y[..., 0]
    elif rank and target.task in ("classification", "binary"):
        y = tf.argmax(y, -1)
    return y if target.task == "regression" else tf.cast(y, tf.int64)
