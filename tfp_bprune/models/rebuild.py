"""Copies of Keras models in which chosen layers are replaced: the one way in which models are transformed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.types import BpruneError

Replace = Callable[[Any], Any]
Transfer = Callable[[Any, Any], None]


def rebuild(model: Any, replace: Replace, transfer: Transfer) -> Any:
    """A copy of `model`, graph and weights, with some layers replaced; `model` stays as it is.

    Args:
      model: a functional or sequential Keras model, built; models nested in it are rebuilt too.
      replace: new, unbuilt layer for a layer, or None to copy that layer as it is.
      transfer: gives a replacement, now built, its weights: `transfer(old, new)`.

    Raises:
      BpruneError: the model is subclassed or was never built.
    """
    check_graph(model)
    pairs: list[tuple[Any, Any, bool]] = []
    copy = _clone(model, replace, pairs)
    if not copy.built:
        copy.build(model.input_shape)
    for old, new, replaced in pairs:
        if replaced:
            transfer(old, new)
        else:
            new.set_weights(old.get_weights())
    return copy


def check_graph(model: Any) -> None:
    """Refuses models whose layers and connections Keras does not know.

    Raises:
      BpruneError: the model is no Keras model, is subclassed, or was never built.
    """
    if not isinstance(model, keras.Model):
        raise BpruneError(f"expected a tf_keras model, got {type(model).__module__}.{type(model).__name__}")
    if not isinstance(model, keras.Sequential) and not model._is_graph_network:
        raise BpruneError(
            f"{type(model).__name__} is a subclassed model: expected a functional or sequential one, whose graph is known"
        )
    if not model.built:
        raise BpruneError(f"model {model.name!r} has no weights yet: build it or call it on a batch first")


def _clone(model: Any, replace: Replace, pairs: list[tuple[Any, Any, bool]]) -> Any:
    def clone_layer(layer: Any) -> Any:
        if isinstance(layer, keras.Model):
            return _clone(layer, replace, pairs)
        new = replace(layer)
        pairs.append((layer, new or layer.__class__.from_config(layer.get_config()), new is not None))
        return pairs[-1][1]

    return keras.models.clone_model(model, clone_function=clone_layer)
