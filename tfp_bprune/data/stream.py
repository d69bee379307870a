"""Batches that are not held in memory, a tf.data dataset or a Keras Sequence, walked through as splits are."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.arrays import Arrays, as_arrays, by_name, count, leaves, mapped, rows
from tfp_bprune.data.info import Info, described_targets, examples_of, info_from, read_targets
from tfp_bprune.data.splits import Split, Splits, as_float, with_target_scale
from tfp_bprune.data.targets import SaidTask, Target
from tfp_bprune.types import DataError

_PATIENCE = 30.0  # seconds in which a dataset is counted without a word


@dataclass(frozen=True, repr=False)
class Stream(Splits):
    """Splits whose training examples, and perhaps those of validation, come in batches of their own.

    `parts` hold no training examples; `size` and `batches` say how many there are in an epoch, `alike` whether all have one
    shape. Nothing says in which order
    they come, so that a killed training cannot go on to the same bits.
    """

    dataset: Any = None
    size: int = 0
    batches: int = 0
    valid_dataset: Any = None
    valid_size: int = 0
    alike: bool = True

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
        """The same in batches `count` times as large.

        Raises:
          DataError: batches have different shapes, so that they cannot be joined.
        """
        if count == 1:
            return self
        if not self.alike:
            raise DataError(
                f"{self.info.name} has batches of different shapes, which cannot be joined: expected accumulate=1, or examples of one shape"
            )
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
    read = _read(data, name)
    y, targets = described_targets(read.y, name, task)
    info = with_target_scale(info_from(read.x, y, targets, name), y)
    x = examples_of(read.x, name)
    parts = {key: Split(key, rows(x, slice(0, 0)), rows(y, slice(0, 0))) for key in ("train", "valid", "test")}
    batch = -(-count(y) // read.batches)
    numbered, alike = _numbered(read, info), all(None not in shape[1:] for shape in read.shapes)
    made = Stream(parts, info, batch, seed, dataset=numbered, size=count(y), batches=read.batches, alike=alike)
    return made, info


def with_validation(made: Splits, data: Any) -> Stream:
    """A stream with another one to validate on.

    Raises:
      DataError: as in `stream`, or the first is none.
    """
    if not isinstance(made, Stream):
        raise DataError("validation_data is a dataset while the training examples are arrays: give it as arrays (x, y)")
    name = "the validation dataset"
    read = _read(data, name)
    x, y = examples_of(read.x, name), read_targets(read.y, made.info, name)
    valid = Split("valid", rows(x, slice(0, 0)), rows(y, slice(0, 0)))
    dataset = _numbered(read, made.info)
    return replace(made, parts=made.parts | {"valid": valid}, valid_dataset=dataset, valid_size=count(read.y))


@dataclass(frozen=True)
class _Read:
    """A dataset that was read once: its first examples, all targets, how many batches, and the shapes that all of them have."""

    dataset: Any
    x: Arrays
    y: Arrays
    batches: int
    shapes: Any


def _read(data: Any, name: str) -> _Read:
    first, targets, shapes, batches = None, [], None, 0
    patient_until = time.monotonic() + _PATIENCE
    for element in _elements(data, name):
        first = element if first is None else first
        targets.append(as_arrays(element[1], name, "targets"))
        shapes = _common(shapes, _shapes_of(element), name)
        batches += 1
        if time.monotonic() > patient_until:
            patient_until = math.inf
            warnings.warn(
                f"{name} does not say how many examples it has: it is read once to count them; if it has no end, give it one: "
                "dataset.take(STEPS)",
                stacklevel=2,
            )
    if first is None:
        raise DataError(f"{name} is empty: expected at least one batch (x, y)")
    if any(one.ndim < 1 for one in leaves(targets[0])):
        raise DataError(f"{name} has elements of one example: expected batches, as dataset.batch(32) makes them")
    whole = iter([np.concatenate(list(column)) for column in zip(*map(leaves, targets), strict=True)])
    y = mapped(lambda _: next(whole), targets[0])
    return _Read(_dataset(data, first, shapes), as_arrays(first[0], name, "examples"), y, batches, shapes)


def _elements(data: Any, name: str) -> Iterable[tuple[Any, ...]]:
    """The batches of one epoch, as (x, y) or (x, y, weights)."""
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise DataError(f"{name} is endless: expected one epoch, leave out repeat()")
        for element in data:
            yield _checked(element, name)
        return
    for i in range(len(data)):
        element = tuple(one for one in _as_tuples(data[i]) if one is not None)  # Keras lets weights be None
        yield tuple(as_arrays(one, name, "batches") for one in _checked(element, name))
    if len(data):
        data.on_epoch_end()


def _checked(element: Any, name: str) -> tuple[Any, ...]:
    if isinstance(element, dict):
        keys = list(map(str, element))
        raise DataError(
            f"{name} has elements that are dictionaries of {', '.join(keys)}: expected batches (x, y), as "
            f"dataset.map(lambda one: (one[{keys[0]!r}], one[{keys[-1]!r}])) makes them"
        )
    if not isinstance(element, tuple) or len(element) not in (2, 3):
        size = f" of {len(element)}" if isinstance(element, tuple) else ""
        raise DataError(f"{name} has elements that are a {type(element).__name__}{size}: expected batches (x, y)")
    x, y, *weights = map(_as_tuples, element)
    return _alone(x), _alone(y), *weights


def _alone(structure: Any) -> Any:
    """What is alone in a tuple, as Keras takes it."""
    return structure[0] if isinstance(structure, tuple) and len(structure) == 1 else structure


def _as_tuples(structure: Any) -> Any:
    return tuple(structure) if isinstance(structure, list) else structure


def _shapes_of(element: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The shapes of what is in a batch, one after the other, without the number of examples."""
    return [(None, *one.shape[1:]) for one in tf.nest.flatten(element)]


def _common(shapes: list[tuple[Any, ...]] | None, others: list[tuple[Any, ...]], name: str) -> list[tuple[Any, ...]]:
    """Where shapes are equal those, and None where a size differs, as of texts that are padded batch by batch.

    Raises:
      DataError: batches of which one has other arrays, or arrays with more axes, than another.
    """
    if shapes is None:
        return others
    if list(map(len, shapes)) != list(map(len, others)):
        raise DataError(f"{name} has batches of shapes {shapes} and {others}: expected the same arrays in all of them")
    return [
        tuple(a if a == b else None for a, b in zip(*pair, strict=True)) for pair in zip(shapes, others, strict=True)
    ]


def _dataset(data: Any, first: tuple[Any, ...], shapes: Any) -> Any:
    """A dataset as it is, a Sequence as one, of the types of its first batch."""
    if isinstance(data, tf.data.Dataset):
        return data
    types = [one.dtype for one in tf.nest.flatten(first)]

    def batches() -> Iterator[Any]:
        for element in _elements(data, "the dataset"):
            arrays = zip(tf.nest.flatten(element), types, strict=True)
            yield tf.nest.pack_sequence_as(first, [one.astype(dtype) for one, dtype in arrays])

    specs = [tf.TensorSpec(shape, dtype) for shape, dtype in zip(shapes, types, strict=True)]
    return tf.data.Dataset.from_generator(batches, output_signature=tf.nest.pack_sequence_as(first, specs))


def _numbered(given: _Read, info: Info) -> Any:
    """Batches with examples as a network takes them, and targets in the one form that their task has."""

    def read(*element: Any) -> tuple[Any, ...]:
        element = _checked(element, info.name)
        for one, shape in zip(tf.nest.flatten(element), given.shapes, strict=True):
            if one.shape.rank is None:  # of a generator that says types alone
                one.set_shape(shape)
        x, y, *weights = element
        found = {name: _read_batch(one, info.targets[name]) for name, one in by_name(y).items()}
        if isinstance(y, dict):
            return (*as_float(x, found), *weights)
        return (*as_float(x, tuple(found.values()) if isinstance(y, tuple) else found[""]), *weights)

    return given.dataset.map(read)


def _read_batch(y: Any, target: Target) -> Any:
    """As `targets.read_target` has them."""
    rank, width = len(y.shape) - 1 - len(target.positions), y.shape[-1]
    several = target.task == "multilabel" or (target.task == "regression" and target.classes > 1)
    if rank and width == 1 and not several:
        y = y[..., 0]
    elif rank and target.task in ("classification", "binary"):
        y = tf.argmax(y, -1)
    return y if target.task == "regression" else tf.cast(y, tf.int64)
