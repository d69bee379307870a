"""The names of a network's inputs and outputs, and what stands for each in the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfp_bprune.data.info import Info
from tfp_bprune.data.targets import Target
from tfp_bprune.types import DataError


def output_names(model: Any) -> list[str]:
    """Names of the model's outputs, in the order of `model.outputs`: the keys of a dictionary, else its layers' names."""
    return _names(getattr(model, "_nested_outputs", None), model.output_names)


def input_names(model: Any) -> list[str]:
    """Names of the model's inputs, in the order of `model.inputs`: the keys of a dictionary, or its layers' names; one
    that is not in a dictionary is `inputs`."""
    nested = getattr(model, "_nested_inputs", None)
    if len(model.inputs) == 1 and not isinstance(nested, Mapping):
        return ["inputs"]
    return _names(nested, model.input_names)


def _names(nested: Any, otherwise: list[str]) -> list[str]:
    return sorted(map(str, nested)) if isinstance(nested, Mapping) else list(otherwise)


def targets_of(model: Any, info: Info) -> dict[str, Target]:
    """What each output of `model` is trained on, by its name.

    Raises:
      DataError: the data has other targets than the model has outputs.
    """
    names = output_names(model)
    if info.outputs is None and len(names) != 1:
        raise DataError(
            f"{info.name} has one target: model {model.name!r} has the outputs {', '.join(map(repr, names))}"
        )
    return in_order(info.targets, names, info.name, "targets", model)


def in_order(given: Mapping[str, Any], names: Sequence[str], name: str, what: str, model: Any) -> dict[str, Any]:
    """What is given, by the model's names: of several things those of a list in the model's order, one alone as it is.

    Raises:
      DataError: others than the model has.
    """
    listed = len(given) == 1 or list(given) == [str(i) for i in range(len(names))]
    if len(given) != len(names) or not (listed or set(given) == set(names)):
        raise DataError(
            f"{name} has {what} {', '.join(map(repr, given))}: model {model.name!r} expects {', '.join(map(repr, names))}"
        )
    return dict(zip(names, given.values(), strict=True)) if listed else {one: given[one] for one in names}
