"""A network beside its data: whether it takes the examples, and the arrays under the names that it has for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import Arrays, by_name
from tfp_bprune.data.splits import Splits
from tfp_bprune.data.stream import Stream
from tfp_bprune.graphs.names import in_order, input_names, output_names
from tfp_bprune.graphs.rebuild import check_known
from tfp_bprune.types import DataError


def check_shapes(model: Any, data: Splits) -> None:
    """Refuses data whose examples the model does not take.

    Raises:
      DataError: naming both shapes.
      BpruneError: the model has no inputs that are known: it is subclassed, not built, or of another Keras.
    """
    check_known(model)
    info, names = data.info, input_names(model)
    _check_shapes(model, info.name, info.inputs or {"": info.input_shape}, names)
    valid = data.parts.get("valid")
    if isinstance(data, Stream) and valid is not None:
        given = {name: one.shape[1:] for name, one in by_name(valid.x).items()}
        _check_shapes(model, "the validation dataset", given, names)


def _check_shapes(model: Any, who: str, shapes: Mapping[str, Any], names: list[str]) -> None:
    if "" in shapes and len(names) != 1:
        raise DataError(f"{who} has one input: model {model.name!r} expects {', '.join(map(repr, names))}")
    given = in_order(shapes, names, who, "inputs", model)
    for (name, shape), tensor in zip(given.items(), model.inputs, strict=True):
        if not _fits(tuple(shape), expected := tuple(tensor.shape[1:])):
            which = f" of input {name!r}" if len(names) > 1 else ""
            raise DataError(
                f"{who} has examples of shape {tuple(shape)}: model {model.name!r} expects {expected}{which}"
            )


def _fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a model takes it; Keras drops a last axis of one."""
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        shape = shape[:-1]
    return len(shape) == len(expected) and all(e in (None, s) for s, e in zip(shape, expected, strict=True))


def matched(model: Any, data: Splits) -> Splits:
    """The same splits with inputs and outputs under the names that `model` has for them, or as plain arrays.

    Raises:
      DataError: the model has others.
    """
    parts = {
        name: split.renamed(lambda x: inputs_for(model, x), lambda y: _outputs_for(model, y))
        for name, split in data.parts.items()
    }
    if isinstance(data, Stream):
        data = data.renamed(lambda x: inputs_for(model, x), lambda y: _outputs_for(model, y))
    return replace(data, parts=parts)


def inputs_for(model: Any, x: Arrays) -> Arrays:
    """Examples as `model` takes them: one array, or a dictionary by the names of its inputs.

    Raises:
      DataError: the model has other inputs.
    """
    return _under_names(model, x, input_names(model), "_nested_inputs", "inputs")


def _outputs_for(model: Any, y: Arrays) -> Arrays:
    return _under_names(model, y, output_names(model), "_nested_outputs", "targets")


def _under_names(model: Any, arrays: Arrays, names: list[str], nested: str, what: str) -> Arrays:
    found = in_order(by_name(arrays), names, "the data", what, model)
    return found[names[0]] if is_alone(model, nested) else found


def is_alone(model: Any, nested: str = "_nested_outputs") -> bool:
    """Whether the model has one output, and not in a dictionary."""
    named = getattr(model, nested, None)
    return not isinstance(named, Mapping) and len(tf.nest.flatten(named)) == 1
