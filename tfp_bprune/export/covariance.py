"""What the outputs of a network have in common: their covariance, followed back to where noise entered.

Each noise reaches the outputs through the mean slopes of the layers on its way, and two outputs that one noise reaches
vary together: cov(a, b) = sum over noises of variance x slope of a x slope of b. Independent activations miss this; with
two hidden layers they account for about half of the mutual information.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.export.kernels import read
from tfp_bprune.export.passes import Sources
from tfp_bprune.export.value import Value

_LEAST = 1e-12


def leading(logits: Value, count: int) -> Any:
    """One-hot rows [batch, count, classes] of the classes that could be first: by mean plus one standard deviation."""
    reach = logits.mean + tf.sqrt(logits.variance)
    return tf.one_hot(tf.math.top_k(reach, count).indices, logits.mean.shape[-1])


def covariance(logits: Value, chosen: Any, sources: Sources) -> list[list[Any]]:
    """Covariances [batch] of the chosen logits, as the lower triangle of a matrix.

    Args:
      logits: rows, with the tensors from which the sources can be reached back.
      chosen: [batch, count, classes], one-hot.
    """
    count = chosen.shape[1]
    points = [point for point, *_ in sources.points + sources.shared]
    slopes = [tf.gradients(tf.reduce_sum(logits.mean * chosen[:, i]), points) for i in range(count)]
    return [[_common(slopes[i], slopes[j], sources) for j in range(i + 1)] for i in range(count)]


def factor(lower: list[list[Any]]) -> list[list[Any]]:
    """The Cholesky factor of matrices [batch] given and returned as lists of their lower triangles.

    Written out because the small formats have no operation for it.
    """
    found: list[list[Any]] = []
    for i, row in enumerate(lower):
        made: list[Any] = []
        for j in range(i):
            rest = row[j] - sum((made[k] * found[j][k] for k in range(j)), 0.0)
            made.append(rest / found[j][j])
        rest = row[i] - sum((tf.square(value) for value in made), 0.0)
        found.append([*made, tf.sqrt(tf.maximum(rest, _LEAST))])
    return found


def drawn(logits: Value, chosen: Any, factors: list[list[Any]], points: np.ndarray) -> Any:
    """Logits [draws, batch, classes]: the chosen ones with their covariance, the others by themselves.

    Args:
      points: [draws, chosen + classes], standard normal.
    """
    count = chosen.shape[1]
    together = tf.constant(points[:, None, :count])
    apart = tf.constant(points[:, None, count:])
    others = 1.0 - tf.reduce_sum(chosen, 1)
    moved = logits.mean + apart * (others * tf.sqrt(logits.variance))
    for i, row in enumerate(factors):
        shift = sum(together[..., j] * value for j, value in enumerate(row))
        moved += shift[..., None] * chosen[:, i]
    return moved


def _common(one: list[Any], other: list[Any], sources: Sources) -> Any:
    parts = []
    for (_, variance, columns), a, b in zip(sources.points, one, other, strict=False):
        if a is not None:
            axes = [axis for axis in range(len(variance.shape)) if axis != (1 if columns else 0)]
            parts.append(tf.reduce_sum(variance * a * b, axes))
    rest = len(sources.points)
    for (_, layer, inputs), a, b in zip(sources.shared, one[rest:], other[rest:], strict=True):
        if a is not None:
            parts.append(_common_of_weights(layer, inputs, a, b))
    return sum(parts[1:], parts[0])


def _common_of_weights(layer: Any, inputs: Any, one: Any, other: Any) -> Any:
    """The share of one noise on the weights, which enters at every position that reads them."""
    patches = layer.patches(inputs)
    variance = tf.reshape(read(layer._variance), [-1, layer.loc.shape[-1]])

    def by_weight(slopes: Any) -> Any:
        flat = tf.reshape(slopes, [tf.shape(patches)[0], -1, layer.loc.shape[-1]])
        return tf.matmul(patches, flat, transpose_a=True)

    return tf.reduce_sum(variance * by_weight(one) * by_weight(other), [1, 2])
