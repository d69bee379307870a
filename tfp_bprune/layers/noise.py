"""Stateless noise: every random number of training is a function of (seed, layer, rank, step).

A run is therefore reproducible, resumes to the last bit from a checkpoint that holds the steps, and its workers
draw different noise, all without a generator whose state could be lost.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf

_process_rank = 0
_POOL, _WINDOW = 2**20, 2**19


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
    return tf.stack([tf.constant(derive(*key, _process_rank), tf.int64), tf.cast(step, tf.int64)])


def normal(shape: Any, seed: Any) -> Any:
    """Standard normals of `shape`, float32.

    On a CPU drawing so many normals costs more than the products of a layer. There they are the sum of two windows, at
    independent random places, of a pool of 2^20 normals in random order, over the root of 2. Every number so made has
    mean 0, variance 1 and a normal distribution to within 1e-5; all numbers of a call together are one of 2^40 vectors.

    Args:
      shape: static, or a vector; more numbers than half of the pool are put together from several pairs of windows, or
        drawn one by one where the shape is not known beforehand.
      seed: stateless seed [2].
    """
    static = tf.get_static_value(tf.convert_to_tensor(shape, tf.int32)) if not isinstance(shape, list) else shape
    if not _pool_pays():
        return tf.random.stateless_normal(shape, seed)
    if static is not None:
        count = math.prod(int(side) for side in static)
        sizes = [min(_WINDOW, count - start) for start in range(0, count, _WINDOW)]
        drawn = [_windows(size, seed, i) for i, size in enumerate(sizes)]
        return tf.reshape(tf.concat(drawn, 0) if len(drawn) != 1 else drawn[0], shape)
    count = tf.reduce_prod(shape)
    return tf.cond(
        count <= _WINDOW,
        lambda: tf.reshape(_windows(count, seed, 0), shape),
        lambda: tf.random.stateless_normal(shape, seed),
    )


def _windows(count: Any, seed: Any, number: int) -> Any:
    pool, pair = _pool(), tf.cast(seed, tf.int64) + tf.constant([0, number << 40], tf.int64)
    first, second = tf.unstack(tf.random.stateless_uniform([2], pair, 0, _POOL, dtype=tf.int32))
    return (tf.slice(pool, [first], [count]) + tf.slice(pool, [second], [count])) * math.sqrt(0.5)


@lru_cache(maxsize=1)
def _pool() -> Any:
    """Normal quantiles in random order, and the first half of them again, so that no window meets an end."""
    from scipy.special import ndtri

    values = ndtri((np.arange(_POOL) + 0.5) / _POOL)
    values = np.random.default_rng(0).permutation(values / values.std())
    with tf.init_scope():
        return tf.constant(np.concatenate([values, values[:_WINDOW]]), tf.float32)


def _pool_pays() -> bool:
    """Not on a GPU, and not in a SavedModel, which would hold the pool many times."""
    saving = keras.src.saving.legacy.saved_model.utils.in_tf_saved_model_scope()
    return not saving and not tf.config.list_logical_devices("GPU")


def signs(shape: Any, seed: Any, dtype: Any) -> Any:
    """Independent -1 and +1 with equal probability, of `shape`."""
    bits = tf.random.stateless_uniform(shape, seed, minval=0, maxval=2, dtype=tf.int32)
    return tf.cast(2 * bits - 1, dtype)
