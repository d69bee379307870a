"""Layers that are functions of each number by itself, and the activations that other layers have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, library_of, tf
from tfp_bprune.layers.rules.normals import by_quadrature, by_rectifying
from tfp_bprune.layers.rules.rule import Channels, Erf, LayerRule, Match, rule_for, rule_of

_L = keras.layers
_ELEMENTWISE = {
    "linear", "relu", "relu6", "elu", "selu", "gelu", "tanh", "sigmoid", "hard_sigmoid", "swish", "silu", "softplus",
    "softsign", "exponential", "leaky_relu", "mish",
}  # fmt: skip


def activation_name(layer: Any) -> str:
    """Name of a layer's activation as Keras has it; "linear" where there is none. That of any other function has its module
    before it, so that it is none of Keras's, whatever the function is called."""
    function = getattr(layer, "activation", None)
    if function is None:
        return "linear"
    name = str(getattr(function, "__name__", "unknown"))
    return name.removesuffix("_v2") if library_of(function) else f"{getattr(function, '__module__', None)}.{name}"


def is_elementwise(layer: Any) -> bool:
    """Whether the layer's activation is one function of each number by itself; only known ones are taken to be."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, _L.Layer):  # Dense(activation=LeakyReLU())
        return rule_of(activation).is_elementwise(activation)
    return activation_name(layer) in _ELEMENTWISE


def matched(layer: Any, erf: Erf) -> Match | None:
    """The moments of the layer's activation; None where it is not known to be a function of each number by itself."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, _L.Layer):
        return rule_of(activation).matched(activation, erf)
    if activation_name(layer) == "relu":
        return by_rectifying(0.0, erf)
    return by_quadrature(activation) if activation is not None and is_elementwise(layer) else None


def applied(function: Any, values: np.ndarray) -> np.ndarray:
    """A function of tensors, as an activation is, of an array of numbers; of 0 where there is none."""
    return np.asarray(function(tf.constant(np.nan_to_num(values), tf.float32)), np.float64)


class Elementwise(LayerRule):
    """One function of each number by itself, without weights: that of any subclass of `Layer` that is declared so."""

    by_example = True

    def is_elementwise(self, layer: Any) -> bool:
        """Always."""
        return True

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        """Its own."""
        return inputs if len(inputs) == 1 and self.is_elementwise(layer) else None

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """The same."""
        return inputs if self.is_elementwise(layer) else None

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        """The function of it."""
        if training:
            return super().constant(layer, values, training)
        return np.where(np.isnan(values[0]), np.nan, applied(layer, values)[0])

    def matched(self, layer: Any, erf: Erf) -> Match | None:
        """By quadrature."""
        return by_quadrature(layer) if self.is_elementwise(layer) else None


rule_for(_L.ELU, _L.ThresholdedReLU)(Elementwise)


@rule_for(_L.Activation)
class _Activation(Elementwise):
    def is_elementwise(self, layer: Any) -> bool:
        return is_elementwise(layer)

    def matched(self, layer: Any, erf: Erf) -> Match | None:
        return matched(layer, erf)


@rule_for(_L.ReLU, _L.LeakyReLU)
class _Rectified(Elementwise):
    def matched(self, layer: Any, erf: Erf) -> Match | None:
        if isinstance(layer, _L.LeakyReLU):
            return by_rectifying(float(layer.alpha), erf)
        plain = layer.max_value is None and float(layer.threshold) == 0.0
        return by_rectifying(float(layer.negative_slope), erf) if plain else super().matched(layer, erf)


@rule_for(_L.PReLU)
class _Sloped(LayerRule):
    """A slope for each number, or for each channel: a function of each number by itself, but not the same."""

    by_example = True
    sized = True

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return inputs if layer.alpha.shape[-1] == len(inputs[0]) else None

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        return inputs

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        slopes = np.reshape(layer.alpha, [-1, values.shape[1]])
        below = np.where(np.ptp(slopes, 0) == 0, slopes[0] * values[0], np.nan)
        return np.where(values[0] < 0, below, values[0])

    def matched(self, layer: Any, erf: Erf) -> Match | None:
        return by_quadrature(layer)
