"""The mean over draws of a network's weights, in as few passes as there can be, and no longer than it takes.

An example is settled once its class is beyond doubt. The draws of the difference D in probability between the class that
leads and another one, each in [-1, 1], are bets: wealth = product of (1 + lambda D), averaged over a few lambda. If the
other class were ahead, or level, in the mean over all draws that could be made, the wealth would be a supermartingale and
exceed 1 / alpha with a probability of at most alpha (Ville's inequality; Waudby-Smith and Ramdas 2024, arXiv 2010.09686).
So an example whose wealth against every other class has exceeded it is settled, with that probability of error, for any
distribution and however often one looks. The class bet on is settled before any draw: that of the network at the mean of
its weights, or, where that is not told, that of the first draw, on which no bet is placed then. Draws share their weights
over a batch, so an odd first draw is odd for many examples, which then have all draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tfp_bprune._keras import tf

_ROWS = 4096  # examples times draws that go through the network at once
_BLOCK = 12  # draws between two looks
_STAKES = (0.3, 0.6, 0.9)

Run = Callable[[Any, Any, Any], Any]
Parts = Callable[[Any], list[Any]]


def total(run: Run, parts: Parts, samples: int, batched: bool, batch: Any) -> list[Any]:
    """Sums over draws of each of `parts`.

    Args:
      run: outputs [count, examples, ...] of draws from number `index` on: `run(index, count, rows)`, rows None for all.
      parts: of these outputs, whatever they are, tensors [count, examples, ...].
      batched: whether `run` makes several draws at once.
      batch: how many examples there are.
    """
    at_once = tf.clip_by_value(_ROWS // tf.maximum(batch, 1), 1, samples) if batched else tf.constant(1)

    def added(index: Any, count: Any) -> list[Any]:
        return [tf.reduce_sum(part, 0) for part in parts(run(index, count, None))]

    def body(index: Any, *sums: Any) -> tuple[Any, ...]:
        count = tf.minimum(at_once, samples - index)
        return (index + count, *[s + n for s, n in zip(sums, added(index, count), strict=True)])

    start = (at_once, *added(tf.constant(0), at_once))
    return list(tf.while_loop(lambda index, *_: index < samples, body, start, parallel_iterations=1)[1:])


def total_until_settled(
    run: Run, parts: Parts, rivals: Parts, samples: int, batched: bool, error_rate: float, leads: Sequence[Any] = ()
) -> tuple[list[Any], Any]:
    """As `total`: sums over as many draws as each example takes, and their numbers [batch].

    Args:
      rivals: of outputs, probabilities [count, examples, ..., classes], a tensor for each output. An example is settled
        once it is so in all of them and at all positions.
      error_rate: with which a class may be taken for settled in favour of another than all draws would give.
      leads: of each output, numbers [examples, ..., classes] whose largest is at the class to bet on, which no draw has a
        part in; by default that of the first draw.
    """
    block = min(_BLOCK, samples) if batched else 1
    outputs = run(tf.constant(0), tf.constant(block), None)
    sums, first = [tf.reduce_sum(part, 0) for part in parts(outputs)], rivals(outputs)
    if not leads:
        leads, first = [one[0] for one in first], [one[1:] for one in first]
    candidates = [tf.one_hot(tf.argmax(one, -1), one.shape[-1]) for one in leads]
    wealths = [_bets(one, candidate) for one, candidate in zip(first, candidates, strict=True)]
    counts, outcomes = tf.fill(tf.shape(candidates[0])[:1], block), len(wealths)

    def is_open(wealths: Sequence[Any]) -> Any:
        pairs = zip(wealths, candidates, strict=True)
        return tf.reduce_any([_open(wealth, candidate, error_rate) for wealth, candidate in pairs], 0)

    def going_on(index: Any, counts: Any, *state: Any) -> Any:
        return tf.logical_and(index < samples, tf.reduce_any(is_open(state[:outcomes])))

    def body(index: Any, counts: Any, *state: Any) -> tuple[Any, ...]:
        wealths, sums = state[:outcomes], state[outcomes:]
        rows = tf.where(is_open(wealths))
        count = tf.minimum(block, samples - index)
        outputs = run(index, count, rows[:, 0])
        bets = [
            _bets(one, tf.gather(candidate, rows[:, 0]))
            for one, candidate in zip(rivals(outputs), candidates, strict=True)
        ]
        new = [*bets, *(tf.reduce_sum(part, 0) for part in parts(outputs))]
        added = [tf.tensor_scatter_nd_add(s, rows, n) for s, n in zip((*wealths, *sums), new, strict=True)]
        counts = tf.tensor_scatter_nd_add(counts, rows, tf.fill([tf.shape(rows)[0]], count))
        return (index + count, counts, *added)

    start = (tf.constant(block), counts, *wealths, *sums)
    _, counts, *state = tf.while_loop(going_on, body, start, parallel_iterations=1)
    return state[outcomes:], counts


def _bets(probabilities: Any, candidate: Any) -> Any:
    """Logarithms [examples, ..., classes, stakes] of what draws [count, examples, ..., classes] multiply the wealth by."""
    lead = tf.reduce_sum(probabilities * candidate, -1, keepdims=True) - probabilities
    return tf.stack([tf.reduce_sum(tf.math.log1p(stake * lead), 0) for stake in _STAKES], -1)


def _open(wealth: Any, candidate: Any, error_rate: float) -> Any:
    """Whether each example is still to be decided [examples]."""
    logarithm = tf.reduce_logsumexp(wealth, -1) - math.log(len(_STAKES))
    undecided = (logarithm < -math.log(error_rate)) & (candidate < 0.5)
    return tf.reduce_any(undecided, list(range(1, len(candidate.shape))))
