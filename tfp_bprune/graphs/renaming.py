"""Names of layers: which Keras gave by itself, and other ones in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.graphs.install import init_graph
from tfp_bprune.layers import kind_of

_FURTHER = {"InputLayer": ("input", "keras_tensor"), "Functional": ("model",)}  # than that of the class
# Before and behind it is what layers call others after themselves, such as `Bidirectional` and `MultiHeadAttention`.
_AUTOMATIC = r"(?:forward_|backward_)?(?:{})(?:_\d+)?(?:_[a-z_]+)?"
_NUMBER = re.compile(r"_\d+(?=_|$)")


def automatic_names(model: Any, other: Any) -> list[tuple[Any, str]]:
    """The layers of `model` that are called otherwise in `other`, with their names there, where Keras numbered both.

    Args:
      model, other: networks of the same layers in the same order, models among them.

    Returns:
      Nothing where they are called alike, have other layers, or where one of the names is somebody's own.
    """
    mine, theirs = (named_layers(one) for one in (model, other))
    if [type(layer) for layer in mine] != [type(layer) for layer in theirs]:
        return []
    pairs = [(layer, there.name) for layer, there in zip(mine, theirs, strict=True) if layer.name != there.name]
    stems = {re.escape(stem) for layer in mine for stem in _stems(layer)}
    automatic = re.compile(_AUTOMATIC.format("|".join(stems)))
    alike = (automatic.fullmatch(layer.name) and unnumbered(layer.name) == unnumbered(name) for layer, name in pairs)
    return pairs if all(alike) else []


def unnumbered(name: str) -> str:
    """A name without the numbers in it.

    >>> unnumbered("multi_head_attention_2_query")
    'multi_head_attention_query'
    """
    return _NUMBER.sub("", name)


def named_layers(model: Any) -> list[Any]:
    """Whatever has a name in the config of `model`, itself first."""
    layers = {id(one): one for one in model._flatten_layers()}
    # The layer of which `Bidirectional` makes two is none of the model's, and gives them their names.
    wrapped = (getattr(one, "layer", None) for one in list(layers.values()))
    return list((layers | {id(one): one for one in wrapped if isinstance(one, keras.layers.Layer)}).values())


def rename(model: Any, names: Sequence[tuple[Any, str]]) -> None:
    """Gives layers of `model`, itself or nested models among them, other names; all else about them stays."""
    for layer, name in names:
        layer._name = name
    for one in model._flatten_layers():
        if isinstance(one, keras.Model) and one._is_graph_network:
            held = list(one._self_tracked_trackables)
            init_graph(one, one._nested_inputs, one._nested_outputs, held)


def _stems(layer: Any) -> set[str]:
    """What stands before the numbers in the names that Keras gives such layers, and the plain ones of their kind."""
    kind = kind_of(layer)
    classes = {type(layer).__name__} | ({kind.plain.__name__} if kind else set())
    further = {stem for one in classes for stem in _FURTHER.get(one, ())}
    return {*map(_snake_case, classes), *further} | ({f"tf.{layer.symbol}"} if hasattr(layer, "symbol") else set())


def _snake_case(name: str) -> str:
    """As Keras names a layer by its class."""
    return re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
