"""What a stored architecture may say: classes by exact name from a list, arguments of their kind, a graph that has an end.

Keras reads such a description by importing modules, looking classes up and calling them with what it finds. Whoever wrote
it must not choose more than which of the known layers are joined, and how.
"""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.files.reading import check
from tfp_bprune.files.schemas import TEXT, listing, optional
from tfp_bprune.layers import LAYERS
from tfp_bprune.layers.rules.rule import ruled
from tfp_bprune.types import Json, RunError

_WHERE = "the stored architecture"
_OURS = "tfp_bprune"
# Of no module: what Keras writes for plain values.
_VALUES = ("TensorShape", "__tuple__", "__ellipsis__", "__numpy__", "__tensor__", "__slice__")
_BY_NAME = {
    "keras": {"Sequential", "Model"},
    "keras.models": {"Sequential", "Model"},
    "keras.mixed_precision": {"Policy"},
    "tf_keras.src.engine.functional": {"Functional"},
    "tf_keras.src.engine.sequential": {"Sequential"},
    "tf_keras.src.layers.core.tf_op_layer": {"TFOpLambda", "SlicingOpLambda"},
}
_RUN_CODE = {"Lambda", "AbstractRNNCell", "DenseFeatures"}
_MOST_NUMBERS = 2**27  # of one example, as the network takes it and between its layers
_MODELS = ("Functional", "Model")
_MOST = 20_000  # layers, initializers and the like, and calls; a layer of Keras has about five, and takes milliseconds
_MOST_PASSES = 50  # until each call has its inputs; Keras writes layers in such an order that one does
_reading = threading.RLock()  # `ending` changes what all threads have
_SLACK = 2**24  # bytes of variables that no file holds, such as generators of noise

_SIZE = optional({"type": "integer", "minimum": 1, "maximum": 2**31})
_SWITCH = optional({"type": "boolean"})
_ARGUMENTS: Json = {
    **dict.fromkeys(("units", "filters", "input_dim", "output_dim", "num_heads", "key_dim", "value_dim", "groups"), _SIZE),
    **dict.fromkeys(("depth_multiplier", "n", "max_tokens", "output_sequence_length", "num_tokens", "num_bins"), _SIZE),
    **dict.fromkeys(("use_bias", "return_sequences", "return_state", "go_backwards", "stateful", "unroll"), _SWITCH),
    "rho_init": {"type": "number", "minimum": -1e4, "maximum": 1e4},
    "train_size": optional({"type": "integer", "minimum": 1, "maximum": 2**53}),
    "name": optional(TEXT),
    "rate": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "vocabulary": optional(listing({"type": ["string", "integer", "number"]}, 2**20)),  # a string would be a file to read
    "idf_weights": optional(listing({"type": "number"}, 2**20)),
    "standardize": {"enum": [None, "lower_and_strip_punctuation", "lower", "strip_punctuation"]},
    "split": {"enum": [None, "whitespace", "character"]},
}  # fmt: skip
_SHAPES = ("batch_input_shape", "batch_shape", "target_shape")


def check_known(config: Any) -> None:
    """Refuses a description with anything in it that is not on the list.

    Raises:
      RunError: naming what was found.
    """
    if not isinstance(config, dict) or set(config) & {"module", "registered_name"}:
        raise RunError(f"{_WHERE} cannot be rebuilt: it is no model as Keras writes it")
    if config.get("class_name") in ("Functional", "Sequential", "Model"):
        for value in config.values():
            _check(value)
        _check_model(config)


def _check(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _check(item)
    if not isinstance(node, dict):
        return
    if "class_name" in node:
        _check_class(node)
    for value in node.values():
        _check(value)


def _check_class(node: Json) -> None:
    name, module, registered = node["class_name"], node.get("module"), node.get("registered_name")
    if module is None and name in _VALUES:
        return
    if not isinstance(name, str) or not re.fullmatch("[A-Za-z_]\\w{0,99}", name) or not isinstance(module, str):
        raise RunError(
            f"{_WHERE} names the class {str(name)[:99]!r} of the module {module!r}: expected a layer of a known one"
        )
    known = _is_known(module, name) and registered in (None, name, f"{_OURS}>{name}")
    if not known and not _is_ruled(module, name, registered):
        raise RunError(f"{_WHERE} names {module}.{name}: expected layers of Keras or of this package that run no code")
    config = node.get("config")
    if isinstance(config, dict):
        _check_arguments(config, name)
        _check_model(node)
    elif not (config is None or name == "Policy"):
        raise RunError(f"{_WHERE} gives {name} no arguments but {str(config)[:99]!r}")


def _is_known(module: str, name: str) -> bool:
    found = keras.utils.get_custom_objects().get(f"{_OURS}>{name}")
    if module.partition(".")[0] == _OURS:  # where it is within the package, or was, does not matter
        return found is not None and found.__module__.partition(".")[0] == _OURS
    if found is not None and found in LAYERS.values():  # a kind of layer from elsewhere, which was declared here
        return found.__module__ == module
    bases = {
        "keras.layers": keras.layers.Layer,
        "keras.initializers": keras.initializers.Initializer,
        "keras.regularizers": keras.regularizers.Regularizer,
        "keras.constraints": keras.constraints.Constraint,
    }
    if module in bases:
        found = vars(getattr(keras, module.partition(".")[2])).get(name)
        return isinstance(found, type) and issubclass(found, bases[module]) and name not in _RUN_CODE
    return name in _BY_NAME.get(module, ())


def _is_ruled(module: str, name: str, registered: Any) -> bool:
    """Whether it is a layer from elsewhere for which a rule is declared here, under the name by which Keras finds it."""
    found = keras.utils.get_custom_objects().get(registered) if isinstance(registered, str) else None
    return isinstance(found, type) and found in ruled() and (found.__module__, found.__name__) == (module, name)


def _check_arguments(config: Json, name: str) -> None:
    for key, value in config.items():
        if key in _ARGUMENTS and not (key == "split" and name != "TextVectorization"):
            check(value, f"{_WHERE}, {name}, {key}", _ARGUMENTS[key])
        if key in _SHAPES:
            _check_shape(value, name)


def _check_shape(shape: Any, name: str) -> None:
    sides = shape.get("items") if isinstance(shape, dict) else shape
    if sides is None:
        return
    fits = isinstance(sides, list) and len(sides) <= 16
    fits = fits and all(side is None or (type(side) is int and side >= -1) for side in sides)
    if not fits or math.prod(side for side in sides if side and side > 0) > _MOST_NUMBERS:
        raise RunError(
            f"{_WHERE} gives {name} the shape {str(shape)[:99]}: expected sizes of {_MOST_NUMBERS} numbers at most"
        )


def _check_model(node: Json) -> None:
    """Of a functional model: every call's inputs come before it, whatever the order, and constants are numbers."""
    config = node.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("layers"), list):
        return
    if node["class_name"] == "Functional" and not config.get("output_layers"):
        raise RunError(f"{_WHERE} has no outputs: expected one at least")
    waiting: list[tuple[str, list[tuple[str, int]]]] = []
    made: dict[str, int] = {}
    models: set[str] = set()  # whose call 0 is that of its own inputs, which is none of those that are told
    for layer in config["layers"]:
        if not isinstance(layer, dict) or "class_name" not in layer:
            raise RunError(f"{_WHERE} holds something that is no layer: {str(layer)[:99]}")
        name, nodes = str(layer.get("name") or _name_in(layer)), layer.get("inbound_nodes") or []
        if name in made:
            raise RunError(f"{_WHERE} has two layers {name!r}: expected a name for each")
        made[name] = int(_begins_called(layer))
        if layer["class_name"] in _MODELS:
            models.add(name)
        waiting += [(name, list(_references(call))) for call in nodes]
    for _ in range(_MOST_PASSES):
        left = []
        for name, needed in waiting:
            if all(made.get(other, 0) > number >= (other in models) for other, number in needed):
                made[name] += 1
            else:
                left.append((name, needed))
        if not left:
            return
        if len(left) == len(waiting):
            break
        waiting = left
    raise RunError(f"{_WHERE} has no order: layer {waiting[0][0]!r} waits for one that is not there or waits for it")


def check_count(config: Any) -> None:
    """Refuses a description of more layers, and calls of them, than Keras makes in a moment.

    Each call of a model calls all that is in it, so that a short description can ask for any number.

    Raises:
      RunError: saying how many.
    """
    count, waiting = 0, [(config, 1)]
    while waiting:
        node, times = waiting.pop()
        if isinstance(node, dict):
            calls = node.get("inbound_nodes")
            called = len(calls) if isinstance(calls, list) else 0
            count += times * (("class_name" in node) + called)
            times *= 1 + (called if _holds_layers(node.get("config")) else 0)
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
        waiting += [(one, times) for one in inner]
    if count > _MOST:
        said = f"{count}" if count < 10**9 else "more than 10^9"
        raise RunError(f"{_WHERE} has {said} layers, arguments of them and calls: expected {_MOST} at most")


def _holds_layers(config: Any) -> bool:
    return isinstance(config, dict) and bool({"layers", "layer"} & set(config))


def check_made(model: Any) -> None:
    """Refuses a network that makes more numbers of an example than any that is of use.

    Raises:
      RunError: naming the layer.
    """
    for layer in model._flatten_layers(include_self=False):
        for tensor in tf.nest.flatten([node.outputs for node in layer._inbound_nodes]):
            if math.prod(side or 1 for side in tensor.shape[1:]) > _MOST_NUMBERS:
                raise RunError(
                    f"{_WHERE}: layer {layer.name!r} makes {tuple(tensor.shape)}: expected {_MOST_NUMBERS} numbers at most"
                )


def _name_in(layer: Json) -> Any:
    config = layer.get("config")
    return config.get("name") if isinstance(config, dict) else None


def _begins_called(layer: Json) -> bool:
    """Whether a layer has outputs before anything calls it: an input, or a model with inputs of its own."""
    config = layer.get("config")
    first = config.get("layers") if isinstance(config, dict) else None
    nested = (
        isinstance(first, list) and first and isinstance(first[0], dict) and first[0].get("class_name") == "InputLayer"
    )
    return layer["class_name"] in ("InputLayer", *_MODELS) or bool(nested)


def _references(node: Any) -> Iterator[tuple[str, int]]:
    """The calls (layer, number) whose outputs a call takes."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _references(value)
    if not isinstance(node, list):
        return
    if len(node) >= 3 and node[0] == "_CONSTANT_VALUE":
        if not _is_number(node[2]):
            raise RunError(f"{_WHERE} hands the constant {str(node[2])[:99]!r} to a layer: expected numbers")
        node = node[3:]
    elif len(node) in (3, 4) and isinstance(node[0], str) and type(node[1]) is int and type(node[2]) is int:
        yield node[0], node[1]
        node = node[3:]
    for item in node:
        yield from _references(item)


def _is_number(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_number, value))
    if isinstance(value, dict):
        return value.get("class_name") in _VALUES
    if isinstance(value, str):
        return re.fullmatch(r"[\w ,.>-]{0,99}", value) is not None  # an equation of einsum, and no path
    return value is None or isinstance(value, bool | int | float)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Within it Keras gives up a call whose inputs never come, for which it would look again and again without end.

    `check_known` sees most such calls, but not how many outputs a layer has, nor from where a nested model's calls are counted.

    Raises:
      RunError: naming the input.
    """
    kind = keras.src.utils.tf_utils.ListWrapper  # an input of a call: layer, number of its call, number of its output

    def as_list(self: Any) -> Any:
        self.looks = getattr(self, "looks", 0) + 1
        if self.looks > 2 * _MOST_PASSES:
            raise RunError(f"{_WHERE} has no order: a call waits for {str(self._list)[:99]}, or for what that needs")
        return self._list

    with _reading:
        before, kind.as_list = kind.as_list, as_list
        try:
            yield
        finally:
            kind.as_list = before


@contextlib.contextmanager
def bounded(most: int | None) -> Iterator[None]:
    """Within it variables of `most` bytes in all can be made; None for any number.

    Raises:
      RunError: before memory is taken for more.
    """
    made = 0

    def create(following: Any, **options: Any) -> Any:
        nonlocal made
        shape, dtype = options.get("shape"), options.get("dtype")
        if most is not None and shape is not None:
            made += math.prod(tf.TensorShape(shape).as_list()) * (tf.as_dtype(dtype).size if dtype else 4)
            if made > most + _SLACK:
                raise RunError(
                    f"{_WHERE} takes more than the {most} bytes of the stored weights: they belong to another one"
                )
        return following(**options)

    with tf.variable_creator_scope(create):
        yield
