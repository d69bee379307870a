"""Copies of Keras models in which chosen layers are replaced: the one way in which models are transformed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.graphs.copying import around, copy_flags, copy_of, copy_state, refuse_hidden, within
from tfp_bprune.graphs.walk import nodes_of
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
    copying = _Copying(replace, transfer)
    copy = copying.of_model(model)
    if not copy.built:
        copy.build(model.input_shape)
    for old, new, move in copying.moves:
        move(old, new)
        copy_flags(old, new)
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
      BpruneError: the model, or one nested in it, is no Keras model, is subclassed, or was never built; or a layer hides
        Bayesian layers.
    """
    check_known(model)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            check_graph(layer)
        else:
            refuse_hidden(layer)


def check_known(model: Any) -> None:
    """Refuses what is no functional or sequential model of tf_keras with weights; see `check_graph` for what it is made of.

    Raises:
      BpruneError: naming what came.
    """
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        remedy = ": `bayesianize` and `prune` make one of it" if kind.startswith("keras.src.models.") else ""
        raise BpruneError(f"expected a tf_keras model, got {kind}{remedy}")
    if not isinstance(model, keras.Sequential) and not model._is_graph_network:
        raise BpruneError(
            f"{type(model).__name__} is a subclassed model: expected a functional or sequential one, whose graph is known"
        )
    if not model.built:
        raise BpruneError(f"model {model.name!r} has no weights yet: build it or call it on a batch first")


def calls_of(model: Any) -> Iterator[Any]:
    """The layer of every call that a call of `model` makes, in order, nested models followed.

    A layer called twice comes twice. For a `TimeDistributed` comes the layer within it; what other layers hold is not
    among them: `rebuild` cannot replace it.
    """
    for node in nodes_of(model):
        if not isinstance(node.layer, keras.Model):
            yield within(node.layer)


def has_own_call(model: Any) -> bool:
    """Whether a model's class overrides `call`, so that its graph does not describe what it computes."""
    return not type(model).call.__module__.startswith("tf_keras.")


class _Copying:
    """The copies made of a model's layers, each once, and what is to be moved into them when they are built."""

    def __init__(self, replace: Replace, transfer: Transfer) -> None:
        self._replace, self._transfer = replace, transfer
        self._copies: dict[int, Any] = {}
        self.moves: list[tuple[Any, Any, Transfer]] = []

    def of_model(self, model: Any) -> Any:
        """A copy of a model; its layers are kept in the order of their calls."""
        try:
            copy = keras.models.clone_model(model, clone_function=self._of)
        except BpruneError:
            raise
        except (TypeError, ValueError) as error:
            raise BpruneError(
                f"model {model.name!r} cannot be copied: {str(error).splitlines()[0]}; Keras loses arguments of some "
                "TensorFlow functions, as in tf.einsum and x != 1: call such a function inside a layer"
            ) from error
        self.moves.append((model, copy, _freeze))
        return copy

    def _of(self, layer: Any) -> Any:
        if id(layer) not in self._copies:  # it may be part of several nested models
            self._copies[id(layer)] = self.of_model(layer) if isinstance(layer, keras.Model) else self._made(layer)
        return self._copies[id(layer)]

    def _made(self, layer: Any) -> Any:
        inner = within(layer)
        new = self._copies.get(id(inner)) or self._replace(inner)
        if new is None:
            new = copy_of(layer)
            self.moves.append((layer, new, copy_state))
            return new
        self._copies[id(inner)] = new
        self.moves.append((inner, new, self._transfer))
        return new if inner is layer else around(layer, new)


def _freeze(old: Any, new: Any) -> None:
    """Moves nothing: a model holds no weights but its layers'."""
