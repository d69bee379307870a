"""Another network in the place of a model's own, the model object staying what it is: `model.fit` goes on with it.

Keras's loop holds the model and asks it for the training step again at every batch, so that layers can be replaced between
two epochs.
"""

from __future__ import annotations

import weakref
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.convert import is_raw, weighted_layers
from tfp_bprune.graphs.rebuild import check_graph, has_own_call, note, noted
from tfp_bprune.graphs.walk import own_nodes
from tfp_bprune.layers import kernels_of
from tfp_bprune.types import BpruneError

_BEFORE = "sizes_before"
_SYMBOLIC = ("AddLoss", "AddMetric")
# Where Keras itself keeps a model's layers, and makes these anew.
_OF_KERAS = {
    "_self_tracked_trackables", "_self_unconditional_checkpoint_dependencies", "_self_unconditional_dependency_names",
    "_self_unconditional_deferred_dependencies", "_obj_reference_counts_dict", "_input_layers",
    "_output_layers", "_input_coordinates", "_output_coordinates", "_layer_call_argspecs", "_created_nodes",
    "_nodes_by_depth", "_compiled_trainable_state",
}  # fmt: skip


def install(model: Any, other: Any) -> None:
    """Makes `model` compute by the layers of `other`, which it takes over; functions are traced anew.

    Args:
      model: compiled or not; keeps its losses, metrics, notes and attributes. Those that are layers become the new ones.
      other: of the same inputs, outputs and layers by name, of whatever sizes.
    """
    if noted(model, _BEFORE) is None:
        note(model, _BEFORE, _sizes(model))
    old = {layer.name: layer for layer in graph_layers(model)}
    with_model = [one for one in model._self_tracked_trackables if id(one) not in set(map(id, old.values()))]
    new = {layer.name: layer for layer in graph_layers(other)}
    inputs, outputs = model._nested_inputs, model._nested_outputs
    init_graph(
        model,
        tf.nest.pack_sequence_as(inputs, other.inputs),
        tf.nest.pack_sequence_as(outputs, other.outputs),
        [new[name] for name in old] + with_model,
    )
    for attribute, layer in _attributes(model, old):
        setattr(model, attribute, new[layer.name])
    _keep_compiled(model, old, new)
    for function in ("train_function", "train_tf_function", "test_function", "predict_function"):
        setattr(model, function, None)


def init_graph(model: Any, inputs: Any, outputs: Any, tracked: list[Any]) -> None:
    """Has `model` be the graph from `inputs` to `outputs`, and hold `tracked` in that order, by which weights are stored."""
    model._init_graph_network(inputs, outputs)
    vars(model)["_self_tracked_trackables"] = tracked  # past Keras, which would track the list


def sizes_before(model: Any) -> dict[str, int]:
    """Of a model into which another was put: how many weights each of its own kernels had, by `layer/kernel`."""
    return noted(model, _BEFORE) or {}


def _sizes(model: Any) -> dict[str, int]:
    found = ((layer.name, kernels_of(layer)) for layer in weighted_layers(model))
    return {f"{layer}/{name}": w.mask.size for layer, kernels in found for name, w in kernels.items()}


def graph_layers(model: Any) -> list[Any]:
    """The layers of the model's graph, input layers among them, in the order in which Keras holds them."""
    called = {id(node.layer) for node in own_nodes(model)}
    return [layer for layer in model._self_tracked_trackables if id(layer) in called]


def graph_alone(model: Any) -> Any:
    """A model of the same graph and layers, without what else is in `model`: layers beside the graph, a class of its own."""
    return keras.Model(model._nested_inputs, model._nested_outputs, name=model.name)


def _attributes(model: Any, layers: dict[str, Any]) -> list[tuple[str, Any]]:
    """The user's attributes of a model that are layers of its graph."""
    ids = set(map(id, layers.values()))
    return [(name, value) for name, value in list(vars(model).items()) if id(value) in ids]


def _keep_compiled(model: Any, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Of the new layers what was frozen when the model was compiled, which Keras keeps by layer."""
    compiled = getattr(model, "_compiled_trainable_state", None)
    if compiled is None:
        return
    successors = {id(a): b for one in old for a, b in _parts(old[one], new[one])}
    state = weakref.WeakKeyDictionary({successors.get(id(layer), layer): flag for layer, flag in compiled.items()})
    vars(model)["_compiled_trainable_state"] = state


def _parts(old: Any, new: Any) -> list[tuple[Any, Any]]:
    return list(zip(old._flatten_layers(), new._flatten_layers(), strict=False))


def check_installable(model: Any) -> None:
    """Refuses models into which no other network can be put.

    Raises:
      BpruneError: naming what stands in the way.
    """
    check_graph(model)
    if has_own_call(model):
        raise BpruneError(
            f"{type(model).__name__} overrides `call`, so its graph does not describe it: expected a functional or sequential model"
        )
    _check_plain(model)
    for attribute, value in vars(model).items():
        layers = {id(layer) for layer in graph_layers(model)}
        if attribute not in _OF_KERAS and not isinstance(value, keras.layers.Layer) and layers & _held(value):
            raise BpruneError(
                f"attribute {attribute!r} of model {model.name!r} holds layers, which are replaced when it shrinks: expected "
                "attributes that are layers, or none; get_layer(name) gives the present one"
            )


def _held(value: Any) -> set[int]:
    """What a list or dictionary holds, by id."""
    return {id(one) for one in tf.nest.flatten(value)} if isinstance(value, list | tuple | dict) else set()


def _check_plain(model: Any) -> None:
    for node in own_nodes(model):
        layer, name = node.layer, f"layer {node.layer.name!r} ({type(node.layer).__name__})"
        if isinstance(layer, keras.Model):
            raise _refused(f"{name} is a model nested in {model.name!r}; train what `tfp_bprune.inline(model)` gives")
        if is_raw(layer):
            raise _refused(f"{name} is of raw tfp.layers; train what `tfp_bprune.adopt(model)` gives")
    added = [one for one in model._self_tracked_trackables if type(one).__name__ in _SYMBOLIC]
    if added or getattr(model, "_callable_losses", None):
        raise _refused(f"model {model.name!r} has losses or metrics added to it (`add_loss`, `add_metric`)")


def _refused(what: str) -> BpruneError:
    return BpruneError(f"{what}: expected, of a network that shrinks, layers of its own")
