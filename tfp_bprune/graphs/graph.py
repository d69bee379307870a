"""The graph of a Keras model as a list of steps, for everything that has to follow channels through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.rebuild import check_graph, has_own_call
from tfp_bprune.graphs.walk import own_nodes
from tfp_bprune.layers.rules import LayerRule, rule_of, rule_of_call
from tfp_bprune.types import BpruneError


@dataclass(frozen=True)
class Step:
    """One call of a layer: tensors by number in, one tensor by number out.

    Attributes:
      inputs: numbers of the tensors read; none for an input layer.
      output: number of the tensor made.
      shape: shape of that tensor, with the batch.
      is_noisy: whether the layer was called with training=True, as Monte-Carlo dropout is.
      rule: of the layer, or of this call where the layer stands for an operation of TensorFlow; one that knows nothing where the
        call makes several tensors, each of which is a step.
      is_shared: whether the layer is called elsewhere too, with the same weights.
    """

    layer: Any
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int | None, ...]
    is_noisy: bool = False
    rule: LayerRule = field(default_factory=LayerRule)
    is_shared: bool = False


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which they can run, and the tensors that leave the model.

    Models nested in it are part of it: the steps are calls of their layers.

    Attributes:
      is_sized: whether the steps have the sizes that the model has; those of a nested model that takes images of any size are not
        known. `inline` makes them known.
    """

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    is_sized: bool = True


class UnfollowedError(BpruneError):
    """A graph whose channels cannot be followed, and why."""


def graph_of(model: Any) -> Graph | None:
    """The graph of a functional or sequential model; None where it cannot be followed, see `followed`."""
    try:
        return followed(model)
    except UnfollowedError:
        return None


def followed(model: Any) -> Graph:
    """The graph of a functional or sequential model, through all models nested in it.

    Raises:
      UnfollowedError: the model, or one nested in it, has a `call` of its own; two layers have the same name, by which weights and
        masks are known; a nested model is called with tensors other than its inputs, or of other shapes; or a layer with weights is
        called by itself and within another one.
    """
    check_graph(model)
    following = _Following()
    outputs = following.of_inputs(model)
    _refuse_equal_names(model, following.steps)
    _refuse_held(following.steps)
    steps = (replace(step, is_shared=following.calls[id(step.layer)] > 1) for step in following.steps)
    return Graph(tuple(steps), tuple(outputs), following.is_sized)


class _Following:
    """Steps and numbers of tensors, through models within models."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.is_sized = True
        self.calls: Counter[int] = Counter()  # of each layer, by its id
        self._count = 0

    def of_inputs(self, model: Any) -> list[int]:
        """The outputs of a model whose inputs come from outside."""
        known = {}
        for node in own_nodes(model):
            if node.is_input:
                [known[id(node.outputs)]] = self._made(node, (), False)
        return self._of(model, known, None)

    def _of(self, model: Any, known: dict[int, int], training: Any) -> list[int]:
        """The outputs of a model of which the inputs are `known`, by the ids of its tensors."""
        if has_own_call(model):
            raise UnfollowedError(
                f"{type(model).__name__} {model.name!r} overrides `call`, so its graph does not describe it: expected a functional or "
                "sequential model"
            )
        for node in own_nodes(model):
            if node.is_input:
                continue
            given, told = _arguments(node), training
            if given.get("training") is not None:
                told = given["training"]
            if isinstance(node.layer, keras.Model):
                made = self._of(node.layer, _entering(node, given, known), told)
                _check_leaving(node)
                pairs = zip(node.layer.inputs, _given_to(node.layer, given), strict=True)
                self.is_sized &= all(tuple(own.shape)[1:] == tuple(tensor.shape)[1:] for own, tensor in pairs)
            else:
                read = tuple(known[id(tensor)] for tensor in node.keras_inputs)
                made = self._made(node, read, _may_train(told) and node.layer._call_spec.expects_training_arg)
            known.update(zip(map(id, tf.nest.flatten(node.outputs)), made, strict=True))
        return [known[id(tensor)] for tensor in model.outputs]

    def _made(self, node: Any, read: tuple[int, ...], is_noisy: bool) -> list[int]:
        tensors = tf.nest.flatten(node.outputs)
        made = [self._count + i for i in range(len(tensors))]
        self._count += len(made)
        self.calls[id(node.layer)] += 1
        rule = _rule(node) if len(made) == 1 else LayerRule()
        for number, tensor in zip(made, tensors, strict=True):
            self.steps.append(Step(node.layer, read, number, tuple(tensor.shape), is_noisy, rule))
        return made


def _arguments(node: Any) -> dict[str, Any]:
    """What a layer is called with, by name."""
    return dict(zip(node.layer._call_spec.arg_names, node.call_args, strict=False)) | node.call_kwargs


def _may_train(told: Any) -> bool:
    """Whether a layer is told to behave as in training, by True, 1, or what is known when it is called."""
    return told is not None and not (isinstance(told, bool | int | np.bool_) and not told)


def _rule(node: Any) -> LayerRule:
    if node.is_input:
        return LayerRule()
    return rule_of_call(node.layer, node.call_args, node.call_kwargs) or rule_of(node.layer)


def _entering(node: Any, given: Mapping[str, Any], known: Mapping[int, int]) -> dict[int, int]:
    """The inputs of a nested model by the ids of its own tensors."""
    model = node.layer
    tensors = _given_to(model, given)
    if {id(tensor) for tensor in node.keras_inputs} != {id(tensor) for tensor in tensors}:
        raise UnfollowedError(
            f"the nested model {model.name!r} is called with tensors other than its inputs, such as a mask: expected its inputs alone"
        )
    for own, tensor in zip(model.inputs, tensors, strict=True):
        # Keras adds an axis of one number, or takes it away.
        if own.shape.rank != tensor.shape.rank or own.shape[-1] not in (None, tensor.shape[-1]):
            raise _other_shape(model, tensor.shape, own.shape)
    return {id(own): known[id(tensor)] for own, tensor in zip(model.inputs, tensors, strict=True)}


def _given_to(model: Any, given: Mapping[str, Any]) -> list[Any]:
    """The tensors that a nested model is called with, in the order of its inputs."""
    tensors: list[Any] = model._flatten_to_reference_inputs(given.get("inputs", given.get("x")))
    return tensors


def _check_leaving(node: Any) -> None:
    """Refuses a nested model that makes as many channels as it is given, which its own graph does not tell."""
    for own, tensor in zip(node.layer.outputs, tf.nest.flatten(node.outputs), strict=True):
        if own.shape.rank and own.shape[-1] != tensor.shape[-1]:
            raise _other_shape(node.layer, tensor.shape, own.shape)


def _other_shape(model: Any, found: Any, expected: Any) -> UnfollowedError:
    return UnfollowedError(
        f"the nested model {model.name!r} is called with tensors of other shapes: got {tuple(found)}, expected {tuple(expected)}"
    )


def _refuse_held(steps: list[Step]) -> None:
    """Refuses layers that another one calls too, as a TimeDistributed does: its calls are not known."""
    called = {id(step.layer): step.layer for step in steps}
    for holder in called.values():
        for layer in holder._flatten_layers(include_self=False):
            if id(layer) in called and layer.weights:
                raise UnfollowedError(
                    f"layer {layer.name!r} is called by itself and within layer {holder.name!r}: expected a layer of its own in each"
                )


def _refuse_equal_names(model: Any, steps: list[Step]) -> None:
    layers = {id(step.layer): step.layer.name for step in steps}
    repeated = [name for name, count in Counter(layers.values()).items() if count > 1]
    if repeated:
        raise UnfollowedError(
            f"model {model.name!r} has several layers named {repeated[0]!r}, in models nested in it: expected a name of its own for each"
        )
