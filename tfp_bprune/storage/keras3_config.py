"""The JSON of a Keras 3 model as tf_keras writes it: plain data in, plain data out; what has no counterpart is named."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.types import BpruneError, Json, RunError

_MODELS = ("Functional", "Sequential", "Model")
_MERGES = {"Add": "Add", "Subtract": "Subtract", "Multiply": "Multiply", "Maximum": "Maximum", "Minimum": "Minimum"}
_ACTIVATIONS = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign", "Silu": "silu",
    "Elu": "elu", "Selu": "selu",
}  # fmt: skip
# By these names Keras 2 has other functions.
_OTHERWISE = {"hard_sigmoid": "min(max(x / 6 + 1 / 2, 0), 1), in Keras 2 min(max(x / 5 + 1 / 2, 0), 1)"}
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
# Of the base class, which a layer takes among its keywords.
_OF_ANY = {"name", "trainable", "dtype", "batch_input_shape", "activity_regularizer"}
# Says how Keras 3 computes, and not what.
_NO_MATTER = {
    "seed",
    "flash_attention",
    "quantization_config",
    "lora_rank",
    "lora_alpha",
    "use_cudnn",
    "optional",
    "synchronized",
}
_OBJECTS = ("keras.initializers", "keras.regularizers", "keras.constraints")
_ARGUMENT_OF = {
    "MultiHeadAttention": ("query", "value", "key"),
    "Attention": ("inputs",),
    "LSTM": ("inputs", "initial_state"),
}


def converted(config: Json) -> Json:
    """A model's configuration as `store.from_architecture` takes it; that of tf_keras as it is.

    Raises:
      BpruneError: naming the layer, or argument, that tf_keras has not.
      RunError: it is no configuration of a model.
    """
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise RunError("the configuration is not that of a model: expected what Keras writes")
    if config.get("class_name") not in _MODELS or not isinstance(config["config"].get("layers"), list):
        raise BpruneError(
            f"{str(config.get('class_name'))[:99]} is no functional or sequential model: expected one, whose graph is known"
        )
    return _model(config) if _is_of_keras3(config) else _without_module(config)


def _is_of_keras3(config: Json) -> bool:
    """Keras 3 writes nodes as objects, and shapes of inputs as `batch_shape`."""
    return any(
        isinstance(layer, dict)
        and (
            "batch_shape" in (layer.get("config") or {})
            or any(isinstance(node, dict) for node in layer.get("inbound_nodes") or [])
            or (layer.get("class_name") in _MODELS and bool(layer.get("config")) and _is_of_keras3(layer))
        )
        for layer in (config.get("config") or {}).get("layers") or []
    )


def _without_module(config: Json) -> Json:
    return {"class_name": config["class_name"], "config": config["config"]}


def _model(config: Json) -> Json:
    """A model, at the top or nested."""
    given, kind = config["config"], config["class_name"]
    layers = [_layer(layer) for layer in given["layers"]]
    made: Json = {"name": given.get("name"), "layers": layers}
    if kind == "Sequential":
        first = layers[0]["config"] if layers else {}
        if given.get("build_input_shape") and "batch_input_shape" not in first:
            first["batch_input_shape"] = given["build_input_shape"]
        return {"class_name": kind, "config": made}
    made |= {key: _ends(given.get(key)) for key in ("input_layers", "output_layers")}
    # What makes a model within is its first call in tf_keras, which Keras 3 does not count.
    _count_on(
        {one["name"] for one in layers if one["class_name"] in _MODELS},
        [made["output_layers"], [one["inbound_nodes"] for one in layers]],
    )
    return {"class_name": "Functional", "config": made}


def _count_on(names: set[str], node: Any) -> None:
    """Adds one to the number of each call of these models."""
    parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    if len(parts) >= 3 and parts[0] in tuple(names) and type(parts[1]) is int and isinstance(node, list):
        node[1] += 1
    for part in parts:
        _count_on(names, part)


def _ends(ends: Any) -> Any:
    """Inputs or outputs, one of which Keras 3 writes without a list around it."""
    if isinstance(ends, dict):
        return ends
    return [ends] if isinstance(ends, list) and ends and isinstance(ends[0], str) else ends


def _layer(layer: Any) -> Json:
    if not isinstance(layer, dict) or not isinstance(layer.get("config"), dict):
        raise RunError(f"the configuration holds something that is no layer: {str(layer)[:99]}")
    name = str(layer.get("name") or layer["config"].get("name"))
    nodes = [_node(node, str(layer.get("class_name")), name) for node in layer.get("inbound_nodes") or []]
    about = {"name": name, "inbound_nodes": nodes}
    if layer.get("class_name") in _MODELS:
        made = _model(layer)
        module = "keras" if made["class_name"] == "Sequential" else "tf_keras.src.engine.functional"
        return {"module": module, "registered_name": None, **made, **about}
    kind, config = _kind(layer, name)
    return {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None, **about}


def _kind(layer: Json, name: str) -> tuple[str, Json]:
    """The class of a layer in tf_keras, and its arguments."""
    kind, module, config = str(layer.get("class_name")), str(layer.get("module")), layer["config"]
    if module.startswith("keras.src.ops."):
        return _operation(kind, name)
    if module != "keras.layers" or layer.get("registered_name") not in (None, kind):
        raise BpruneError(f"layer {name!r} is a {module}.{kind}: expected layers of Keras itself")
    found = getattr(keras.layers, kind, None)
    if not isinstance(found, type):
        raise BpruneError(f"layer {name!r} is a {kind}, which Keras 2 does not have: replace it, or leave it out")
    made = dict(_arguments(found, kind, name, config))
    if kind == "MultiHeadAttention":
        made |= _shapes_of_attention(layer.get("build_config") or {})
    return kind, made


def _shapes_of_attention(built: Json) -> Json:
    """What tf_keras's attention is made for, and what Keras 3 has among the shapes that it was built with."""
    shapes = built.get("shapes_dict") or built
    value = shapes.get("value_shape")
    return {
        "query_shape": shapes.get("query_shape"),
        "key_shape": shapes.get("key_shape") or value,
        "value_shape": value,
    }


def _operation(kind: str, name: str) -> tuple[str, Json]:
    """An operation on tensors, as a layer."""
    if kind in _MERGES:
        return _MERGES[kind], {"name": name}
    if kind in _ACTIVATIONS:
        return "Activation", {"name": name, "activation": _ACTIVATIONS[kind]}
    raise BpruneError(
        f"layer {name!r} is the operation {kind} of Keras 3, which has no counterpart: use a layer for it"
    )


def _arguments(found: Any, kind: str, name: str, config: Json) -> Iterator[tuple[str, Any]]:
    """The arguments that tf_keras's layer takes.

    Raises:
      BpruneError: naming one that it does not take and that is not off.
    """
    known = _OF_ANY | {
        key
        for owner in found.__mro__
        if "__init__" in vars(owner)
        for key in inspect.signature(owner.__init__).parameters
    }
    known |= {"input_shape", "batch_input_shape"} if kind == "InputLayer" else set()
    for key, value in config.items():
        key = _RENAMED.get((kind, key), "batch_input_shape" if key == "batch_shape" else key)
        if key.endswith("activation") and isinstance(value, str) and value in _OTHERWISE:
            raise BpruneError(
                f"layer {name!r} ({kind}) has {key}={value!r}, which is {_OTHERWISE[value]}: use another one"
            )
        if key in known:
            yield key, _dtype(value) if key == "dtype" else _value(value)
        elif key not in _NO_MATTER and not key.startswith("renorm") and value not in (None, False, [], {}):
            raise BpruneError(
                f"layer {name!r} ({kind}) has {key}={str(value)[:60]!r}, which Keras 2 does not take: leave it out"
            )


def _dtype(value: Any) -> Any:
    """A policy by its name; one of mixed precision as tf_keras writes it."""
    if isinstance(value, dict):
        value = (value.get("config") or {}).get("name")
    if isinstance(value, str) and value.startswith("mixed_"):
        return {
            "module": "keras.mixed_precision",
            "class_name": "Policy",
            "config": {"name": value},
            "registered_name": None,
        }
    return value


def _value(value: Any) -> Any:
    """An argument; an initializer and the like with the arguments that tf_keras's takes."""
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, dict) and value.get("class_name") == "DTypePolicy":
        return _dtype(value)
    if isinstance(value, dict) and value.get("module") == "keras.layers":  # of a wrapper, such as TimeDistributed
        inner = _layer(value)
        return {key: inner[key] for key in ("module", "class_name", "config", "registered_name")}
    if not isinstance(value, dict) or value.get("module") not in _OBJECTS or not isinstance(value.get("config"), dict):
        return value
    module, kind = value["module"], str(value.get("class_name"))
    found = getattr(getattr(keras, module.partition(".")[2]), kind, None)
    if not isinstance(found, type):
        raise BpruneError(f"Keras 2 has no {kind} among its {module.partition('.')[2]}: choose another")
    known = set(inspect.signature(found.__init__).parameters)  # type: ignore[misc]
    return {
        "module": module, "class_name": kind, "registered_name": None,
        "config": {key: one for key, one in value["config"].items() if key in known},
    }  # fmt: skip


def _node(node: Any, kind: str, name: str) -> Any:
    """One call: its first argument, and all others by name."""
    if not isinstance(node, dict):
        raise RunError(f"layer {name!r} is called in a form that is not known: {str(node)[:99]}")
    args, keywords = list(node.get("args") or []), dict(node.get("kwargs") or {})
    if kind in _MERGES and len(args) == 2 and all(_tensor(one) for one in args):
        args = [args]  # of an operation: a layer takes a list
    names = _ARGUMENT_OF.get(kind, ("inputs",))
    for key, one in zip(names[1:], args[1:], strict=False):
        keywords[key] = one
    if len(args) > len(names) or not args:
        raise BpruneError(f"layer {name!r} ({kind}) is called with {len(args)} arguments: expected its inputs alone")
    others = {
        key: _reference(one)
        for key, one in keywords.items()
        if one is not None and not (key == "training" and one is False)
    }
    first = args[0] if isinstance(args[0], list) else [args[0]]
    if not all(_tensor(one) for one in first):
        raise BpruneError(f"layer {name!r} ({kind}) is called with a constant: expected tensors")
    return [[*_tensor(one), others if i == 0 else {}] for i, one in enumerate(first)]


def _reference(value: Any) -> Any:
    return _tensor(value) or value


def _tensor(value: Any) -> Any:
    """The call whose output a tensor is: layer, number of the call, number of the output; None of what is no tensor."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        history = (value.get("config") or {}).get("keras_history")
        if isinstance(history, list) and len(history) == 3:
            return history
    return None
