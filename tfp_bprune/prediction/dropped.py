"""Dropout and noise layers that were called with training=True: Monte-Carlo dropout (Gal and Ghahramani 2016, arXiv
1506.02142). Each draw has a mask of its own, which all examples of it share; its distribution is right for each."""

from __future__ import annotations

import math
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.walk import nodes_of
from tfp_bprune.layers.rules import Noise, rule_of
from tfp_bprune.prediction import streams
from tfp_bprune.prediction.calls import training_of
from tfp_bprune.types import ExportError


def is_drawn(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call of the layer is random outside training too."""
    return _noise_of(layer) is not None and bool(training_of(layer, arguments, keywords))


def drawn_layers(network: Any) -> list[str]:
    """Names of the layers that Monte-Carlo dropout was asked of, each once; those of nested models are among them."""
    found: dict[str, None] = {}
    for node in nodes_of(network):
        inner = [node.layer] if not isinstance(node.layer, keras.Model) else list(node.layer._flatten_layers())
        said = training_of(node.layer, node.call_args, node.call_kwargs)
        found.update({layer.name: None for layer in inner if said and _noise_of(layer)})
    return list(found)


def dropped(layer: Any, tensor: Any, drawn: bool, index: Any, count: Any, key: tuple[int | str, ...]) -> Any:
    """What the layer makes of a tensor, a row for each of `count` draws of each example, draws outermost.

    Args:
      drawn: whether `tensor` has a row for each draw already; else it has one for each example.
      index: number of the first draw.
    """
    shape = tf.shape(tensor)[1:]
    by_draw = tf.reshape(tensor, tf.concat([[count if drawn else 1, -1], shape], 0))
    rule = rule_of(layer)
    assert isinstance(rule, Noise)
    made = rule.noisy(layer, by_draw, _Source(_sides(rule.noise_shape(layer, tensor), tensor), index, count, key))
    made = tf.reshape(made, tf.concat([[-1], shape], 0))
    return tf.ensure_shape(made, [None, *tensor.shape[1:]])


def noise_variance(layer: Any, mean: Any, variance: Any) -> Any:
    """The variance that the layer adds to independent numbers of this mean and variance, None for certain ones.

    Raises:
      ExportError: several of an example's numbers share a mask, or what is dropped becomes another number than 0.
    """
    rule = rule_of(layer)
    added = rule.noise_variance(layer, mean, variance) if isinstance(rule, Noise) else None
    if added is None:
        raise ExportError(
            f"layer {layer.name!r} is a {type(layer).__name__} that is called with training=True and does not drop each "
            "number by itself; no rule carries means and variances through it: use the predictive 'sampled'"
        )
    return added


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


def _noise_of(layer: Any) -> Noise | None:
    """The rule of a layer that is random where it is told to train."""
    rule = rule_of(layer)
    return rule if isinstance(rule, Noise) and rule.strength(layer) > 0 else None


def _sides(said: Any, tensor: Any) -> Any:
    """Of the mask of one draw of one example: a list of sizes, or a tensor where they are not fixed.

    Args:
      said: shape of the noise, with the batch; None for that of the tensor.
    """
    if said is None and tensor.shape[1:].is_fully_defined():
        return list(tensor.shape[1:])
    return tf.shape(tensor)[1:] if said is None else tf.convert_to_tensor(said)[1:]
