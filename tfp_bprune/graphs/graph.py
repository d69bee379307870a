"""The graph of a Keras model as a list of steps, for everything that has to follow channels through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.graphs.rebuild import check_graph


@dataclass(frozen=True)
class Step:
    """One call of a layer: tensors by number in, one tensor by number out.

    Attributes:
      inputs: numbers of the tensors read; none for an input layer.
      output: number of the tensor made.
      shape: shape of that tensor, with the batch.
      is_noisy: whether the layer was called with training=True, as Monte-Carlo dropout is.
    """

    layer: Any
    inputs: tuple[int, ...]
    output: int
    shape: tuple[int | None, ...]
    is_noisy: bool = False


@dataclass(frozen=True)
class Graph:
    """Steps in an order in which they can run, and the tensors that leave the model."""

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]


def graph_of(model: Any) -> Graph | None:
    """The graph of a functional or sequential model, or None where it is not a plain one.

    Not plain are: nested models, layers called more than once, layers with several outputs.
    """
    check_graph(model)
    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    layers = [node.layer for node in nodes]
    plain = len(set(map(id, layers))) == len(layers) and not any(isinstance(layer, keras.Model) for layer in layers)
    if not plain or any(isinstance(node.outputs, list | tuple | dict) for node in nodes):
        return None
    numbers: dict[int, int] = {}
    steps = []
    for node in nodes:
        number = numbers.setdefault(id(node.outputs), len(numbers))
        inputs = () if node.is_input else tuple(numbers[id(tensor)] for tensor in node.keras_inputs)
        steps.append(Step(node.layer, inputs, number, tuple(node.outputs.shape), _is_noisy(node)))
    return Graph(tuple(steps), tuple(numbers[id(tensor)] for tensor in model.outputs))


def _is_noisy(node: Any) -> bool:
    spec = node.layer._call_spec
    if not spec.expects_training_arg or node.is_input:
        return False
    given = dict(zip(spec.arg_names, node.call_args, strict=False)) | node.call_kwargs
    return given.get("training") is True
