"""Stateless noise: every random number of training is a function of (seed, layer, rank, step).

A run is therefore reproducible, resumes to the last bit from a checkpoint that holds the steps, and its workers
draw different noise, all without a generator whose state could be lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import BpruneError, Json

_process_rank = 0
_here = threading.local()
_PART_STEPS = 2**40  # more than a training has steps
_POOL, _GRID = 2**20, 16


def set_rank(rank: int) -> None:
    """Makes this process draw the noise of worker `rank`; call it before the model is traced."""
    global _process_rank
    _process_rank = rank


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key of integers and names; different keys give unrelated seeds."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_pair(step: Any, *key: int | str) -> Any:
    """The seed [2] of stateless TensorFlow operations for `key` at `step`, an integer variable or tensor."""
    return tf.stack([tf.constant(derive(*key, _rank()), tf.int64), tf.cast(step, tf.int64)])


def _rank() -> int:
    """This process's; under tf.distribute that of the replica whose step is traced, which are told apart in one process too."""
    replica = tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None
    return _process_rank + (0 if replica is None else int(tf.get_static_value(replica.replica_id_in_sync_group)))


def of_each_replica() -> Json:
    """Options of `add_weight` for what each replica of tf.distribute counts or notes for itself; the first one's is stored."""
    return {
        "synchronization": tf.VariableSynchronization.ON_READ,
        "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
        "trainable": False,
    }


@contextlib.contextmanager
def part(number: Any) -> Iterator[None]:
    """What is called in it is part `number`, an integer tensor from 0, of a batch that is taken in parts.

    All parts of a batch see the weights that the whole would see; examples get noise of their own (`example_seed_pair`).
    """
    _here.part = number
    try:
        yield
    finally:
        _here.part = None


def example_seed_pair(step: Any, *key: int | str) -> Any:
    """As `seed_pair`, for what is drawn for each example: other numbers in each part of a batch."""
    number = getattr(_here, "part", None)
    if number is not None:
        step = tf.cast(step, tf.int64) + _PART_STEPS * tf.cast(number, tf.int64)
    return seed_pair(step, *key)


def next_step(counter: Any, layer_name: str) -> Any:
    """Counts a draw of a layer by its variable `counter`; the step that keys its noise.

    Raises:
      BpruneError: within `tf.vectorized_map`, whose iterations would all have the step, and so the noise, of one.
    """
    if _is_vectorized():
        raise BpruneError(
            f"layer {layer_name!r} counts its draws, which tf.vectorized_map cannot do for each iteration: use tf.map_fn, or "
            "call the model on all examples as one batch, once for each draw"
        )
    number = getattr(_here, "part", None)
    return counter.assign_add(1) if number is None else counter.assign_add(tf.cast(tf.equal(number, 0), tf.int64))


def _is_vectorized() -> bool:
    """Whether what is built now is the body of `tf.vectorized_map`, or a function called in it."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        scope = graph.get_name_scope().split("/")
        bodies = ("/".join(scope[: i + 1]) for i, part in enumerate(scope) if part.startswith("loop_body"))
        # TensorFlow's vectorizer begins each body with the number of the iteration, and nothing else tells of it.
        if any(_has_operation(graph, f"{body}/PlaceholderWithDefault") for body in bodies):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def _has_operation(graph: Any, name: str) -> bool:
    try:
        return graph.get_operation_by_name(name) is not None
    except KeyError:
        return False


def normal(shape: Any, seed: Any) -> Any:
    """Standard normals of `shape`, float32.

    On a CPU drawing so many normals costs more than the products of a layer. There they are the sum of two windows, at
    independent random places, of a pool of 2^20 normals in random order, over the root of 2. Every number so made has
    mean 0, variance 1 and a normal distribution to within 1e-5; all numbers of a call together are one of 2^32 vectors.

    Args:
      shape: static, or a vector; more numbers than the pool's are put together from several pairs of windows, or
        drawn one by one where the shape is not known beforehand.
      seed: stateless seed [2].
    """
    if not pool_pays():
        return tf.random.stateless_normal(shape, seed)
    return _of_windows(shape, seed, tf.add, lambda: tf.random.stateless_normal(shape, seed))


def signs(shape: Any, seed: Any, dtype: Any) -> Any:
    """Independent -1 and +1 with equal probability, of `shape`; arguments as in `normal`.

    From the pool they are the signs of two windows multiplied: it holds no 0.
    """

    def drawn() -> Any:
        return tf.cast(2 * tf.random.stateless_uniform(shape, seed, minval=0, maxval=2, dtype=tf.int32) - 1, dtype)

    if not pool_pays():
        return drawn()
    return _of_windows(shape, seed, lambda first, second: tf.cast(tf.sign(first * second), dtype), drawn)


def _of_windows(shape: Any, seed: Any, combine: Callable[[Any, Any], Any], one_by_one: Callable[[], Any]) -> Any:
    known = tf.get_static_value(tf.convert_to_tensor(shape, tf.int32))
    if known is not None:
        sides = [int(side) for side in known]
        return _combined(windows(math.prod(sides), seed), sides, combine)
    count = tf.reduce_prod(shape)
    return tf.cond(
        count <= _POOL, lambda: tf.reshape(combine(*_pair(_places(2, seed), count)), shape), lambda: one_by_one()
    )


def windows(count: int, seed: Any) -> list[Any]:
    """The windows of which `from_windows` makes `count` normals: views of the pool, nothing is computed yet."""
    places = _places(2 * -(-count // _POOL), seed)
    # A slice that begins and ends on the grid is not copied.
    sizes = [_GRID * -(-min(_POOL, count - start) // _GRID) for start in range(0, count, _POOL)]
    return [view for i, size in enumerate(sizes) for view in _pair(places[2 * i : 2 * i + 2], size)]


def from_windows(views: list[Any], shape: Sequence[int]) -> Any:
    """Standard normals of a static `shape` from its `windows`."""
    return _combined(views, shape, tf.add)


def _combined(views: list[Any], shape: Sequence[int], combine: Callable[[Any, Any], Any]) -> Any:
    parts = [combine(first, second) for first, second in zip(views[::2], views[1::2], strict=True)]
    return tf.reshape((parts[0] if len(parts) == 1 else tf.concat(parts, 0))[: math.prod(shape)], shape)


def _places(count: int, seed: Any) -> list[Any]:
    """Starts of `count` windows, each [1]."""
    starts = _GRID * tf.random.stateless_uniform([count], seed, 0, _POOL // _GRID, dtype=tf.int32)
    return tf.split(starts, count)


def _pair(places: list[Any], count: Any) -> list[Any]:
    return [tf.slice(_pool(), place, tf.reshape(count, [1])) for place in places]


@lru_cache(maxsize=1)
def _pool() -> Any:
    """Normal quantiles over the root of 2, in random order, and all of them again, so that no window meets an end.

    Windows start on a grid, so a number meets only every 16th place: those hold all quantiles, for each of the 16.
    """
    from scipy.special import ndtri

    values = ndtri((np.arange(_POOL // _GRID) + 0.5) * _GRID / _POOL)
    columns = np.repeat(values[:, None] / values.std() * math.sqrt(0.5), _GRID, 1)
    pool = np.random.default_rng(0).permuted(columns, axis=0).ravel()
    with tf.init_scope():
        return tf.constant(np.concatenate([pool, pool]), tf.float32)


def pool_pays() -> bool:
    """Whether noise comes from the pool: not on a GPU, and not in a SavedModel, which would hold the pool many times."""
    saving = keras.src.saving.legacy.saved_model.utils.in_tf_saved_model_scope()
    return not saving and not tf.config.list_logical_devices("GPU")
