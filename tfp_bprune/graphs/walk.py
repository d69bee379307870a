"""A Keras graph, run with a rule of one's own for every call of a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tfp_bprune._keras import keras, tf

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def walk(model: Any, inputs: list[Any], rule: Rule, training: Any = None) -> list[Any]:
    """The outputs of `model`, with `rule(layer, arguments, keywords)` in the place of each layer's call.

    Args:
      model: functional or sequential and built; models nested in it are walked too.
      inputs: one object for each input of the model, of any kind that the rule takes.
      training: what the layers are told that were not told anything by themselves, as Keras does in a nested model.
    """
    known = {str(id(tensor)): value for tensor, value in zip(model.inputs, inputs, strict=True)}
    for node in own_nodes(model):
        if not node.is_input and all(str(id(tensor)) in known for tensor in node.keras_inputs):
            # Keras takes each tensor off a list of as many as are read.
            arguments, keywords = node.map_arguments({name: _Lasting(value) for name, value in known.items()})
            made = _called(node.layer, arguments, keywords, rule, training)
            known.update(zip(node.flat_output_ids, made, strict=True))
    return [known[str(id(tensor))] for tensor in model.outputs]


def own_nodes(model: Any) -> Iterator[Any]:
    """The nodes of a model's graph, in an order in which they can run."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from model._nodes_by_depth[depth]


def nodes_of(model: Any) -> Iterator[Any]:
    """The same, with those of models nested in it, each once for every call of the model."""
    for node in own_nodes(model):
        yield node
        if isinstance(node.layer, keras.Model):
            yield from nodes_of(node.layer)


class _Lasting:
    """Stands for the list of copies of a tensor that Keras's graph keeps, without running out."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def pop(self) -> Any:
        return self._value


def _called(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], rule: Rule, training: Any) -> list[Any]:
    spec = layer._call_spec
    if (
        training is not None
        and spec.expects_training_arg
        and not spec.arg_was_passed("training", arguments, keywords, True)
    ):
        keywords = {**keywords, "training": training}
    if isinstance(layer, keras.Model):
        return _walked_within(layer, arguments, keywords, rule)
    return tf.nest.flatten(rule(layer, arguments, keywords))


def _walked_within(model: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], rule: Rule) -> list[Any]:
    """The outputs of a nested model, whose call takes inputs, training and masks."""
    given = dict(zip(("inputs", "training", "mask"), arguments, strict=False)) | keywords
    inputs = model._flatten_to_reference_inputs(given["inputs"])
    if given.get("mask") is not None:
        masks = model._flatten_to_reference_inputs(given["mask"])
        inputs = [_with_mask(value, mask) for value, mask in zip(inputs, masks, strict=True)]
    return walk(model, inputs, rule, given.get("training"))


def _with_mask(value: Any, mask: Any) -> Any:
    return value if mask is None else replace(value, mask=mask.mean)
