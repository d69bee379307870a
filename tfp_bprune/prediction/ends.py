"""Networks without the softmax or sigmoid at their end: what means and variances are carried to is logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.copying import config_of, made_from
from tfp_bprune.graphs.heads import Head, end_of
from tfp_bprune.graphs.rebuild import calls_of, rebuild
from tfp_bprune.graphs.walk import nodes_of
from tfp_bprune.layers.rules import Identity, activation_name, rule_for
from tfp_bprune.types import ExportError

_L = keras.layers
_SYMBOLS = ("nn.softmax", "math.sigmoid", "nn.sigmoid")


_Activation: Any = keras.layers.Layer if TYPE_CHECKING else _L.Activation


class Same(_Activation):
    """Stands for a softmax or sigmoid that was taken away: changes nothing."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("linear", **kwargs)

    def call(self, inputs: Any, **_: Any) -> Any:
        """The inputs."""
        return inputs


rule_for(Same)(Identity)


def without_ends(network: Any, heads: Mapping[str, Head], moments: bool = True) -> tuple[Any, dict[str, Head]]:
    """The network that gives logits where `network` gives probabilities, and what its outputs mean.

    Args:
      moments: whether logits are wanted for their moments; else for a temperature.

    Raises:
      ExportError: an output's probabilities are not made by a softmax or sigmoid at its end, or are read elsewhere too.
    """
    squashed = [
        (name, tensor)
        for (name, head), tensor in zip(heads.items(), network.outputs, strict=True)
        if head.classifies and not head.logits
    ]
    if not squashed:
        return network, dict(heads)
    for name, tensor in squashed:
        if end_of(tensor) not in ("softmax", "sigmoid"):
            what = "moments are read: use the predictive 'sampled'" if moments else "calibrate divides: leave it out"
            raise ExportError(f"output {name!r} does not end in a softmax or sigmoid, at whose inputs {what}")
    tails = {name: list(_tail(tensor)) for name, tensor in squashed}
    _refuse_shared(network, heads, tails)
    ends = {id(_maker(tail[-1])) for tail in tails.values()}
    logits = rebuild(network, lambda layer: _opened(layer) if id(layer) in ends else None, _copy)
    return logits, {n: replace(head, logits=True) if n in tails else head for n, head in heads.items()}


def _tail(tensor: Any) -> Iterator[Any]:
    """An output, and what it was made of, back to what the softmax or sigmoid gives."""
    layer, node, index = tensor._keras_history
    yield tensor
    if isinstance(layer, keras.Model):
        yield from _tail(layer.outputs[index])
    elif not _squashes(layer):
        yield from _tail(layer._inbound_nodes[node].keras_inputs[0])


def _maker(tensor: Any) -> Any:
    return tensor._keras_history.layer


def _squashes(layer: Any) -> bool:
    is_symbol = str(getattr(layer, "symbol", "")) in _SYMBOLS
    return isinstance(layer, _L.Softmax) or is_symbol or activation_name(layer) in ("softmax", "sigmoid")


def _refuse_shared(network: Any, heads: Mapping[str, Head], tails: Mapping[str, list[Any]]) -> None:
    """Refuses probabilities that something else reads too, which is not to get logits."""
    found = {id(tensor): name for name, tail in tails.items() for tensor in tail}
    calls = Counter(map(id, calls_of(network)))
    for node in nodes_of(network):
        leaves = [found[id(tensor)] for tensor in tf.nest.flatten(node.outputs) if id(tensor) in found]
        read = [found[id(tensor)] for tensor in node.keras_inputs if id(tensor) in found]
        if (read and not leaves) or (leaves and calls[id(node.layer)] > 1):
            raise _shared((read + leaves)[0], f"layer {node.layer.name!r}")
    for name, tensor in zip(heads, network.outputs, strict=True):
        if name not in tails and id(tensor) in found:
            raise _shared(found[id(tensor)], f"output {name!r}")


def _shared(name: str, reader: str) -> ExportError:
    return ExportError(
        f"the probabilities of output {name!r} are shared with {reader}, but 'moments' reads logits in their place: "
        "use the predictive 'sampled'"
    )


def _opened(layer: Any) -> Any:
    """The layer without its softmax or sigmoid."""
    if isinstance(layer, _L.Softmax | _L.Activation) or getattr(layer, "symbol", None):
        return Same(name=layer.name)
    return made_from(layer, config_of(layer) | {"activation": "linear"})


def _copy(old: Any, new: Any) -> None:
    new.set_weights([] if isinstance(new, Same) else old.get_weights())
