"""Data by name, as `tf.data` batches for `model.fit` and as arrays for everything else.

`load` reads what is registered (see `datasets`), and any image-classification dataset of TensorFlow Datasets that is
prepared on disk. The validation split is taken out of the training split; the test split is for final numbers only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import Arrays, by_name, count, leaves, rows, shapes
from tfp_bprune.data.augment import augment, check_augmentation, draws
from tfp_bprune.data.datasets import DATASETS, pair_of, registered
from tfp_bprune.data.info import Info, described_arrays, read_arrays
from tfp_bprune.data.prepared import prepared
from tfp_bprune.data.targets import SaidTask, Target
from tfp_bprune.types import Augmentation, DataError, Json, check_number, if_percent

EVALUATION_BATCH = 1000


@dataclass(frozen=True, repr=False)
class Split:
    """Examples `x` [n, ...] in their raw units and targets `y` [n], or [n, ...] for labels of each position or several.

    Of several inputs or outputs, a tuple or a dictionary of such arrays.
    """

    name: str
    x: Arrays
    y: Arrays

    def __len__(self) -> int:
        return count(self.x)

    def __repr__(self) -> str:
        return f"Split({self.name!r}: {len(self):,} examples {shapes(self.x)}, targets {shapes(self.y)})"

    def rows(self, chosen: Any) -> Split:
        """The examples with these numbers, or in this slice."""
        return Split(self.name, rows(self.x, chosen), rows(self.y, chosen))

    def called(self, name: str) -> Split:
        """The same under another name."""
        return Split(name, self.x, self.y)

    def renamed(self, inputs: Callable[[Any], Any], targets: Callable[[Any], Any]) -> Split:
        """The same with inputs and targets under other names."""
        return Split(self.name, inputs(self.x), targets(self.y))

    @property
    def parallel(self) -> Any:
        """How many batches `taker` makes at once; None for one after the other."""
        return None

    def taker(self) -> Callable[[Any], tuple[Any, Any]]:
        """A function, to be called where batches are made, that gives examples and targets by their numbers."""
        x, y = (tf.nest.map_structure(tf.constant, arrays) for arrays in (self.x, self.y))
        return lambda numbers: tf.nest.map_structure(lambda one: tf.gather(one, numbers), (x, y))

    def batches(self, batch_size: int = EVALUATION_BATCH) -> tf.data.Dataset:
        """All examples once, in order, as batches [b, ...] with their targets [b]: float32, but for text and for whole
        numbers of more than a byte, such as the tokens of a text, which stay as they are."""
        dataset = tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(batch_size)
        return dataset.map(as_float).prefetch(1)


@dataclass(frozen=True, repr=False)
class Splits:
    """The three splits and how training walks through them.

    `train`, `valid` and `test` are `tf.data.Dataset`s for `model.fit`; `examples("train")` gives the arrays. Only what
    `train` and `epochs` give is augmented. After `shard` they hold one worker's examples. `request` says how `load` loads
    them again; it is empty for arrays.
    """

    parts: dict[str, Split]
    info: Info
    batch_size: int
    seed: int = 0
    rank: int = 0
    workers: int = 1
    augmentation: Augmentation = "none"
    request: Json = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{name} {len(part) if name == 'test' else self.seen(name):,}" for name, part in self.parts.items()
        )
        return f"Splits({self.info!r}; {sizes}; batches of {self.batch_size})"

    def examples(self, name: str) -> Split:
        """The arrays of the split `name`: "train", "valid" or "test".

        Raises:
          DataError: there is no such split, as in a file that holds examples to score on and no others.
        """
        if name not in self.parts:
            raise DataError(f"{self.info.name} has no split {name!r} here: expected one of {', '.join(self.parts)}")
        return self.parts[name]

    @property
    def train_size(self) -> int:
        """Number of training examples of the whole job: the N of the evidence lower bound."""
        return len(self.parts["train"])

    @property
    def steps(self) -> int:
        """Batches an epoch, the same for every worker: the M of the evidence lower bound."""
        # Never so many that a worker would be left without an example in some batch.
        return min(-(-self.train_size // (self.batch_size * self.workers)), self.train_size // self.workers)

    def seen(self, name: str) -> int:
        """How many examples of the split "train" or "valid" this worker sees in an epoch."""
        if name == "valid":
            return len(self._valid)
        sizes = np.diff(self._bounds)
        return int(sum(len(range(self.rank, size, self.workers)) for size in sizes))

    @property
    def _bounds(self) -> np.ndarray:
        """Where the global batches of an epoch begin and end [steps + 1]; their sizes differ by one at most, so no small
        last batch weighs more than others."""
        return np.arange(self.steps + 1, dtype=np.int64) * self.train_size // self.steps

    @property
    def _valid(self) -> Split:
        """This worker's part of the validation split; all of it, where there is not one example for each."""
        split = self.parts["valid"]
        mine = slice(self.rank, None, self.workers if len(split) >= self.workers else None)
        return split.rows(mine) if mine.step else split

    @property
    def train(self) -> tf.data.Dataset:
        """One epoch of shuffled batches; every pass over it is shuffled anew."""
        numbers = tf.data.Dataset.random(seed=self.seed, rerandomize_each_iteration=True)
        return numbers.take(1).flat_map(self._epoch).apply(tf.data.experimental.assert_cardinality(self.steps))

    @property
    def valid(self) -> tf.data.Dataset:
        """The validation split, in order; of several workers each has a part, in as many batches as the others."""
        mine = self._valid
        batches = -(-len(self.parts["valid"]) // (EVALUATION_BATCH * self.workers))
        return mine.batches(EVALUATION_BATCH if mine is self.parts["valid"] else -(-len(mine) // batches))

    @property
    def test(self) -> tf.data.Dataset:
        """The test split, in order."""
        return self.parts["test"].batches()

    def epochs(self, start: int = 0) -> tf.data.Dataset:
        """Endless training batches from epoch `start` on; epoch e is shuffled by (seed, e) alone, so that a resumed
        run sees what an unbroken one would have seen."""
        return tf.data.Dataset.counter(start).flat_map(self._epoch).prefetch(2)

    def shard(self, rank: int, workers: int) -> Splits:
        """The same splits as worker `rank` of `workers` sees them: disjoint parts of each global batch, none lost."""
        if self.train_size < workers:
            raise DataError(
                f"{self.train_size} training examples cannot be shared by {workers} workers: use fewer workers"
            )
        return replace(self, rank=rank, workers=workers)

    def merged(self, count: int) -> Splits:
        """The same in batches `count` times as large."""
        return replace(self, batch_size=count * self.batch_size)

    def replicas(self, count: int) -> list[Splits]:
        """What this worker and those after it see, `count` of them."""
        return [replace(self, rank=self.rank + i) for i in range(count)]

    def _epoch(self, epoch: Any) -> tf.data.Dataset:
        """Batches of one epoch: (x, y), and of several workers (x, y, weight), by which the mean of the workers' means
        is the mean over the global batch although one worker's part may be larger by one example."""
        split, steps = self.parts["train"], self.steps
        taken, bounds = split.taker(), tf.constant(self._bounds)
        order = tf.random.experimental.stateless_shuffle(
            tf.range(len(split)), tf.stack([tf.cast(self.seed, tf.int64), epoch])
        )
        numbers = draws(self.augmentation, len(split), self.seed, epoch)

        def batch(i: Any) -> tuple[Any, ...]:
            everyone = order[bounds[i] : bounds[i + 1]]
            chosen = everyone[self.rank :: self.workers]
            examples, targets = taken(chosen)
            if self.augmentation != "none":
                examples = augment(self.augmentation, examples, tf.gather(numbers, chosen))
            mine = as_float(examples, targets)
            if self.workers == 1:
                return mine
            weight = self.workers * tf.size(chosen) / tf.size(everyone)
            return *mine, tf.fill([tf.size(chosen)], tf.cast(weight, tf.float32))

        return tf.data.Dataset.range(steps).map(batch, num_parallel_calls=split.parallel)


def as_float(x: Any, y: Any) -> tuple[Any, Any]:
    """Examples of a batch as a network takes them, and targets as they are."""
    return tf.nest.map_structure(_input, x), y


def _input(x: Any) -> Any:
    """As a network takes it: numbers as float32; text, and whole numbers that could be tokens, as they are."""
    kept = x.dtype == tf.string or (x.dtype.is_integer and x.dtype.size > 1)
    return x if kept else tf.cast(x, tf.float32)


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 100,
    validation_fraction: float = 0.1,
    seed: int = 0,
    augmentation: Augmentation = "none",
    streaming: bool = False,
) -> Splits:
    """Loads a dataset as train, validation and test splits.

    Args:
      name: a registered dataset ("digits", "diabetes" and those of `dataset`), or an image classification dataset of TensorFlow
        Datasets ("mnist", "cifar10", ...).
      data_dir: folder of TensorFlow Datasets; by default the environment variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      batch_size: examples in a training step of one worker.
      validation_fraction: fraction of the training split to hold out, in [0, 1).
      seed: determines the validation split and the order of training.
      augmentation: random change of training images in each epoch: "none", "shift", or "shift_flip" (shifted and mirrored).
      streaming: leave the examples on disk and read them batch by batch, for datasets that TensorFlow Datasets prepared as tfrecord.
        The batches are the same as without. `examples(...)` still reads a split into memory.

    Returns:
      `Splits`: `train`, `valid` and `test` are `tf.data.Dataset`s for `model.fit`; `examples("test")` has the arrays `x` and `y` of
      a split; `info` describes the data for `build`; `train_size` is N.

    Raises:
      DataError: the dataset is unknown, absent or not an image classification, or a split would be empty.

    Example:
      data = bp.load("digits", batch_size=32)
    """
    check_order(batch_size, seed)  # before anything that takes time
    place = None if data_dir is None else os.path.abspath(data_dir)
    request = {"dataset": name, "data_dir": place, "validation_fraction": validation_fraction}
    if streaming:
        from tfp_bprune.data.streaming import streamed  # which makes splits of this module's

        parts, info = streamed(name, _data_dir(data_dir), validation_fraction, seed)
        check_augmentation(augmentation, info.input_shape)
        return Splits(parts, info, batch_size, seed, augmentation=augmentation, request=request | {"streaming": True})
    read = registered if name in DATASETS else prepared
    train, test, info = read(name, _data_dir(data_dir))
    splits = from_arrays(
        train,
        test,
        info=info,
        batch_size=batch_size,
        validation_fraction=validation_fraction,
        seed=seed,
        augmentation=augmentation,
    )
    return replace(splits, request=request)


def from_arrays(
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    info: Info | None = None,
    batch_size: int = 100,
    validation_fraction: float = 0.1,
    seed: int = 0,
    augmentation: Augmentation = "none",
    task: SaidTask = None,
) -> Splits:
    """Makes train, validation and test splits of arrays in memory; further arguments and errors are those of `load`.

    Args:
      train: a pair (x, y): examples [n, ...] in their raw units, and targets. The validation split is taken from it. Arrays,
        tensors, lists and pandas objects are accepted; for several inputs or outputs a tuple, a list, or a dictionary by the
        names that the network has for them. Targets are [n], [n, 1] or one-hot rows, booleans or numbers; or [n, ...]: a label
        for each pixel or step, several labels, or several numbers.
      test: the same, for final scores only.
      info: what a network needs to know of the data; by default `info_of(*train, task=task)`.
      task: what the targets are: "classification", "binary", "multilabel" or "regression"; for several outputs a dictionary by name.
        By default it follows from the targets; see `info_of`.

    Raises:
      DataError: the targets do not determine the task, and `task` is not given.

    Example:
      data = bp.from_arrays((x_train, y_train), (x_test, y_test), batch_size=32)
    """
    check_order(batch_size, seed)
    (train_x, train_y), (test_x, test_y) = pair_of(train, "train"), pair_of(test, "test")
    if info is None:
        train_x, train_y, info = described_arrays(train_x, train_y, "arrays", task)
    else:
        if task is not None and task != info.task:
            raise DataError(
                f"task={task!r} contradicts info, by which {info.name} is a {info.task}: leave one of them out"
            )
        train_x, train_y = read_arrays(train_x, train_y, info, task)
    test_x, test_y = read_arrays(test_x, test_y, info, task)
    check_augmentation(augmentation, info.input_shape)
    if augmentation != "none" and info.inputs is not None:
        raise DataError(
            f"augmentation {augmentation!r} is for one input, {info.name} has {len(info.inputs)}: leave it out"
        )
    valid_rows, train_rows = held_out(info.name, count(train_x), validation_fraction, seed, count(test_x))
    info = with_target_scale(info, rows(train_y, train_rows))
    info = with_fingerprint(info, train_x, train_y, test_x, test_y)
    whole = Split("train", train_x, train_y)
    parts = {
        "train": whole.rows(train_rows),
        "valid": whole.rows(valid_rows).called("valid"),
        "test": Split("test", test_x, test_y),
    }
    return Splits(parts, info, batch_size, seed, augmentation=augmentation)


def held_out(name: str, n: int, fraction: float, seed: int, test: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the examples to validate on and of those to train on, of `n`.

    Raises:
      DataError: the fraction is none, or a split would be empty.
    """
    check_number("validation_fraction", fraction, DataError)
    if not 0 <= fraction < 1:
        raise DataError(f"validation_fraction must be in [0, 1), got {fraction}{if_percent(fraction)}")
    cut = round(fraction * n)
    _check_sizes(name, n, cut, fraction, test)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[:cut]), np.sort(order[cut:])


def _check_sizes(name: str, n: int, held_out: int, fraction: float, test: int) -> None:
    if fraction > 0 and held_out == 0:
        raise DataError(f"the validation split of {name} is empty: {fraction} of {n} examples; use a larger fraction")
    if n - held_out < 1:
        raise DataError(
            f"the training split of {name} is empty: {n} examples, {held_out} held out; use a smaller fraction"
        )
    if test == 0:
        raise DataError(f"the test split of {name} is empty: expected at least one example")


def check_order(batch_size: int, seed: int) -> None:
    """Refuses batches and seeds that are none.

    Raises:
      DataError: naming which.
    """
    check_number("batch_size", batch_size, DataError, whole=True)
    check_number("seed", seed, DataError, whole=True)
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")
    if seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}")


def with_target_scale(info: Info, y: Arrays) -> Info:
    """With the mean and deviation of a regression's training targets."""
    scaled = {name: _scaled(info.targets[name], one) for name, one in by_name(y).items()}
    if info.outputs is not None:
        return replace(info, outputs=scaled)
    return replace(info, target_loc=scaled[""].loc, target_scale=scaled[""].scale)


def _scaled(target: Target, y: np.ndarray) -> Target:
    if target.task != "regression":
        return target
    return replace(target, loc=float(y.mean()), scale=float(y.std()) or 1.0)


def with_fingerprint(info: Info, *splits: Arrays) -> Info:
    """With a hash of all examples and targets, in their order."""
    digest = hashlib.sha256()
    for arrays in splits:
        if isinstance(arrays, dict):
            digest.update(str(list(arrays)).encode())
        for array in leaves(arrays):
            digest.update(str((array.shape, array.dtype)).encode())
            digest.update(array.tobytes() if array.dtype.kind in "US" else np.ascontiguousarray(array).data)
    return replace(info, fingerprint=digest.hexdigest())


def _data_dir(given: str | os.PathLike[str] | None) -> Path:
    return Path(given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
