"""Models nested in a model taken apart: their layers become layers of the model itself."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.graph import followed
from tfp_bprune.graphs.rebuild import carry_notes, check_graph, rebuild
from tfp_bprune.graphs.walk import walk


def inline(model: Any) -> Any:
    """A copy of `model` in which the layers of nested models are the model's own; `model` itself if there are no nested models.

    The copy is a functional model that computes the same, with copies of the weights. Inputs and outputs keep their names: an
    output named after a nested model becomes the output of an identity layer of that name.

    Args:
      model: a functional or sequential Keras model, Bayesian or not, built.

    Raises:
      BpruneError: the model, or one nested in it, is subclassed, has a `call` of its own or was never built; two layers have the same
        name; a nested model is called with a mask, or with tensors of other shapes than its inputs; or a layer with weights is called
        by itself and within another one.

    Example:
      base = keras.applications.MobileNetV2(include_top=False, input_shape=(96, 96, 3))
      model = keras.Sequential([base, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])
      model = bp.inline(bp.bayesianize(model))  # which `bp.Shrink` can make smaller while it is trained
    """
    check_graph(model)
    if not any(isinstance(layer, keras.Model) for layer in model.layers):
        return model
    followed(model)  # which refuses equal names
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    outputs = walk(copy, copy.inputs, lambda layer, arguments, keywords: layer(*arguments, **keywords))
    named = [
        tensor if tensor._keras_history.layer.name == name else keras.layers.Activation("linear", name=name)(tensor)
        for tensor, name in zip(outputs, copy.output_names, strict=True)
    ]
    flat = keras.Model(copy._nested_inputs, tf.nest.pack_sequence_as(copy._nested_outputs, named), name=model.name)
    carry_notes(model, flat)
    return flat
