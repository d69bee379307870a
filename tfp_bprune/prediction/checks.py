"""What a network may hold to be exported, what of it a file has to hold, and causes of failures in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.rebuild import calls_of
from tfp_bprune.graphs.walk import nodes_of
from tfp_bprune.layers import Variational
from tfp_bprune.layers.rules import rule_of
from tfp_bprune.prediction.calls import is_stock
from tfp_bprune.prediction.lower import Linear, LoweredParts, LoweredPositions
from tfp_bprune.types import BpruneError, ExportError

_SAID = re.compile(r"^\s*([A-Za-z_][\w.]*): (.*\S)\s*$")
# Operations as layers that look at each number by itself, or along the last axis.
_BY_ROW = (
    "math.", "nn.relu", "nn.elu", "nn.selu", "nn.gelu", "nn.silu", "nn.swish", "nn.softplus", "nn.tanh", "nn.sigmoid",
    "nn.softmax", "nn.log_softmax", "nn.leaky_relu", "nn.l2_normalize", "cast", "identity", "abs", "clip_by_value",
    "__operators__.",
)  # fmt: skip
_ACROSS = (
    "math.reduce_",
    "math.cum",
    "math.segment",
    "math.unsorted",
    "math.top_k",
    "math.bincount",
    "__operators__.getitem",
)


def refuse_hidden(network: Any, linears: Mapping[int, Linear | LoweredParts]) -> None:
    """Refuses layers that draw their weights in their own call: those of TFP's that are not lowered, and what holds any.

    Raises:
      ExportError: naming the layer.
    """
    for layer in [node.layer for node in nodes_of(network) if not isinstance(node.layer, keras.Model)]:
        for one in layer._flatten_layers() if id(layer) not in linears else ():
            if getattr(one, "stateful", False) and isinstance(one, keras.layers.RNN):
                raise ExportError(
                    f"layer {one.name!r} is stateful: an answer of an export does not depend on the requests before"
                )
            if isinstance(one, Variational) or type(one).__module__.startswith("tensorflow_probability."):
                held = "" if one is layer else f" holds layer {one.name!r}, which"
                raise ExportError(
                    f"layer {layer.name!r} is a {type(layer).__name__} that{held} draws anew in every call: an export takes "
                    "Bayesian layers that are layers of the model itself, of the kinds that `bayesianize` makes"
                )


def refuse_ragged(model: Any) -> None:
    """Refuses inputs that are ragged or sparse.

    Raises:
      ExportError: naming one.
    """
    for tensor in model.inputs:
        if not isinstance(tensor.type_spec, tf.TensorSpec):
            raise ExportError(
                f"input {tensor.name!r} of model {model.name!r} is no dense tensor, but a {type(tensor.type_spec).__name__}"
            )


def refuse_moments(linears: Mapping[int, Linear | LoweredParts]) -> None:
    """Refuses layers with uncertain weights of a kind that has no moments, or that are called more than once: what their calls
    have in common is not carried.

    Raises:
      ExportError: naming the layer.
    """
    for linear in linears.values():
        if not linear.carries:
            raise ExportError(
                f"layer {linear.stream!r} is of a kind through which means and variances are not carried: use the predictive 'sampled'"
            )
        if isinstance(linear, LoweredPositions) and linear.shared and linear.uncertain:
            raise ExportError(
                f"layer {linear.stream!r} is called more than once, and 'moments' does not carry the covariance of its calls: "
                "use the predictive 'sampled'"
            )


def by_row(network: Any, linears: Mapping[int, Linear | LoweredParts]) -> bool:
    """Whether every layer is known to treat the examples of a batch one by one."""
    return all(
        node.is_input or id(node.layer) in linears or isinstance(node.layer, keras.Model) or _is_by_row(node)
        for node in nodes_of(network)
    )


def _is_by_row(node: Any) -> bool:
    if is_stock(node.layer) or rule_of(node.layer).by_example:
        return True
    symbol = str(getattr(node.layer, "symbol", None) or "")
    ranks = {len(tensor.shape) for tensor in node.keras_inputs}
    others = [getattr(a, "shape", ()) for a in tf.nest.flatten((node.call_args, node.call_kwargs)) if _is_array(a)]
    known = symbol.startswith(_BY_ROW) and not symbol.startswith(_ACROSS)
    return known and len(ranks) == 1 and min(ranks) > 1 and all(len(shape) < min(ranks) for shape in others)


def _is_array(argument: Any) -> bool:
    return hasattr(argument, "shape") and not hasattr(argument, "_keras_history")


def tables_of(network: Any) -> Iterator[Any]:
    """The lookup tables and the like that layers read, which files have to hold beside variables."""

    def is_table(value: Any) -> bool:
        return isinstance(value, tf.saved_model.experimental.TrackableResource)

    for layer in {id(layer): layer for layer in calls_of(network)}.values():
        yield from layer._flatten(predicate=is_table)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Says in one line why a network `name` cannot be taken apart, traced or saved: layers may raise anything.

    Raises:
      BpruneError: of the kind that was raised, or an `ExportError` for what is none.
    """
    try:
        yield
    except BpruneError as error:
        raise type(error)(cause_of(error)) from error
    except Exception as error:
        raise ExportError(f"model {name!r} cannot be exported: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """What an error says went wrong, in one line: TensorFlow and Keras say it at the end of pages of text."""
    lines = str(error).split("Call arguments received by")[0].splitlines()
    said = [match for match in map(_SAID.match, lines) if match and "Error" in match[1]]
    if said and "in user code:" in str(error):
        return said[-1][2]
    first = next((line.strip() for line in lines if line.strip()), "")
    return first or type(error).__name__
