"""Random numbers of draws: those of draw number i are a function of (seed, layer, i), whatever is drawn beside it.

So an answer depends neither on how many draws go through the network at once nor on the batch, and draws are made together
all the same: Philox (Salmon et al. 2011) gives four numbers for each state of its counter, and each draw has a range of
states for itself.
"""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.layers import noise

_PHILOX = 1
_GROUP = 4  # numbers of float32 for one state of the counter


def normal(index: Any, count: Any, width: Any, *key: int | str) -> Any:
    """Standard normals [count, width] of draws from number `index` on."""
    return _rows(tf.raw_ops.StatelessRandomNormalV2, index, count, width, key)


def uniform(index: Any, count: Any, width: Any, *key: int | str) -> Any:
    """Numbers in [0, 1), [count, width], of draws from number `index` on."""
    return _rows(tf.raw_ops.StatelessRandomUniformV2, index, count, width, key)


def _rows(operation: Any, index: Any, count: Any, width: Any, key: tuple[int | str, ...]) -> Any:
    groups = -(-width // _GROUP)
    start = tf.cast(index, tf.int64) * tf.cast(groups, tf.int64)
    counter = tf.bitcast(tf.stack([start, tf.zeros([], tf.int64)]), tf.uint64)
    whole = tf.stack([count, _GROUP * groups])
    drawn = operation(shape=whole, key=tf.constant([noise.derive(*key)], tf.uint64), counter=counter, alg=_PHILOX)
    return drawn[:, :width]
