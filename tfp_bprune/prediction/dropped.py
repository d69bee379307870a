"""Dropout and noise layers that were called with training=True: Monte-Carlo dropout (Gal and Ghahramani 2016, arXiv
1506.02142). Each draw has a mask of its own, which all examples of it share; its distribution is right for each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import StatelessDropout
from tfp_bprune.prediction import streams
from tfp_bprune.prediction.calls import is_random, training_of
from tfp_bprune.prediction.walk import nodes_of
from tfp_bprune.types import ExportError

_L = keras.layers
_ALPHA_P = -1.6732632423543772 * 1.0507009873554805  # what AlphaDropout puts in the place of what it drops


def is_drawn(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call of the layer is random outside training too."""
    return is_random(layer) and bool(training_of(layer, arguments, keywords)) and _strength(layer) > 0


def drawn_layers(network: Any) -> list[str]:
    """Names of the layers that Monte-Carlo dropout was asked of, each once; those of nested models are among them."""
    found: dict[str, None] = {}
    for node in nodes_of(network):
        inner = [node.layer] if not isinstance(node.layer, keras.Model) else list(node.layer._flatten_layers())
        said = training_of(node.layer, node.call_args, node.call_kwargs)
        found.update({layer.name: None for layer in inner if said and is_random(layer) and _strength(layer) > 0})
    return list(found)


def dropped(layer: Any, tensor: Any, drawn: bool, index: Any, count: Any, key: tuple[int | str, ...]) -> Any:
    """What the layer makes of a tensor, a row for each of `count` draws of each example, draws outermost.

    Args:
      drawn: whether `tensor` has a row for each draw already; else it has one for each example.
      index: number of the first draw.
    """
    shape = tf.shape(tensor)[1:]
    by_draw = tf.reshape(tensor, tf.concat([[count if drawn else 1, -1], shape], 0))
    made = _noisy(layer, by_draw, _Source(_sides(layer, tensor), index, count, key))
    made = tf.reshape(made, tf.concat([[-1], shape], 0))
    return tf.ensure_shape(made, [None, *tensor.shape[1:]])


def noise_variance(layer: Any, mean: Any, variance: Any) -> Any:
    """The variance that the layer adds to independent numbers of this mean and variance, None for certain ones.

    Of x kept with probability q and divided by it: E[x^2] / q - mean^2 - variance = E[x^2] (1 - q) / q, the same as with
    Gaussian factors of mean 1 and variance (1 - q) / q.

    Raises:
      ExportError: several of an example's numbers share a mask, or what is dropped becomes another number than 0.
    """
    rate = _strength(layer)
    _check_apart(layer, mean)
    if isinstance(layer, _L.GaussianNoise):
        return tf.fill(tf.shape(mean), np.float32(rate**2))
    square = tf.square(mean) if variance is None else tf.square(mean) + variance
    return square * (rate / (1 - rate))


def _check_apart(layer: Any, tensor: Any) -> None:
    kind, said = type(layer).__name__, getattr(layer, "noise_shape", None)
    together = said is not None and any(one not in (None, size) for one, size in zip(said, tensor.shape, strict=True))
    if isinstance(layer, _L.AlphaDropout | _L.SpatialDropout1D | _L.SpatialDropout2D | _L.SpatialDropout3D) or together:
        raise ExportError(
            f"layer {layer.name!r} is a {kind} that is called with training=True and has no mask for each number by "
            "itself, for which no rule carries means and variances: use the predictive 'sampled'"
        )


class _Source:
    """Random numbers of draws, shaped to meet [draws, batch, ...]."""

    def __init__(self, sides: Any, index: Any, count: Any, key: tuple[int | str, ...]) -> None:
        known = isinstance(sides, list)
        self._size = math.prod(sides) if known else tf.reduce_prod(sides)
        self._shape = tf.concat([[count, 1], sides], 0)
        self._arguments = (index, count, self._size, *key)

    def uniform(self) -> Any:
        return tf.reshape(streams.uniform(*self._arguments), self._shape)

    def normal(self) -> Any:
        return tf.reshape(streams.normal(*self._arguments), self._shape)


def _noisy(layer: Any, values: Any, source: _Source) -> Any:
    rate = _strength(layer)
    if isinstance(layer, _L.GaussianNoise):
        return values + rate * source.normal()
    if isinstance(layer, _L.GaussianDropout):
        return values * (1 + math.sqrt(rate / (1 - rate)) * source.normal())
    kept = tf.cast(source.uniform() >= rate, values.dtype)
    if isinstance(layer, _L.AlphaDropout):  # keeps mean and variance of standard normals (Klambauer et al. 2017)
        factor = ((1 - rate) * (1 + rate * _ALPHA_P**2)) ** -0.5
        return factor * (values * kept + _ALPHA_P * (1 - kept) - _ALPHA_P * rate)
    return values * kept / (1 - rate)


def _strength(layer: Any) -> float:
    return float(layer.stddev if isinstance(layer, _L.GaussianNoise) else layer.rate)


def _sides(layer: Any, tensor: Any) -> Any:
    """Of the mask of one draw of one example: a list of sizes, or a tensor where they are not fixed."""
    said = None if isinstance(layer, StatelessDropout) else getattr(layer, "_get_noise_shape", lambda _: None)(tensor)
    if said is None and tensor.shape[1:].is_fully_defined():
        return list(tensor.shape[1:])
    return tf.shape(tensor)[1:] if said is None else tf.convert_to_tensor(said)[1:]
