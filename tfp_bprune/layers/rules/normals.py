"""Means, variances and mean slopes of functions of normal numbers, for which activations are taken.

Assumed density filtering: Hernandez-Lobato and Adams 2015, arXiv 1502.05336; Wu et al. 2019, arXiv 1810.03958.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.layers.rules.rule import Erf, Match

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_LEAST = 1e-20
_ROOT_TWO_PI = math.sqrt(2 * math.pi)


def erf_of_exp(ratio: Any) -> Any:
    """The error function to 1.5e-7, by exp alone (Abramowitz and Stegun 1964, 7.1.26): LiteRT has no other way."""
    t = 1.0 / (1.0 + 0.3275911 * tf.abs(ratio))
    powers = 0.0
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        powers = (powers + factor) * t
    return tf.sign(ratio) * (1.0 - powers * tf.exp(-tf.square(ratio)))


def rectified(mean: Any, variance: Any, slope: float = 0.0, erf: Erf = tf.math.erf) -> tuple[Any, Any, Any]:
    """Mean and variance of max(z, slope z) for a normal z, and the mean slope, P(z > 0) + slope P(z < 0).

    In closed form: with a = mean / sd, Phi(a) and phi(a) of the standard normal, E[max(z, 0)] = mean Phi + sd phi and
    E[max(z, 0)^2] = (mean^2 + variance) Phi + mean sd phi (Frey and Hinton 1999).
    """
    deviation = tf.sqrt(variance + _LEAST)
    ratio = mean / (math.sqrt(2.0) * deviation)
    below = 0.5 + 0.5 * erf(ratio)
    first = tf.maximum(mean * below + (deviation / _ROOT_TWO_PI) * tf.exp(-tf.square(ratio)), 0.0)
    # E[max(z, 0)^2] - first^2, with first - mean = E[max(-z, 0)]: where the mean is many sd its square would swamp it.
    second = tf.maximum(variance * below - first * tf.maximum(first - mean, 0.0), 0.0)
    if slope:  # max(z, slope z) = slope z + (1 - slope) max(z, 0), which vary together by variance Phi (Stein 1981)
        second = slope**2 * variance + 2 * slope * (1 - slope) * variance * below + (1 - slope) ** 2 * second
        first, below = slope * mean + (1 - slope) * first, slope + (1 - slope) * below
    return first, second, below


def transformed(mean: Any, variance: Any, function: Callable[[Any], Any]) -> tuple[Any, Any, Any]:
    """Mean and variance of function(z) for a normal z, and the mean slope, by Gauss-Hermite quadrature.

    The mean slope is cov(function(z), z) / variance (Stein 1981).
    """
    deviation = tf.sqrt(variance + _LEAST)
    first, second, covariance = 0.0, 0.0, 0.0
    centre = function(mean)
    for node, weight in zip(_NODES.astype(np.float32), _WEIGHTS.astype(np.float32), strict=True):
        value = function(mean + node * deviation) - centre
        first, second = first + weight * value, second + weight * tf.square(value)
        covariance = covariance + weight * node * value
    return centre + first, tf.maximum(second - tf.square(first), 0.0), covariance / deviation


def by_rectifying(slope: float, erf: Erf) -> Match:
    """The moments of max(z, slope z)."""
    return lambda mean, variance: rectified(mean, variance, slope, erf)


def by_quadrature(function: Callable[[Any], Any]) -> Match:
    """The moments of any function of each number by itself."""
    return lambda mean, variance: transformed(mean, variance, function)
