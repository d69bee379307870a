"""Pooling: positions of a channel share the noise of the weights that made them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.rules.moves import Keeps
from tfp_bprune.layers.rules.rule import Spread, rule_for

_L = keras.layers


class _Pooled(Keeps):
    """The mean variance in each window, also where the largest of its numbers is taken."""

    meaning = "linear"

    def __init__(self, average: type) -> None:
        self._average = average

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        average = layer
        if not isinstance(layer, self._average):
            average = self._average(layer.pool_size, layer.strides, layer.padding, layer.data_format)
        return Spread(layer(inputs[0].mean), average(inputs[0].variance))


class _PooledGlobally(Keeps):
    meaning = "linear"

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        mean, variance = inputs[0]
        first = 1 if layer.data_format == "channels_last" else 2
        axes = list(range(first, first + len(variance.shape) - 2))
        return Spread(layer(mean), tf.reduce_mean(variance, axes, keepdims=layer.keepdims))

    def masked_moments(self, layer: Any, inputs: Spread, mask: Any) -> Spread | None:
        if not isinstance(layer, _L.GlobalAveragePooling1D):
            return None
        return Spread(layer(inputs.mean, mask=mask), layer(inputs.variance, mask=mask))


for _rank in (1, 2, 3):
    _average = getattr(_L, f"AveragePooling{_rank}D")
    rule_for(_average, getattr(_L, f"MaxPooling{_rank}D"))(_Pooled(_average))
    rule_for(getattr(_L, f"GlobalAveragePooling{_rank}D"), getattr(_L, f"GlobalMaxPooling{_rank}D"))(_PooledGlobally)
