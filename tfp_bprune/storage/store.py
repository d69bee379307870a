"""Keras models as JSON and arrays, without anything in it that could run when it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.files.words import without_homes
from tfp_bprune.graphs.copying import adapted, finalize, unnamed_function
from tfp_bprune.graphs.install import graph_layers, install
from tfp_bprune.graphs.rebuild import check_graph, rebuild
from tfp_bprune.graphs.renaming import automatic_names, named_layers, rename
from tfp_bprune.layers import LAYERS, variational_layers
from tfp_bprune.layers.rules.rule import ruled
from tfp_bprune.storage.harmless import bounded, check_count, check_known, check_made, ending
from tfp_bprune.storage.unrolled import few_steps
from tfp_bprune.types import Json, RunError

_OF_FUNCTIONS = ("TFOpLambda", "SlicingOpLambda")
_OF_TRAINING = ("optimizer/", "training/")
_MODULES = ("keras", "tf_keras", "tfp_bprune")
_ARBITRARY = ("ClassMethod", "InstanceMethod", "InstanceProperty", "TensorFlowOpLayer")
# What TensorFlow's functions are in the config of a layer that Keras made of one: mathematics on tensors and nothing else.
_OPERATIONS = ("math.", "nn.", "linalg.", "signal.", "bitwise.", "__operators__.")
_FUNCTIONS = """
    argsort boolean_mask broadcast_to cast clip_by_norm clip_by_value concat convert_to_tensor einsum ensure_shape
    expand_dims eye fill floor_div gather gather_nd identity image.flip_left_right image.flip_up_down
    image.per_image_standardization image.resize image.rgb_to_grayscale linspace meshgrid norm one_hot ones ones_like pad
    range rank realdiv repeat reshape reverse reverse_sequence roll scatter_nd searchsorted sequence_mask shape slice
    sort split squeeze stack stop_gradient strided_slice tensor_scatter_nd_add tensor_scatter_nd_update tensordot tile
    transpose truediv unstack where zeros zeros_like
"""


class Shaped(Protocol):
    """An array, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""

    @property
    def dtype(self) -> np.dtype:
        """The type of its numbers."""


def architecture(model: Any) -> Json:
    """The model's graph and layer configs.

    Raises:
      RunError: a layer could not be read back safely, such as a Lambda.
      BpruneError: the model has no graph that could be read back: it is subclassed, or of another Keras.
    """
    check_graph(model)
    for layer in model._flatten_layers(include_self=False):
        argument = unnamed_function(layer)
        if argument is not None:
            raise RunError(
                f"layer {layer.name!r} has a function of its own as {argument}, which cannot be stored without code: use one of "
                "Keras's by name, or a layer of yours that is registered and has a rule (`rule_for`)"
            )
    if any(adapted(layer) for layer in model._flatten_layers(include_self=False)):
        model = rebuild(model, lambda layer: None, lambda old, new: None)  # whose configs say what was adapted to
    try:
        config = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError) as error:
        cause = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
        raise RunError(f"model {model.name!r} cannot be stored as JSON: {cause}") from error
    check_harmless(config)
    check_count(config)
    if any(layer.__class__.__name__ in _OF_FUNCTIONS for layer in model._flatten_layers(include_self=False)):
        from_architecture(config)  # Keras loses arguments of some, such as the constant of x != 1
    return config


def from_architecture(config: Json, most: int | None = None) -> Any:
    """A model with fresh weights from `architecture`'s result.

    Args:
      most: bytes that its weights take; None for any number.

    Raises:
      RunError: the description is damaged, or names something that could run code.
    """
    check_count(config)
    check_harmless(config)
    check_known(config)
    try:
        # Keras's wrappers look for what they hold by its plain name.
        with (
            bounded(most),
            ending(),
            few_steps(),
            keras.utils.custom_object_scope({layer.__name__: layer for layer in LAYERS.values()}),
        ):
            model = keras.models.model_from_json(json.dumps(config))
    except RunError:
        raise
    except Exception as error:  # whatever a layer makes of arguments that it was never given
        said = str(error).splitlines() or [type(error).__name__]
        raise RunError(f"the stored architecture cannot be rebuilt: {said[0]}") from error
    if not isinstance(model, keras.Model):
        raise RunError(
            f"the stored architecture cannot be rebuilt: it is a {config.get('class_name')}, expected a model"
        )
    check_made(model)
    return model


def become(model: Any, config: Json | None, most: int | None = None) -> None:
    """Makes `model` the network that an `architecture` describes, with fresh weights, where it is another; None is its own.

    Args:
      most: as in `from_architecture`.

    Raises:
      RunError: as in `from_architecture`, or the description has other layers than the model.
    """
    if config is None or config == architecture(model):
        return
    other = from_architecture(config, most)
    if sorted(layer.name for layer in graph_layers(other)) != sorted(layer.name for layer in graph_layers(model)):
        raise RunError(f"the stored architecture has other layers than model {model.name!r}: it is of another network")
    install(model, other)


def take_names(model: Any, config: Json) -> bool:
    """Gives the layers of `model` their names in an `architecture`, where it is the same but for names that Keras numbered.

    Returns:
      Whether it is the same now.
    """
    wanted = _comparable(config)
    try:
        if _comparable(architecture(model)) == wanted:
            return True
        other = from_architecture(config, sum(math.prod(w.shape) * w.dtype.size for w in model.weights))
    except RunError:  # of what cannot be stored, or is another network
        return False
    before = [(layer, layer.name) for layer in named_layers(model)]
    rename(model, automatic_names(model, other))
    if _comparable(architecture(model)) == wanted:
        return True
    rename(model, before)
    return False


def _comparable(config: Any) -> Any:
    """An architecture without the number of training examples, which a model learns when it is compiled."""
    return _without("train_size", without_homes(config))


def _without(key: str, config: Any) -> Any:
    if isinstance(config, list):
        return [_without(key, one) for one in config]
    if not isinstance(config, dict):
        return config
    return {name: _without(key, value) for name, value in config.items() if name != key}


def check_harmless(node: Any) -> None:
    """Refuses a description that would load functions or modules of the writer's choice.

    Raises:
      RunError: naming what was found.
    """
    if isinstance(node, list):
        for item in node:
            check_harmless(item)
    if not isinstance(node, dict):
        return
    name, module = str(node.get("class_name", "")), node.get("module")
    if name.split(">")[-1] == "Lambda" or name in ("function", "__lambda__", "__typespec__"):
        raise RunError(f"the stored architecture holds a {name}, which can run code: expected registered layers only")
    declared = {layer.__module__ for layer in (*LAYERS.values(), *ruled())}  # layers from elsewhere among them
    if (
        module is not None
        and "class_name" in node
        and str(module).split(".")[0] not in _MODULES
        and module not in declared
    ):
        raise RunError(f"the stored architecture names the module {module!r}: expected one of {', '.join(_MODULES)}")
    if name.split(">")[-1] in _ARBITRARY:
        raise RunError(
            f"the stored architecture holds a {name}, which can call anything: expected registered layers only"
        )
    if name.split(">")[-1] in _OF_FUNCTIONS and not _is_mathematical(str(node.get("config", {}).get("function", ""))):
        raise RunError(
            f"the stored architecture calls {node.get('config', {}).get('function')!r}: expected a mathematical operation"
        )
    for item in node.values():
        check_harmless(item)


def _is_mathematical(function: str) -> bool:
    name = function.removeprefix("compat.v1.")
    return name in _FUNCTIONS.split() or name.startswith(_OPERATIONS)


def is_weight(name: str) -> bool:
    """Whether what a checkpoint names so is of the model, and not what its training goes on with."""
    return not name.startswith(_OF_TRAINING)


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """All weights by position, layer and name, masks and noise counters among them."""
    return {name: variable.numpy() for name, variable in _named(model).items()}


def rested_weights_of(model: Any) -> dict[str, np.ndarray]:
    """`weights_of` with the raw loc and rho of pruned weights, which no layer reads, as pruning leaves them.

    An optimizer that has moments from before the pruning moves them on.
    """
    posteriors = [q for layer in variational_layers(model) for q in layer.posteriors.values()]
    rest = {id(variable): (q.mask.numpy(), value) for q in posteriors for variable, value in q.resting}
    arrays = weights_of(model)
    for name, variable in _named(model).items():
        if id(variable) in rest:
            mask, value = rest[id(variable)]
            arrays[name] = np.where(mask, arrays[name], arrays[name].dtype.type(value))
    return arrays


def set_weights(model: Any, arrays: dict[str, np.ndarray]) -> None:
    """Gives `model` the weights that `weights_of` took from a model of the same architecture.

    Raises:
      RunError: names, shapes or types differ, or a number is not finite.
    """
    check_weights(model, arrays)
    for name, variable in _named(model).items():
        variable.assign(fitting(name, arrays[name], variable))
    finalize(model)


def check_weights(model: Any, arrays: Mapping[str, Shaped]) -> None:
    """Holds stored weights, or what is declared of them before they are unpacked, to the model's.

    Raises:
      RunError: names, shapes or types differ.
    """
    named = _named(model)
    strangers = [name for name in arrays if name not in named and is_weight(name)]
    if strangers:
        raise RunError(
            f"the stored weights have {strangers[0]}, which the model does not have: they belong to another architecture"
        )
    for name, variable in named.items():
        if name not in arrays:
            raise RunError(f"the stored weights have no {name}: they belong to another architecture")
        check_shaped(name, arrays[name], variable)


def fitting(name: str, array: np.ndarray, variable: Any) -> np.ndarray:
    """A stored array that is to be given to `variable`.

    Raises:
      RunError: it has another shape or type, or entries that are not finite.
    """
    check_shaped(name, array, variable)
    if (odd := not_finite(array)) is not None:
        raise RunError(f"stored weight {name} holds {odd}: expected finite numbers")
    return array


def not_finite(array: np.ndarray) -> Any:
    """The first entry that is not finite; None where all are."""
    finite = np.isfinite(array)
    return None if finite.all() else array[~finite].flat[0]


def check_shaped(name: str, array: Shaped, variable: Any) -> None:
    """Holds a stored array, or what is declared of it, to `variable`.

    Raises:
      RunError: it has another shape or type.
    """
    if tuple(array.shape) != tuple(variable.shape):
        raise RunError(f"stored weight {name} has shape {array.shape}: expected {tuple(variable.shape)}")
    if array.dtype != variable.dtype.base_dtype.as_numpy_dtype:
        raise RunError(f"stored weight {name} has type {array.dtype}: expected {variable.dtype.base_dtype.name}")


def _named(model: Any) -> dict[str, Any]:
    """Variables by `position/layer/weight`; Keras's own names depend on how the model came to be.

    Not those that a layer was adapted to and that its config has.
    """
    owner = {id(w): layer.name for layer in model._flatten_layers(include_self=False) for w in layer.weights}
    told = {id(w) for layer in model._flatten_layers(include_self=False) if adapted(layer) for w in layer.weights}
    weights = [w for w in model.weights if id(w) not in told]
    return {f"{i:04d}/{owner[id(w)]}/{w.name.split('/')[-1].split(':')[0]}": w for i, w in enumerate(weights)}
