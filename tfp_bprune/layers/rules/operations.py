"""TensorFlow's operations that were called on Keras's tensors, `x + y` or `tf.nn.relu(x)`, where they leave channels apart."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.layers.rules.rule import Channels, LayerRule, rule_for

# By the last part of their names: each number of the result depends on those at its place, or on one that is spread over them.
_BY_NUMBER = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "softplus", "softsign", "tanh", "sigmoid",
    "exp", "expm1", "log", "log1p", "log_sigmoid", "square", "sqrt", "rsqrt", "pow", "abs", "sign", "sin", "cos", "tan", "atan",
    "sinh", "cosh", "asinh", "erf", "reciprocal", "floor", "ceil", "round", "negative", "neg", "identity", "cast",
    "stop_gradient", "clip_by_value", "add", "add_v2", "sub", "subtract", "mul", "multiply", "div", "divide", "truediv",
    "div_no_nan", "multiply_no_nan", "maximum", "minimum", "squared_difference", "add_n",
}  # fmt: skip


@rule_for(keras.src.layers.core.tf_op_layer.TFOpLambda)
class _Operation(LayerRule):
    """Of tensors of as many channels, and of numbers; a call with another array is left out by `graphs.graph`."""

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        if str(layer.symbol).rpartition(".")[2] not in _BY_NUMBER or not shape:
            return None
        return inputs if {len(one) for one in inputs} == {shape[-1]} else None
