"""TensorFlow's operations that were called on Keras's tensors, `x + y` or `tf.reduce_mean(x, [1, 2])`: what becomes of channels.

Keras has one layer class for all of them, so the rule is that of a call: the operation by its name, and its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.layers.rules.rule import Channels, LayerRule

# By the last part of their names: each number of the result depends on those at its place, or on one that is spread over them.
_BY_NUMBER = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "softplus", "softsign", "tanh", "sigmoid",
    "exp", "expm1", "log", "log1p", "log_sigmoid", "square", "sqrt", "rsqrt", "pow", "abs", "sign", "sin", "cos", "tan", "atan",
    "sinh", "cosh", "asinh", "erf", "reciprocal", "floor", "ceil", "round", "negative", "neg", "identity", "cast",
    "stop_gradient", "clip_by_value", "add", "add_v2", "sub", "subtract", "mul", "multiply", "div", "divide", "truediv",
    "div_no_nan", "multiply_no_nan", "maximum", "minimum", "squared_difference", "add_n",
}  # fmt: skip
_OVER_AXES = {"reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_std", "reduce_variance", "reduce_prod"}


class _Keeps(LayerRule):
    """Channel i of the result depends on channel i of every tensor."""

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return inputs if shape and {len(one) for one in inputs} == {shape[-1]} else None


class _SideBySide(LayerRule):
    """All channels of one tensor, then all of the next."""

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return [np.concatenate(inputs)]


def rule_of_call(layer: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> LayerRule | None:
    """The rule of a call of a layer that stands for an operation, which knows nothing where the operation may mix channels or has
    numbers of its own for them; None of other layers."""
    if not hasattr(layer, "symbol"):
        return None
    name = operation_name(layer)
    try:
        given = inspect.signature(layer.function).bind(*arguments, **keywords).arguments
    except (AttributeError, TypeError, ValueError):  # as of a slice, which is no function
        return LayerRule()
    if name in _BY_NUMBER:
        return LayerRule() if any(map(_may_have_channels, given.values())) else _Keeps()
    known = _KNOWN.get("over axes" if name in _OVER_AXES else name)
    return known(given) if known is not None else LayerRule()


def operation_name(layer: Any) -> str:
    """The last part of the name of the operation that a layer stands for; "" where it has none, as a slice."""
    return str(layer.symbol).rpartition(".")[2] if layer.symbol else ""


def _over_axes(given: Mapping[str, Any]) -> LayerRule:
    axes = given.get("axis")
    if axes is None or not all(isinstance(axis, int) for axis in tf.nest.flatten(axes)):
        return LayerRule()
    rank = len(given["input_tensor"].shape)
    return LayerRule() if rank - 1 in {axis % rank for axis in tf.nest.flatten(axes)} else _Keeps()


def _joined(given: Mapping[str, Any]) -> LayerRule:
    values, axis = given["values"], given["axis"]
    if not isinstance(values, list | tuple) or not all(map(_is_of_graph, values)) or not isinstance(axis, int):
        return LayerRule()
    return _SideBySide() if axis in (-1, len(values[0].shape) - 1) else LayerRule()


_KNOWN: dict[str, Callable[[Mapping[str, Any]], LayerRule]] = {
    "over axes": _over_axes,
    "concat": _joined,
    "pad": lambda given: _Keeps(),  # which sees whether there are other channels
    "resize": lambda given: _Keeps(),
}


def _may_have_channels(given: Any) -> bool:
    """Whether an argument holds more than one number and is no tensor of the graph."""
    if isinstance(given, list | tuple | dict):
        return not all(map(_is_of_graph, tf.nest.flatten(given)))
    return not _is_of_graph(given) and np.ndim(given) > 0


def _is_of_graph(value: Any) -> bool:
    return hasattr(value, "_keras_history")
