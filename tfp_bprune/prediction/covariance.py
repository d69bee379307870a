"""What the outputs of a network have in common: their covariance, followed back to where noise entered.

Each noise reaches the outputs through the mean slopes of the layers on its way, and two outputs that one noise reaches
vary together: cov(a, b) = sum over noises of variance x slope of a x slope of b. Independent activations miss this; with
two hidden layers they account for about half of the mutual information.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.lower import LoweredPositions
from tfp_bprune.prediction.passes import Sources
from tfp_bprune.prediction.value import Value

LEADING = 3
_ALL = 5  # of up to as many classes each is followed back to the noise: one more costs no more than what stands for it
_LEAST = 1e-12
_ROUNDING = 1e-5  # of a variance, relative, in sums of float32


def leading(logits: Value, count: int) -> Any:
    """One-hot rows [batch, count, classes] of the classes that could be first: by mean plus one standard deviation."""
    reach = logits.mean + tf.sqrt(logits.variance)
    return tf.one_hot(tf.math.top_k(reach, count).indices, logits.mean.shape[-1])


def followed(logits: Value) -> Any:
    """Directions [batch, count, classes] that are followed back to the noise.

    Each class by itself where there are few; else those that could be first, and the mean of the others: a softmax does not
    see what all logits have in common, which would pass for information if each of the others moved by itself.
    """
    classes = logits.mean.shape[-1]
    if classes <= _ALL:
        return tf.tile(tf.one_hot(tf.range(classes), classes)[None], [tf.shape(logits.mean)[0], 1, 1])
    chosen = leading(logits, LEADING)
    others = (1.0 - tf.reduce_sum(chosen, 1, keepdims=True)) / (classes - LEADING)
    return tf.concat([chosen, others], 1)


def covariance(outputs: Value, directions: Any, sources: Sources) -> list[list[Any]]:
    """Covariances [batch] of the outputs along directions [batch, count, outputs], as the lower triangle of a matrix.

    Args:
      outputs: rows, with the tensors from which the sources can be reached back.
    """
    points = [point for point, *_ in sources.points + sources.shared]
    along = [directions[:, i] for i in range(directions.shape[1])]
    slopes = [_scaled(tf.gradients(outputs.mean, points, grad_ys=direction), sources) for direction in along]
    return [[_common(slopes[i], slopes[j], sources) for j in range(i + 1)] for i in range(len(slopes))]


def factor(lower: list[list[Any]]) -> list[list[Any]]:
    """The Cholesky factor of matrices [batch] given and returned as lists of their lower triangles.

    Written out because the small formats have no operation for it.
    """
    found: list[list[Any]] = []
    inverses: list[Any] = []
    for i, row in enumerate(lower):
        made: list[Any] = []
        for j in range(i):
            rest = row[j] - sum((made[k] * found[j][k] for k in range(j)), 0.0)
            made.append(rest * inverses[j])
        rest = row[i] - sum((tf.square(value) for value in made), 0.0)
        # Where the outputs before explain a variance wholly, what is left is rounding, and must not be divided by.
        explained = rest <= _ROUNDING * row[i] + _LEAST
        rest = tf.maximum(rest, _LEAST)
        inverses.append(tf.where(explained, tf.zeros_like(rest), tf.math.rsqrt(rest)))
        found.append([*made, tf.sqrt(rest)])
    return found


def drawn(logits: Value, directions: Any, lower: list[list[Any]], points: np.ndarray) -> Any:
    """Logits [classes, draws, batch] with the covariance of the `followed` directions, given as its lower triangle.

    Args:
      points: [draws, `width_of(classes)`], standard normal.
    """
    classes, count = directions.shape[2], directions.shape[1]
    together, apart = points[:, :count], points[:, count:]
    places = tf.transpose(tf.cast(directions > 0, tf.float32), [1, 2, 0])[:, :, None]  # [count, classes, 1, batch]
    moved = tf.transpose(logits.mean)[:, None]
    for i, row in enumerate(factor(lower)):
        shift = sum(together[:, j, None] * value for j, value in enumerate(row))
        moved += shift[None] * places[i]
    if classes > _ALL:
        moved += _apart(logits, places[-1], lower, apart)
    return moved


def width_of(classes: int) -> int:
    """How many normal numbers make a draw of as many logits."""
    return classes if classes <= _ALL else LEADING + 1 + classes


def _apart(logits: Value, others: Any, lower: list[list[Any]], points: np.ndarray) -> Any:
    """What moves each of the others away from their mean: sums to 0 over them.

    A variance that was carried forward takes positions in a window for one, and is too large by as much as those of the
    leading logits are, which are known both ways.
    """
    variances, number = tf.transpose(logits.variance)[:, None], logits.mean.shape[-1] - LEADING
    forward = tf.reduce_sum(variances * (1.0 - others), 0)
    ratio = tf.minimum(sum(lower[i][i] for i in range(LEADING)) / (forward + _LEAST), 1.0)
    rest = tf.maximum(ratio * variances - lower[-1][-1], 0.0) * others * (number / (number - 1))
    moved = points.T[:, :, None] * tf.sqrt(rest)
    return moved - others * (tf.reduce_sum(moved, 0, keepdims=True) / number)


def _scaled(slopes: list[Any], sources: Sources) -> list[Any]:
    """The slopes at each point times the standard deviation of its noise; those of shared noise as they are."""
    deviations = [tf.sqrt(variance) for _, variance, _ in sources.points]
    own = [None if s is None else s * d for s, d in zip(slopes, deviations, strict=False)]
    return own + slopes[len(deviations) :]


def _common(one: list[Any], other: list[Any], sources: Sources) -> Any:
    parts = []
    for (_, _, columns), a, b in zip(sources.points, one, other, strict=False):
        if a is not None:
            parts.append(_sum_of_each(a * b, columns))
    rest = len(sources.points)
    for (_, layer, *inputs), a, b in zip(sources.shared, one[rest:], other[rest:], strict=True):
        if a is not None:
            parts.append(_common_of_weights(layer, inputs, a, b))
    return sum(parts[1:], parts[0])


def _sum_of_each(tensor: Any, columns: bool) -> Any:
    """The sum of an example's numbers [batch]; as a product with ones, which is much the faster."""
    if columns:
        return tf.matmul(tf.ones([1, tensor.shape[0]]), tensor)[0]
    if not tensor.shape[1:].is_fully_defined():  # as many positions as an input has
        return tf.reduce_sum(tensor, list(range(1, len(tensor.shape))))
    flat = tf.reshape(tensor, [tf.shape(tensor)[0], math.prod(tensor.shape[1:])])
    return tf.matmul(flat, tf.ones([flat.shape[1], 1]))[:, 0]


def _common_of_weights(layer: LoweredPositions, inputs: list[Any], one: Any, other: Any) -> Any:
    """The share of one noise on the weights, which enters at every position that reads them.

    Of inputs x it is the variance of each weight times E[(sum over positions of slope x)^2]: that of their means, and that
    of their deviations, which one noise before moved at all positions of a channel.
    """
    return layer.common(inputs, one, other)
