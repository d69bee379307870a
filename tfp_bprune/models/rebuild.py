"""Copies of Keras models in which chosen layers are replaced: the one way in which models are transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.types import BpruneError

Replace = Callable[[Any], Any]
Transfer = Callable[[Any, Any], None]
_NOTES = "_tfp_bprune_"


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
    copies: dict[int, tuple[Any, Any, bool]] = {}
    copy = _clone(model, replace, copies)
    if not copy.built:
        copy.build(model.input_shape)
    for old, new, replaced in copies.values():
        if replaced:
            transfer(old, new)
        elif not isinstance(old, keras.Model):
            new.set_weights(old.get_weights())
    carry_notes(model, copy)
    return copy


def note(model: Any, key: str, value: Any) -> None:
    """Notes on `model` something that copies of it keep and that is no part of its weights."""
    vars(model)[_NOTES + key] = value  # past Keras, which would track it


def noted(model: Any, key: str) -> Any:
    """What was noted under `key`; None if nothing was."""
    return vars(model).get(_NOTES + key)


def carry_notes(model: Any, copy: Any) -> None:
    """Gives a copy the notes of `model`, and the loss that it was compiled with as one."""
    loss = getattr(model, "loss", None)
    if loss is not None:
        note(copy, "loss", loss)
    vars(copy).update({key: value for key, value in vars(model).items() if key.startswith(_NOTES)})


def check_graph(model: Any) -> None:
    """Refuses models whose layers and connections Keras does not know.

    Raises:
      BpruneError: the model, or one nested in it, is no Keras model, is subclassed, or was never built.
    """
    if not isinstance(model, keras.Model):
        raise BpruneError(f"expected a tf_keras model, got {type(model).__module__}.{type(model).__name__}")
    if not isinstance(model, keras.Sequential) and not model._is_graph_network:
        raise BpruneError(
            f"{type(model).__name__} is a subclassed model: expected a functional or sequential one, whose graph is known"
        )
    if not model.built:
        raise BpruneError(f"model {model.name!r} has no weights yet: build it or call it on a batch first")
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            check_graph(layer)


def calls_of(model: Any) -> Iterator[Any]:
    """The layer of every call that a call of `model` makes, in order, nested models followed.

    A layer called twice comes twice. What a layer holds within it, as `TimeDistributed` does, is not among them:
    `rebuild` cannot replace it.
    """
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if isinstance(node.layer, keras.Model):
                yield from calls_of(node.layer)
            else:
                yield node.layer


def _clone(model: Any, replace: Replace, copies: dict[int, tuple[Any, Any, bool]]) -> Any:
    def clone_layer(layer: Any) -> Any:
        if id(layer) not in copies:  # it may be part of several nested models
            copies[id(layer)] = (layer, *copied(layer))
        return copies[id(layer)][1]

    def copied(layer: Any) -> tuple[Any, bool]:
        if isinstance(layer, keras.Model):
            return _clone(layer, replace, copies), False
        new = replace(layer)
        return new or layer.__class__.from_config(layer.get_config()), new is not None

    return keras.models.clone_model(model, clone_function=clone_layer)
