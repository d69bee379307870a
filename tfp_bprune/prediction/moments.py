"""Means and variances through the layers of a network that have no weights of their own, or ordinary ones.

Activations are taken for independent normals. What they have in common is followed from the outputs back, in
`prediction.covariance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import kernels_of, kind_of
from tfp_bprune.layers.rules import Spread, activation_name, rule_of
from tfp_bprune.layers.rules.activations import matched
from tfp_bprune.layers.rules.rule import Erf, Match
from tfp_bprune.prediction.operations import without_rule
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import ExportError

_L = keras.layers


def match_of(layer: Any, erf: Erf = tf.math.erf) -> Match | None:
    """The moments of a layer's activation; None where it has none.

    Raises:
      ExportError: it is not known to be a function of each number by itself.
    """
    if activation_name(layer) == "linear":
        return None
    found = matched(layer, erf)
    if found is not None:
        return found
    activation = layer.activation
    given = f"a {type(activation).__name__} as its activation"
    if not isinstance(activation, _L.Layer):
        given = f"the activation {activation_name(layer)!r} within the network"
    raise ExportError(
        f"layer {layer.name!r} has {given}, through which no rule carries means and variances: use the predictive 'sampled'"
    )


def through(layer: Any, values: Sequence[Value]) -> Value:
    """The moments of the outputs of a layer without uncertain weights, before its activation.

    Raises:
      ExportError: no rule is known for it.
    """
    values = [value.as_rows() for value in values]
    inputs = [Spread(value.mean, value.variance) for value in values]
    kind = kind_of(layer)
    made = _weighed(layer, *inputs) if kind is not None else rule_of(layer).moments(layer, inputs)
    if made is None:
        raise without_rule(layer)
    return Value(made.mean, made.variance, drawn=values[0].drawn)


def through_masked(layer: Any, value: Value) -> Value:
    """As `through`, of a layer that heeds the mask of its input.

    Raises:
      ExportError: no rule is known for it.
    """
    value = value.as_rows()
    made = rule_of(layer).masked_moments(layer, Spread(value.mean, value.variance), value.mask)
    if made is None:
        raise ExportError(
            f"layer {layer.name!r} is a {type(layer).__name__} that heeds a mask, for which no rule carries means and "
            "variances: use the predictive 'sampled'"
        )
    return Value(made.mean, made.variance, drawn=value.drawn)


def _weighed(layer: Any, inputs: Spread) -> Spread | None:
    """Of a plain layer of some kind with one kernel, each weight of which an output reads once, as in convolutions."""
    kind, found = kind_of(layer), kernels_of(layer)
    if kind is None or kind.flow(layer) == "unknown" or len(found) != 1:
        return None
    [name] = found
    kernel = tf.convert_to_tensor(getattr(layer, name))
    mean = kind.linear(layer, name, inputs.mean, kernel)
    mean = kind.add_bias(layer, mean, tf.convert_to_tensor(layer.bias)) if kind.has_bias(layer) else mean
    return Spread(mean, kind.linear(layer, name, inputs.variance, tf.square(kernel)))
