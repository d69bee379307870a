"""The own call of a Keras layer within an export: as outside training, masks as Keras hands them on, and nothing random."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import kind_of
from tfp_bprune.layers.rules import Identity, Noise, is_elementwise, rule_of
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import ExportError

_L = keras.layers
_RANDOM = re.compile(r"Random(?!Dataset)|Multinomial|TruncatedNormal|Stateful(Standard|Uniform)|Rng")


def called(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The layer's own call, on rows; layers that look at each number by itself take columns too.

    Raises:
      ExportError: the call draws random numbers, or is batch normalization by the batch.
    """
    values = values_of(arguments, keywords)
    training = bool(training_of(layer, arguments, keywords))
    rule = rule_of(layer)
    if isinstance(rule, Noise) or (isinstance(rule, Identity) and not training):
        return _unchanged(layer, rule, values[0])
    if rule.is_elementwise(layer):
        return replace(values[0], mean=layer(values[0].mean))
    if type(layer) is _L.GroupNormalization and values[0].mask is None:
        rows = values[0].as_rows()
        return replace(rows, mean=_normalized_by_group(layer, rows.mean))
    drawn = any(value.drawn for value in values)
    if training:
        _refuse_batch_statistics(layer)
    elif takes_training(layer):  # `call` may take it for True if it is not told
        keywords = {**keywords, "training": False} if len(arguments) < 2 else keywords
    arguments, keywords = tf.nest.map_structure(_as_tensor, (arguments, keywords))
    checked = training or not is_stock(layer)
    made = _without_chance(layer, lambda: layer(*arguments, **keywords)) if checked else layer(*arguments, **keywords)
    return tf.nest.map_structure(lambda t: Value(t, drawn=drawn, mask=getattr(t, "_keras_mask", None)), made)


def activated(layer: Any, value: Value) -> Value:
    """The layer's activation of its outputs, on rows unless it looks at each number by itself."""
    if getattr(layer, "activation", None) is None:
        return value
    if not is_elementwise(layer):
        value = value.as_rows()
    return replace(value, mean=layer.activation(value.mean), variance=None)


def masked(layer: Any, inputs: Value | list[Value], outputs: Value) -> Value:
    """The outputs with the mask that Keras would give them; `inputs` is a list where the layer reads several."""
    several = inputs if isinstance(inputs, list) else [inputs]
    kind = kind_of(layer)
    makes = kind is not None and kind.reads_indices  # of its inputs, as an embedding whose 0 is padding
    if not layer.supports_masking or (not makes and all(value.mask is None for value in several)):
        return replace(outputs, mask=None)
    means, masks = [value.as_rows().mean for value in several], [value.mask for value in several]
    single = len(several) == 1
    return replace(outputs, mask=layer.compute_mask(means[0] if single else means, masks[0] if single else masks))


def values_of(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Value]:
    """The values among a call's arguments, in order."""
    return [value for value in tf.nest.flatten((arguments, keywords)) if isinstance(value, Value)]


def takes_training(layer: Any) -> bool:
    """Whether the layer's call asks whether it is training."""
    return bool(layer._call_spec.expects_training_arg)


def training_of(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """What a call of the layer was told of training; None where nothing."""
    if not takes_training(layer):
        return None
    if "training" in keywords:
        return keywords["training"]
    names = dict(zip(layer._call_spec.arg_names, arguments, strict=False))
    return names.get("training")


def is_stock(layer: Any) -> bool:
    """Whether all that the layer does is Keras's or this package's own code, and treats examples one by one."""
    return all(_is_stock(type(one)) for one in layer._flatten_layers())


def _is_stock(kind: type) -> bool:
    package, module = kind.__module__.split(".")[0], kind.__module__.rsplit(".", 1)[-1]
    return package in ("tf_keras", "keras", "tfp_bprune") and module not in ("tf_op_layer", "lambda_layer")


def _normalized_by_group(layer: Any, inputs: Any) -> Any:
    """Group normalization without Keras's weights of 1 for each number, which LiteRT does not make for a batch of any size."""
    rank = len(inputs.shape)
    order = [axis for axis in range(rank) if axis != layer.axis % rank] + [layer.axis % rank]
    turned = inputs if order == sorted(order) else tf.transpose(inputs, order)
    *sizes, channels = turned.shape[1:]
    batch, positions = (tf.shape(turned)[0], -1) if None in sizes else (-1, math.prod(sizes))
    grouped = tf.reshape(turned, [batch, positions, layer.groups, channels // layer.groups])
    mean = tf.reduce_mean(grouped, [1, 3], keepdims=True)
    variance = tf.reduce_mean(tf.square(grouped - mean), [1, 3], keepdims=True)
    made = (grouped - mean) * tf.math.rsqrt(variance + layer.epsilon)
    if layer.scale:
        made *= tf.reshape(layer.gamma, [layer.groups, -1])
    if layer.center:
        made += tf.reshape(layer.beta, [layer.groups, -1])
    made = tf.reshape(made, tf.shape(turned) if None in sizes else [-1, *sizes, channels])
    return made if turned is inputs else tf.transpose(made, np.argsort(order))


def _unchanged(layer: Any, rule: Identity, value: Value) -> Value:
    value = value.each(lambda tensor: rule.returned(layer, tensor))
    return value if layer.supports_masking else replace(value, mask=None)


def _as_tensor(value: Any) -> Any:
    """A value as Keras's layers read it, its mask where they look for it."""
    if not isinstance(value, Value):
        return value
    tensor = value.as_rows().mean
    tensor._keras_mask = value.mask
    return tensor


def _refuse_batch_statistics(layer: Any) -> None:
    for one in layer._flatten_layers():
        if isinstance(one, _L.BatchNormalization):
            raise ExportError(
                f"layer {one.name!r} is a batch normalization called with training=True, which makes an answer depend on "
                "its batch: call it without"
            )


def _without_chance(layer: Any, call: Callable[[], Any]) -> Any:
    """What `call` gives, refused if it draws random numbers."""
    if tf.executing_eagerly():
        return call()
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    made = call()
    if any(_RANDOM.search(kind) for kind in _kinds(graph, graph.get_operations()[before:])):
        raise ExportError(
            f"layer {layer.name!r} draws random numbers outside training, which an export cannot carry: leave them out, or "
            "use this package's Bayesian layers or Keras's dropout layers called with training=True"
        )
    return made


def _kinds(graph: Any, operations: list[Any]) -> Iterator[str]:
    """The types of operations, those in the functions that they call too."""
    nodes, library, seen = [operation.node_def for operation in operations], None, set()
    while nodes:
        node = nodes.pop()
        yield node.op
        for attribute in node.attr.values():
            for function in (attribute.func, *attribute.list.func):
                if not function.name or function.name in seen:
                    continue
                if library is None:
                    library = {one.signature.name: one for one in graph.as_graph_def().library.function}
                seen.add(function.name)
                nodes.extend(library[function.name].node_def if function.name in library else ())
