"""Means and variances through the layers of a network that have no weights of their own, or ordinary ones.

Activations are taken for independent normals (assumed density filtering: Hernandez-Lobato and Adams 2015, arXiv
1502.05336; Wu et al. 2019, arXiv 1810.03958). What they have in common is followed from the outputs back, in
`export.covariance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.channels import ACTIVATIONS, MERGES, POOLING, is_elementwise, is_identity
from tfp_bprune.graphs.convert import activation_name
from tfp_bprune.layers import GaussianOutput
from tfp_bprune.prediction.operations import without_rule
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import ExportError

_L = keras.layers
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_LEAST = 1e-20
_ROOT_TWO_PI = math.sqrt(2 * math.pi)

_MOVES = tuple(
    getattr(_L, name)
    for name in (
        "Flatten", "Reshape", "Permute", "RepeatVector", "UpSampling1D", "UpSampling2D", "UpSampling3D",
        *(f"{kind}{rank}D" for kind in ("ZeroPadding", "Cropping") for rank in (1, 2, 3)),
    )
)  # fmt: skip


Erf = Callable[[Any], Any]
Rule = Callable[[Any, Any], tuple[Any, Any, Any]]


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


def rule_of(layer: Any, erf: Erf = tf.math.erf) -> Rule | None:
    """The moments of a layer's activation, or of an activation layer; None where there is none.

    Raises:
      ExportError: each of its outputs depends on more than one input.
    """
    name, function = activation_name(layer), getattr(layer, "activation", tf.identity)
    if isinstance(layer, _L.PReLU):  # a slope of its own for each number, but no number depends on another
        return rule_for(layer)
    if isinstance(function, (*ACTIVATIONS, _L.PReLU)):  # Dense(activation=LeakyReLU())
        return rule_of(function, erf)
    if isinstance(function, _L.Layer):
        raise ExportError(
            f"layer {layer.name!r} has a {type(function).__name__} as its activation, through which no rule carries means and "
            "variances: use the predictive 'sampled'"
        )
    if isinstance(layer, _L.LeakyReLU) or (isinstance(layer, _L.ReLU) and _is_plain_relu(layer)):
        slope = float(getattr(layer, "alpha", getattr(layer, "negative_slope", 0.0)))
        return lambda mean, variance: rectified(mean, variance, slope, erf)
    if isinstance(layer, ACTIVATIONS) and not isinstance(layer, _L.Activation):
        return rule_for(layer)
    if name == "relu":
        return lambda mean, variance: rectified(mean, variance, erf=erf)
    if name == "linear":
        return None
    if not is_elementwise(layer):
        raise ExportError(
            f"layer {layer.name!r} has the activation {name!r} within the network, through which no rule carries means "
            "and variances: use the predictive 'sampled'"
        )
    return rule_for(function)


def rule_for(function: Callable[[Any], Any]) -> Rule:
    """The moments of any function of each number by itself."""
    return lambda mean, variance: transformed(mean, variance, function)


def through(layer: Any, values: list[Value]) -> Value:
    """The moments of the outputs of a layer without uncertain weights, before its activation.

    Raises:
      ExportError: it is of a kind that no rule is known for.
    """
    values = [value.as_rows() for value in values]
    value = values[0]
    if is_identity(layer):
        return value
    if isinstance(layer, _MOVES):
        return Value(layer(value.mean), layer(value.variance), drawn=value.drawn)
    if isinstance(layer, POOLING):
        return Value(layer(value.mean), _pooled(layer, value.variance), drawn=value.drawn)
    if isinstance(layer, _L.BatchNormalization | _L.Rescaling | _L.DepthwiseConv2D | GaussianOutput):
        return _affine(layer, value)
    if isinstance(layer, MERGES):
        return _joined(layer, values)
    raise without_rule(layer)


def through_masked(layer: Any, value: Value) -> Value:
    """As `through`, of a layer that heeds the mask of its input.

    Raises:
      ExportError: it is none for which there is a rule.
    """
    if not isinstance(layer, _L.GlobalAveragePooling1D):
        raise ExportError(
            f"layer {layer.name!r} is a {type(layer).__name__} that heeds a mask, for which no rule carries means and "
            "variances: use the predictive 'sampled'"
        )
    return value.each(lambda tensor: layer(tensor, mask=value.mask))  # as `_pooled`: the mean variance


def _is_plain_relu(layer: Any) -> bool:
    return layer.max_value is None and float(layer.threshold) == 0.0


def _pooled(layer: Any, variance: Any) -> Any:
    """The mean variance in each window: its positions share the noise of the weights that made them."""
    if "Global" in type(layer).__name__:
        axes = (
            range(1, len(variance.shape) - 1) if layer.data_format == "channels_last" else range(2, len(variance.shape))
        )
        return tf.reduce_mean(variance, list(axes), keepdims=layer.keepdims)
    if "Average" in type(layer).__name__:
        return layer(variance)
    average = getattr(_L, type(layer).__name__.replace("Max", "Average"))
    return average(layer.pool_size, layer.strides, layer.padding, layer.data_format)(variance)


def _affine(layer: Any, value: Value) -> Value:
    """A layer that is linear but for a constant: variances go through the squares of its factors."""
    if isinstance(layer, GaussianOutput):
        mean = layer(value.mean)
        return Value(mean, tf.concat([value.variance * layer.scale**2, tf.zeros_like(value.variance)], -1))
    if isinstance(layer, _L.Rescaling):
        return Value(layer(value.mean), value.variance * np.square(np.asarray(layer.scale, np.float32)))
    if isinstance(layer, _L.DepthwiseConv2D):
        return _depthwise(layer, value)
    return Value(layer(value.mean, training=False), value.variance * _normalization(layer, len(value.mean.shape)))


def _depthwise(layer: Any, value: Value) -> Value:
    def applied(of: Any, kernel: Any) -> Any:
        strides, padding = (1, *layer.strides, 1), layer.padding.upper()
        return tf.nn.depthwise_conv2d(of, kernel, strides, padding, dilations=layer.dilation_rate)

    kernel = tf.convert_to_tensor(layer.depthwise_kernel)
    mean = applied(value.mean, kernel) + (layer.bias if layer.use_bias else 0.0)
    return Value(mean, applied(value.variance, tf.square(kernel)))


def _normalization(layer: Any, rank: int) -> Any:
    """The square of what batch normalization multiplies by, broadcast over all axes but its own."""
    gamma = tf.square(tf.convert_to_tensor(layer.gamma)) if layer.scale else 1.0
    [axis] = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    shape = [-1 if i == axis % rank else 1 for i in range(rank)]
    return tf.reshape(gamma / (tf.convert_to_tensor(layer.moving_variance) + layer.epsilon), shape)


def _joined(layer: Any, values: list[Value]) -> Value:
    """Sums, differences, means and rows of branches, and a product of one that is uncertain with certain ones."""
    means = layer([value.mean for value in values])
    variances = [tf.zeros_like(v.mean) if v.variance is None else v.variance for v in values]
    if isinstance(layer, _L.Concatenate):
        return Value(means, layer(variances))
    if isinstance(layer, _L.Multiply):
        if sum(not value.certain for value in values) > 1:
            raise without_rule(layer)
        return Value(means, layer([tf.square(v.mean) if v.variance is None else v.variance for v in values]))
    total = sum(variances[1:], variances[0])
    return Value(means, total / len(values) ** 2 if isinstance(layer, _L.Average) else total)
