"""Layers that multiply by certain numbers and add certain ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.rules.moves import Keeps
from tfp_bprune.layers.rules.rule import Channels, LayerRule, Spread, rule_for

_L = keras.layers


@rule_for(_L.BatchNormalization)
class _Normalized(Keeps):
    """By the moving mean and variance of each entry of its axis."""

    sized = True
    meaning = "linear"

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return inputs if _axes(layer, len(shape)) == [len(shape) - 1] else None

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        if training:
            return super().constant(layer, values, training)
        gamma = layer.gamma.numpy() if layer.scale else 1.0
        beta = layer.beta.numpy() if layer.center else 0.0
        deviation = np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
        return gamma * (values[0] - layer.moving_mean.numpy()) / deviation + beta

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread | None:
        mean, variance = inputs[0]
        rank = len(mean.shape)
        if len(_axes(layer, rank)) != 1:
            return None
        gamma = tf.square(tf.convert_to_tensor(layer.gamma)) if layer.scale else 1.0
        factors = gamma / (tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        factors = tf.reshape(factors, [-1 if axis in _axes(layer, rank) else 1 for axis in range(rank)])
        return Spread(layer(mean, training=False), variance * factors)


@rule_for(_L.Rescaling)
class _Rescaled(Keeps):
    meaning = "linear"

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return inputs if np.ndim(layer.scale) == np.ndim(layer.offset) == 0 else None

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any] | None:
        return inputs if np.ndim(layer.scale) == np.ndim(layer.offset) == 0 else None

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        return values[0] * layer.scale + layer.offset

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        mean, variance = inputs[0]
        return Spread(layer(mean), variance * np.square(np.asarray(layer.scale, np.float32)))


@rule_for(_L.Normalization)
class _Standardized(LayerRule):
    """Each number by a mean and a variance that were adapted."""

    by_example = True

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs


def _axes(layer: Any, rank: int) -> list[int]:
    """The axes over which batch normalization is."""
    axes = layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis]
    return [int(axis % rank) for axis in axes]
