"""The answers of outputs of which means and variances are known: outputs are normal, with a covariance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction import covariance
from tfp_bprune.prediction.answers import Answer, Classes, Outputs, Targets
from tfp_bprune.prediction.passes import Sources
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import ExportError

_LOGIT_DRAWS = 64
_MOST_DIRECTIONS = 64  # each is a pass back through the network


def of_moments(answer: Answer, value: Value, sources: Sources, seed: int) -> Outputs:
    """What is said of an output, logits or means, of which `value` is the mean and variance.

    Args:
      sources: where noise entered the network.
      seed: of the draws of logits.
    """
    if isinstance(answer, Targets):
        return _targets(answer, value, sources)
    assert isinstance(answer, Classes)
    if value.certain:
        return answer.of_draws(*answer.parts(value.mean, None))
    if answer.head.task == "classification":
        return _classes(answer, value, sources, seed)
    return _labels(answer, value, sources, seed)


def _targets(answer: Targets, value: Value, sources: Sources) -> Outputs:
    mean, noise_std = answer.split(value.mean)
    width = math.prod(value.mean.shape[1:]) // (1 if noise_std is None else 2) if not value.certain else 0
    variance = tf.zeros_like(mean)
    noise_variance = None if noise_std is None else tf.square(noise_std)
    if not value.certain:
        own, of_noise = answer.split(value.variance)
        variance = tf.reshape(_variances(value, sources, width), tf.shape(own))
        noise_variance = None if noise_variance is None else noise_variance + of_noise
    return answer.of_moments(mean, variance, noise_variance)


def _labels(answer: Classes, value: Value, sources: Sources, seed: int) -> Outputs:
    """Each logit by itself, drawn with its variance."""
    deviation = tf.sqrt(_variances(value, sources, math.prod(_shape(value))))
    deviation = tf.reshape(deviation, tf.shape(value.mean))
    points = normal_points(_LOGIT_DRAWS, 1, seed)[:, :1].reshape([-1, *[1] * len(value.mean.shape)])
    probabilities, entropies = answer.parts(value.mean[None] + points * deviation[None], None)
    return answer.of_draws(tf.reduce_mean(probabilities, 0), tf.reduce_mean(entropies, 0))


def _classes(answer: Classes, value: Value, sources: Sources, seed: int) -> Outputs:
    """The logits of each position, drawn with the covariance of those that could lead (`covariance.followed`)."""
    *positions, classes = _shape(value)
    count, points = math.prod(positions), normal_points(_LOGIT_DRAWS, classes, seed)
    if not positions:
        chosen = covariance.followed(value)
        return answer.of_draws(*_of_logits(_drawn(value, value, chosen, chosen, sources, points)))
    flat = value.each(lambda tensor: tf.reshape(tensor, [-1, count, classes]))
    found = []
    for position in range(count):
        here = Value(flat.mean[:, position], flat.variance[:, position])
        chosen = covariance.followed(here)
        _check_count(count * chosen.shape[1])
        placed = chosen[:, :, None] * tf.one_hot(position, count)[:, None]
        directions = tf.reshape(placed, [-1, chosen.shape[1], *positions, classes])
        found.append(_of_logits(_drawn(value, here, chosen, directions, sources, points)))
    probabilities, aleatoric = (tf.stack(parts, 1) for parts in zip(*found, strict=True))
    return answer.of_draws(
        tf.reshape(probabilities, [-1, *positions, classes]), tf.reshape(aleatoric, [-1, *positions])
    )


def _drawn(value: Value, here: Value, chosen: Any, directions: Any, sources: Sources, points: np.ndarray) -> Any:
    """Logits [classes, draws, batch] of one position."""
    return covariance.drawn(here, chosen, covariance.covariance(value, directions, sources), points)


def _variances(value: Value, sources: Sources, count: int) -> Any:
    """The variances [batch, count] of the first `count` numbers of each example, from what they have in common too."""
    _check_count(count)
    shape = value.mean.shape[1:]
    width = shape[-1] if count != math.prod(shape) else None
    found = []
    for place in range(count):
        # Of an output of means and deviations, the means are the first half of each position.
        place = place if width is None else place // (width // 2) * width + place % (width // 2)
        unit = np.zeros(math.prod(shape), np.float32)
        unit[place] = 1
        direction = tf.zeros_like(value.mean) + unit.reshape(shape)
        found.append(covariance.covariance(value, direction[:, None], sources)[0][0])
    return tf.stack(found, 1)


def _shape(value: Value) -> list[int]:
    shape = value.mean.shape[1:]
    if not shape.is_fully_defined():
        raise ExportError(
            f"an output of shape {(None, *shape)} has no fixed number of positions, and 'moments' needs a backward "
            "pass for each: use the predictive 'sampled'"
        )
    return list(shape)


def _check_count(count: int) -> None:
    if count > _MOST_DIRECTIONS:
        raise ExportError(
            f"'moments' needs a backward pass for each number of an output, here {count}, at most {_MOST_DIRECTIONS}: use "
            "the predictive 'sampled'"
        )


def _of_logits(logits: Any) -> tuple[Any, Any]:
    """Mean probabilities [batch, classes] and mean entropy [batch] of draws of the logits [classes, draws, batch]."""
    shifted = logits - tf.reduce_max(logits, 0)
    weights = tf.exp(shifted)
    total = tf.reduce_sum(weights, 0)
    probabilities = weights / total
    aleatoric = tf.math.log(total) - tf.reduce_sum(probabilities * shifted, 0)
    return tf.transpose(tf.reduce_mean(probabilities, 1)), tf.reduce_mean(aleatoric, 0)


def normal_points(count: int, classes: int, seed: int) -> np.ndarray:
    """Standard normal points [count, covariance.width_of(classes)] that fill their space evenly.

    Sobol's, scrambled by `seed`, and as many on the opposite side, so that odd moments are exact; those that are drawn
    together with exactly the unit covariance. Integrals are three times as close to the exact ones as by Sobol's alone.
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    width = covariance.width_of(classes)
    uniform = qmc.Sobol(min(width, qmc.Sobol.MAXDIM), seed=seed).random(count // 2)
    uniform = uniform[:, np.arange(width) % uniform.shape[1]]
    points = ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))
    points /= np.sqrt(np.mean(np.square(points), 0))
    together = points[:, : min(width, covariance.LEADING + 2)]
    root = np.linalg.cholesky(together.T @ together / len(together))
    points[:, : together.shape[1]] = np.linalg.solve(root, together.T).T
    return np.concatenate([points, -points]).astype(np.float32)
