"""Copies of single layers, with what Keras keeps beside config and weights: adapted state, activations, frozen flags."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType
from typing import Any

from tfp_bprune._keras import keras, library_of, tfp
from tfp_bprune.layers import Composed, Variational
from tfp_bprune.types import BpruneError, Json

_L = keras.layers
# Arguments that Keras writes into a config as names, under which it may not find them again.
_OBJECTS = ("activation", "_initializer", "_regularizer", "_constraint")


def copy_of(layer: Any) -> Any:
    """A new layer like `layer`, not built; `copy_state` gives it the rest.

    Raises:
      BpruneError: Keras cannot make the layer anew.
    """
    if within(layer) is not layer:
        return around(layer, copy_of(within(layer)))
    head = tfp.layers.DistributionLambda
    if isinstance(layer, head) and (type(layer) is head or not layer.weights):
        return _copy_of_distribution(layer)
    try:
        return made_from(layer, config_of(layer))
    except (NotImplementedError, TypeError, ValueError) as error:
        cause = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise BpruneError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be copied, since its get_config does not recreate it: {cause}"
        ) from error


def made_from(layer: Any, config: Json) -> Any:
    """A layer of the class of `layer` from a config that `config_of` gave, perhaps with other arguments.

    Raises:
      BpruneError: a layer within it would not have the function that it has, but Keras's of the same name.
    """
    new = type(layer).from_config(config)
    old_parts, new_parts = (list(one._flatten_layers(include_self=False)) for one in (layer, new))
    for old, made in zip(old_parts, new_parts, strict=False) if len(old_parts) == len(new_parts) else ():
        for key, function in _objects(old, _config_or_nothing(old)).items():
            if isinstance(function, FunctionType) and getattr(made, key, None) is not function:
                raise BpruneError(
                    f"layer {layer.name!r} ({type(layer).__name__}) holds layer {old.name!r}, whose {key} is the function "
                    f"{function.__module__}.{function.__qualname__}, which its get_config cannot make anew: use one of Keras's"
                )
    return new


def _copy_of_distribution(layer: Any) -> Any:
    """The same functions in a new layer: a config would hold copies of them, or none."""
    return tfp.layers.DistributionLambda(
        layer._make_distribution_fn,
        layer._convert_to_tensor_fn,
        name=layer.name,
        dtype=layer.dtype_policy,
        activity_regularizer=layer.activity_regularizer,
    )


def config_of(layer: Any) -> Json:
    """The layer's config with what it was adapted to, and with the functions themselves where a config has their names, those of
    layers within it too: under the name of a function Keras may find one of its own."""
    config = layer.get_config() | adapted(layer)
    parts = list(layer._flatten_layers(include_self=False))
    return {key: _with_objects(value, parts) for key, value in config.items()} | _objects(layer, config)


def _with_objects(config: Any, parts: list[Any]) -> Any:
    """Part of a config in which each layer, one of `parts`, has the functions and objects themselves."""
    if isinstance(config, list):
        return [_with_objects(one, parts) for one in config]
    if not isinstance(config, dict):
        return config
    config = {key: _with_objects(value, parts) for key, value in config.items()}
    arguments, kind = config.get("config"), str(config.get("class_name")).rpartition(">")[2]
    if isinstance(arguments, dict):
        named = [part for part in parts if (part.name, type(part).__name__) == (arguments.get("name"), kind)]
        if named:
            config["config"] = arguments | _objects(named[0], arguments)
        if len(named) > 1:  # of one name, in their order
            parts.remove(named[0])
    return config


def _objects(layer: Any, config: Json) -> Json:
    """The arguments of a layer that are functions or objects which a config does not name for certain."""
    values = {key: getattr(layer, key, None) for key in config if key.endswith(_OBJECTS)}
    return {
        key: value
        for key, value in values.items()
        if value is not None and not is_keras(value) and not isinstance(value, _L.Layer)
    }


def is_keras(value: Any) -> bool:
    """Whether a function or an object is tf_keras's own, which its config names for certain."""
    if isinstance(value, FunctionType):
        return library_of(value) == "tf_keras"
    return str(getattr(type(value), "__module__", "")).startswith("tf_keras.")


def _config_or_nothing(layer: Any) -> Json:
    try:
        config: Json = layer.get_config()
    except NotImplementedError:
        return {}
    return config


def unnamed_function(layer: Any, library: str = "tf_keras") -> str | None:
    """The argument of the layer, if there is one, that is a function which a config of this Keras could not name."""
    for key in _config_or_nothing(layer):
        value = getattr(layer, key, None) if key.endswith(_OBJECTS) else None
        if isinstance(value, FunctionType) and not _is_named(value, library):
            return key
    return None


def _is_named(function: FunctionType, library: str) -> bool:
    named = library == "keras" or hasattr(keras.activations, function.__name__)
    return named and library_of(function) in (library, "tensorflow")


def adapted(layer: Any) -> Json:
    """The arguments that make a preprocessing layer what `adapt` made it; only `Normalization` keeps that in weights."""
    if isinstance(layer, _L.TextVectorization | _L.StringLookup | _L.IntegerLookup):
        return _vocabulary(layer)
    if isinstance(layer, _L.Discretization) and layer.bin_boundaries is not None:
        return {"bin_boundaries": [float(edge) for edge in layer.bin_boundaries], "num_bins": None}
    return {}


def _vocabulary(layer: Any) -> Json:
    lookup = getattr(layer, "_lookup_layer", layer)
    words = layer.get_vocabulary(include_special_tokens=False)
    if not len(words) or lookup.output_mode == "tf_idf":
        return {}
    return {"vocabulary": [word if isinstance(word, str) else int(word) for word in words]}


def copy_activation(layer: Any) -> Any:
    """The layer's activation for a copy of it: a function itself, of a layer a copy, which `copy_state` gives its weights."""
    activation = getattr(layer, "activation", None)
    return copy_of(activation) if isinstance(activation, _L.Layer) else activation


def copy_state(old: Any, new: Any) -> None:
    """Gives `new`, a built copy of `old`, its weights and whatever Keras derives from them."""
    if not adapted(old):  # else its config had them
        new.set_weights(old.get_weights())
    finalize(new)


def copy_activation_state(old: Any, new: Any) -> None:
    """Gives the activation of `new` the weights of that of `old`, where they are layers with weights, such as PReLU."""
    if isinstance(getattr(old, "activation", None), _L.Layer) and old.activation.weights:
        new.activation.set_weights(old.activation.get_weights())


def finalize(layer: Any) -> None:
    """Has a preprocessing layer, or those within `layer`, take up the weights that it was given."""
    for part in layer._flatten_layers():
        if isinstance(part, _L.Normalization) and part.built:
            part.finalize_state()


def copy_flags(old: Any, new: Any) -> None:
    """Freezes of `new` what is frozen of `old`, layer by layer."""
    new._trainable = old._trainable  # the setter would go on to every layer within
    parts = list(old._flatten_layers()), list(new._flatten_layers())
    if not isinstance(old, keras.Model) and len(parts[0]) == len(parts[1]):
        for one, other in zip(*parts, strict=True):
            other._trainable = one._trainable


def is_raw(layer: Any) -> bool:
    """Whether `layer` is a Bayesian layer of tfp.layers itself, or of a class made from one."""
    if isinstance(layer, Variational):
        return False
    return isinstance(layer, tfp.layers.DenseVariational) or (
        hasattr(layer, "kernel_posterior_fn")
        and any(owner.__module__.startswith("tensorflow_probability.") for owner in type(layer).__mro__)
    )


def within(layer: Any) -> Any:
    """The layer that is called for each step of a `TimeDistributed`; other layers themselves."""
    return layer.layer if isinstance(layer, _L.TimeDistributed) and not isinstance(layer.layer, keras.Model) else layer


def around(layer: Any, inner: Any) -> Any:
    """A wrapper like `layer` around the layer `inner`."""
    config = {key: value for key, value in layer.get_config().items() if key != "layer"}
    return type(layer)(inner, **config)


def refuse_hidden(layer: Any) -> None:
    """Refuses a layer that holds Bayesian layers where they can be neither seen nor replaced.

    Raises:
      BpruneError: naming both.
    """
    for hidden in _bayesian_within(within(layer)):
        raise BpruneError(
            f"layer {layer.name!r} ({type(layer).__name__}) holds the Bayesian layer {hidden.name!r}, which cannot be taken "
            "out of it: expected Bayesian layers to be layers of the model itself, or of a TimeDistributed"
        )


def _bayesian_within(layer: Any) -> Iterator[Any]:
    if isinstance(layer, keras.Model | Composed):
        return
    for part in layer._flatten_layers(include_self=False):
        if isinstance(part, Variational) or is_raw(part):
            yield part
