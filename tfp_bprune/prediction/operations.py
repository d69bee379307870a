"""Means and variances through TensorFlow's operations in a Keras graph: `x * 2 + 1`, `tf.reshape`, `tf.nn.relu(x)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.layers.rules import operation_name
from tfp_bprune.prediction.calls import called, values_of
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import ExportError

_OF_SHAPES = {"shape", "rank", "size", "zeros_like", "ones_like"}
_MOVES = {
    "reshape", "transpose", "getitem", "squeeze", "expand_dims", "concat", "stack", "unstack", "split", "tile", "identity",
    "cast", "repeat", "gather", "pad", "broadcast_to", "reverse", "roll", "slice", "strided_slice", "stop_gradient",
}  # fmt: skip
_SUMS = {"add", "sub", "subtract", "add_n", "negative", "neg"}
_FUNCTIONS = {
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "softplus", "softsign", "tanh", "sigmoid", "exp",
    "square", "sin", "cos", "erf", "atan", "asinh", "log_sigmoid",
}  # fmt: skip


def is_operation(layer: Any) -> bool:
    """Whether the layer stands for an operation of TensorFlow that was called on Keras's tensors."""
    return hasattr(layer, "symbol") and type(layer).__name__ in ("TFOpLambda", "SlicingOpLambda")


def function_of(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Callable[[Any], Any] | None:
    """The function of each number by itself that an operation is; None where it is none."""
    [value, *more] = values_of(arguments, keywords)
    if not is_operation(layer) or operation_name(layer) not in _FUNCTIONS or more or not value.mean.dtype.is_floating:
        return None

    def function(tensor: Any) -> Any:
        given = tf.nest.map_structure(lambda one: tensor if isinstance(one, Value) else one, (arguments, keywords))
        return layer(*given[0], **given[1])

    return function


def through(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The moments of what an operation that is linear in its uncertain arguments gives.

    Raises:
      ExportError: it is none for which there is a rule.
    """
    name, values = operation_name(layer), [value.as_rows() for value in values_of(arguments, keywords)]
    means = called(layer, arguments, keywords)
    if name in _OF_SHAPES:
        return means
    if name in _MOVES:
        moved = _moved(layer, arguments, keywords)
        return tf.nest.map_structure(lambda mean, variance: Value(mean.mean, variance), means, moved)
    if name in _SUMS:
        variance = sum((v.variance for v in values if not v.certain), tf.zeros_like(means.mean))
    elif name in ("reduce_mean", "reduce_sum"):
        variance = _reduced(layer, arguments, keywords)
    elif name in ("multiply", "mul", "truediv", "divide", "div") and sum(not v.certain for v in values) == 1:
        variance = _scaled(layer, name, arguments, keywords)
    else:
        raise without_rule(layer)
    return Value(means.mean, variance)


def without_rule(layer: Any) -> ExportError:
    """The error for a layer through which no rule carries means and variances."""
    kind = f"tf.{layer.symbol}" if is_operation(layer) else type(layer).__name__
    return ExportError(
        f"layer {layer.name!r} is a {kind}, through which no rule carries means and variances: use the predictive 'sampled'"
    )


def _replaced(arguments: Any, of: Callable[[Value], Any]) -> Any:
    return tf.nest.map_structure(lambda one: of(one.as_rows()) if isinstance(one, Value) else one, arguments)


def _moved(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The variances, moved as the means are; what is put beside them, as at the borders of a pad, has none."""

    def variance(value: Value) -> Any:
        if not value.mean.dtype.is_floating:
            return value.mean  # a size or an index
        return tf.zeros_like(value.mean) if value.certain else value.variance

    def nothing(value: Value) -> Any:
        return tf.zeros_like(value.mean) if value.mean.dtype.is_floating else value.mean

    given, empty = (_replaced((arguments, keywords), of) for of in (variance, nothing))
    return tf.nest.map_structure(tf.subtract, layer(*given[0], **given[1]), layer(*empty[0], **empty[1]))


def _reduced(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Of a mean or sum: positions share the noise of the weights that made them, as in pooling; features do not."""
    value, rest = (
        values_of(arguments, keywords)[0].as_rows(),
        keywords | dict(zip(("_", "axis"), arguments, strict=False)),
    )
    rank, axis = len(value.mean.shape), rest.get("axis")
    if value.certain or axis is None or isinstance(axis, Value):
        raise without_rule(layer)
    axes = [one % rank for one in (axis if isinstance(axis, list | tuple) else [axis])]
    given = _replaced((arguments, keywords), lambda one: one.variance)
    ones = _replaced((arguments, keywords), lambda one: tf.ones_like(one.mean))
    variance, total = layer(*given[0], **given[1]), layer(*ones[0], **ones[1])  # of a mean 1, of a sum the count
    if rank - 1 not in axes:
        return variance * total
    if len(axes) > 1:
        raise without_rule(layer)
    count = tf.cast(tf.shape(value.mean)[-1], variance.dtype)
    return variance * total / count


def _scaled(layer: Any, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Of a product with certain factors, or a quotient of what is uncertain by what is not."""

    def factor(value: Value) -> Any:
        return value.mean if value.certain else tf.ones_like(value.mean)

    first, *_ = arguments if arguments else (keywords.get("x"),)
    if "div" in name and not (isinstance(first, Value) and not first.certain):
        raise without_rule(layer)
    given = _replaced((arguments, keywords), factor)
    [value] = [value.as_rows() for value in values_of(arguments, keywords) if not value.certain]
    return value.variance * tf.square(layer(*given[0], **given[1]))
