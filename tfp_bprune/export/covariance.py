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
from tfp_bprune.export.lower import LoweredPositions, by_position
from tfp_bprune.export.passes import Sources
from tfp_bprune.export.value import Value

_LEAST = 1e-12
_ROUNDING = 1e-5  # of a variance, relative, in sums of float32


def leading(logits: Value, count: int) -> Any:
    """One-hot rows [batch, count, classes] of the classes that could be first: by mean plus one standard deviation."""
    reach = logits.mean + tf.sqrt(logits.variance)
    return tf.one_hot(tf.math.top_k(reach, count).indices, logits.mean.shape[-1])


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


def drawn(logits: Value, chosen: Any, factors: list[list[Any]], points: np.ndarray) -> Any:
    """Logits [classes, draws, batch]: the chosen ones with their covariance, the others by themselves.

    Args:
      points: [draws, chosen + classes], standard normal.
    """
    count = chosen.shape[1]
    together, apart = points[:, :count], points[:, count:]
    places = tf.transpose(chosen, [1, 2, 0])[:, :, None]  # [chosen, classes, 1, batch]
    others = tf.transpose(tf.sqrt(logits.variance))[:, None] * (1.0 - tf.reduce_sum(places, 0))
    moved = tf.transpose(logits.mean)[:, None] + apart.T[:, :, None] * others
    for i, row in enumerate(factors):
        shift = sum(together[:, j, None] * value for j, value in enumerate(row))
        moved += shift[None] * places[i]
    return moved


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
    for (_, layer, inputs), a, b in zip(sources.shared, one[rest:], other[rest:], strict=True):
        if a is not None:
            parts.append(_common_of_weights(layer, inputs, a, b))
    return sum(parts[1:], parts[0])


def _sum_of_each(tensor: Any, columns: bool) -> Any:
    """The sum of an example's numbers [batch]; as a product with ones, which is much the faster."""
    if columns:
        return tf.matmul(tf.ones([1, tensor.shape[0]]), tensor)[0]
    flat = tf.reshape(tensor, [tf.shape(tensor)[0], math.prod(tensor.shape[1:])])
    return tf.matmul(flat, tf.ones([flat.shape[1], 1]))[:, 0]


def _common_of_weights(layer: LoweredPositions, inputs: Any, one: Any, other: Any) -> Any:
    """The share of one noise on the weights, which enters at every position that reads them."""
    patches, one, other = layer.patches(inputs), by_position(one), by_position(other)
    variance = tf.reshape(layer.kernel_variance(), [-1, layer.loc.shape[-1]])

    def by_weight(slopes: Any) -> Any:
        return tf.matmul(patches, slopes, transpose_a=True)

    common = tf.reduce_sum(variance * by_weight(one) * by_weight(other), [1, 2])
    if layer.bias_variance is None:
        return common
    return common + tf.reduce_sum(layer.bias_variance * tf.reduce_sum(one, 1) * tf.reduce_sum(other, 1), 1)
