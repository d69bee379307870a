"""Stateless noise: every random number of training is a function of (seed, layer, rank, step).

A run is therefore reproducible, resumes to the last bit from a checkpoint that holds the steps, and its workers
draw different noise, all without a generator whose state could be lost.
"""

from __future__ import annotations

import hashlib
from typing import Any

from tfp_bprune._keras import tf

_process_rank = 0


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


def signs(shape: Any, seed: Any, dtype: Any) -> Any:
    """Independent -1 and +1 with equal probability, of `shape`."""
    bits = tf.random.stateless_uniform(shape, seed, minval=0, maxval=2, dtype=tf.int32)
    return tf.cast(2 * bits - 1, dtype)
