"""What a network needs to know of its data, said by hand or taken from arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from tfp_bprune.data.arrays import Arrays, as_arrays, by_name, count, leaves, mapped, shapes
from tfp_bprune.data.targets import SaidTask, Target, check_target, read_target, whole_numbers
from tfp_bprune.files.reading import check
from tfp_bprune.files.schemas import INFO_SCHEMA
from tfp_bprune.types import DataError, Json, RunError, Task


@dataclass(frozen=True, repr=False)
class Info:
    """What a network needs to know of its data.

    Attributes:
      name: name of the dataset.
      task: "classification" (one of several classes), "binary" (one of two classes), "multilabel" (several labels, each 0 or 1) or
        "regression".
      input_shape: shape of one example, without the batch.
      classes: number of classes (2 for "binary"), of labels, or of the targets of a regression.
      scale, offset: the first layer computes `x * scale + offset`; scalars for images, one number for each feature of a table.
      target_loc, target_scale: mean and standard deviation of the training targets of a regression.
      fingerprint: SHA-256 of all examples in their order.
      positions: if an example has a label for each pixel or step, their shape: (height, width) or (steps,).
      inputs: for several inputs, the shape of one example of each, by name; a list's inputs are named by their numbers.
      outputs: for several outputs, what each target is, by name. The attributes above, except name and fingerprint, then describe the
        first output.
    """

    name: str
    task: Task
    input_shape: tuple[int, ...]
    classes: int
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    target_loc: float = 0.0
    target_scale: float = 1.0
    fingerprint: str = ""
    positions: tuple[int, ...] = ()
    inputs: dict[str, tuple[int, ...]] | None = None
    outputs: dict[str, Target] | None = None

    def __repr__(self) -> str:
        many = {"classification": f" of {self.classes} classes", "multilabel": f" of {self.classes} labels"}
        inputs = self.input_shape if self.inputs is None else self.inputs
        said = f"{self.task}{many.get(self.task, '')}" if self.outputs is None else f"outputs {', '.join(self.outputs)}"
        return f"{self.name}: {said}, examples {inputs}"

    @property
    def targets(self) -> dict[str, Target]:
        """What each target is, by name; a single one has the name ""."""
        if self.outputs is not None:
            return self.outputs
        return {"": Target(self.task, self.classes, self.positions, self.target_loc, self.target_scale)}

    def to_json(self) -> Json:
        """As plain data, without what only data of a newer kind has."""
        newer = {"positions": (), "inputs": None, "outputs": None}
        return {key: value for key, value in asdict(self).items() if key not in newer or value != newer[key]}

    @classmethod
    def from_json(cls, data: Json) -> Info:
        """What `to_json` wrote; entries that it does not know are left out.

        Raises:
          DataError: it is something else.
        """
        names = {one.name for one in fields(cls)} & set(data)
        try:
            check(data, "the description of the data", INFO_SCHEMA)
            known = {name: _tuples(data[name]) for name in names - {"outputs"}}
            outputs = {key: Target(**{k: _tuples(v) for k, v in one.items()}) for key, one in _outputs(data)}
            return cls(**known, outputs=outputs or None)
        except (RunError, TypeError) as error:
            raise DataError(f"{error}: expected a run or an export of data that it knows") from error


def _outputs(data: Json) -> Any:
    return (data.get("outputs") or {}).items()


def _tuples(value: Any) -> Any:
    """As before it was JSON: tuples, also within a dictionary."""
    if isinstance(value, dict):
        return {key: _tuples(one) for key, one in value.items()}
    return tuple(value) if isinstance(value, list) else value


def info_of(x: Any, y: Any, *, name: str = "arrays", task: SaidTask = None) -> Info:
    """Describes training examples, so that the first layer of a network can standardize them.

    Args:
      x: examples [n, ...] in raw units, or several inputs in a tuple or by name. Each feature of a table [n, features] is
        standardized by itself, images and other arrays as a whole.
      y: targets; several outputs in a tuple or by name.
      name: what messages and manifests call the data.
      task: what the targets are, for all outputs or by name. By default their type decides: booleans are "binary"; whole numbers
        from 0 on, and 0/1 rows that sum to 1, are "classification"; other 0/1 rows are "multilabel"; other floats are
        "regression".

    Raises:
      DataError: there are no examples, or not one target for each; a number is not finite; a class is negative; or the targets do not
        determine the task.
    """
    return described_arrays(x, y, name, task)[2]


def described_arrays(x: Any, y: Any, name: str, task: SaidTask) -> tuple[Arrays, Arrays, Info]:
    """Examples and targets as arrays, the targets as `targets.read_target` has them, and what they are; see `info_of`."""
    x, y = examples_of(x, name), as_arrays(y, name, "targets")
    _check_pairs(x, y, name)
    if count(x) == 0:
        raise DataError(f"{name} has no examples: expected at least one to describe")
    y, targets = described_targets(y, name, task)
    info = info_from(x, y, targets, name)
    scale, offset = _standardized(leaves(x)[0])
    info = replace(info, scale=scale, offset=offset)
    check_arrays(x, y, info)
    return x, y, info


def described_targets(y: Arrays, name: str, task: SaidTask) -> tuple[Arrays, dict[str, Target]]:
    """Targets as `targets.read_target` has them, and what each is, by name.

    Raises:
      DataError: what one is is not certain.
    """
    _check_numbers(y, name, "targets", "iufb")
    said = _said(task, y, name)
    found = {
        key: read_target(whole_numbers(one, said[key]), said[key], _called(name, key))
        for key, one in by_name(y).items()
    }
    targets = {key: target for key, (_, target) in found.items()}
    return mapped(lambda key: found[key][0], _keys(y)), targets


def info_from(x: Arrays, y: Arrays, targets: Mapping[str, Target], name: str) -> Info:
    """The shapes of examples `x` and what their targets are, without scales."""
    first = next(iter(targets.values()))
    info = Info(name, first.task, leaves(x)[0].shape[1:], first.classes, positions=first.positions)
    if not isinstance(x, np.ndarray):
        info = replace(info, inputs={key: one.shape[1:] for key, one in by_name(x).items()})
    return info if isinstance(y, np.ndarray) else replace(info, outputs=dict(targets))


def examples_of(x: Any, name: str) -> Arrays:
    """Examples as arrays [n, ...]; a column of strings, or one input of several, is [n, 1]."""
    x = as_arrays(x, name, "examples")
    columns = not isinstance(x, np.ndarray) or x.dtype.kind in "US"
    return mapped(lambda one: one[:, None] if one.ndim == 1 and columns else one, x)


def read_arrays(x: Any, y: Any, info: Info, task: SaidTask = None) -> tuple[Arrays, Arrays]:
    """Examples and targets as `info` says they are; floats are read as classes only where `task` says so.

    Raises:
      DataError: not one target for each example, another shape, something that is no finite number, or an unknown class.
    """
    x, y = examples_of(x, info.name), as_arrays(y, info.name, "targets")
    _check_pairs(x, y, info.name)
    y = _known_targets(y, info, info.name, task)
    check_arrays(x, y, info)
    return x, y


def read_targets(y: Any, info: Info, name: str) -> Arrays:
    """The targets alone of what messages call `name`, as `info` says they are; errors as in `read_arrays`."""
    y = as_arrays(y, name, "targets")
    _check_numbers(y, name, "targets", "iufb")
    y = _known_targets(y, info, name)
    for key, one in by_name(y).items():
        check_target(one, info.targets[key], _called(name, key))
    return y


def _known_targets(y: Arrays, info: Info, name: str, task: SaidTask = None) -> Arrays:
    said, targets = _said(task, y, name), _targets(y, info, name)
    found = {}
    for key, one in by_name(y).items():
        known, whole = targets[key], whole_numbers(one, said[key])
        found[key] = read_target(whole, known.task, _called(name, key), known)[0]
    return mapped(lambda key: found[key], _keys(y))


def check_arrays(x: Arrays, y: Arrays, info: Info) -> None:
    """Refuses examples that are not as `info` says; see `read_arrays`.

    Raises:
      DataError: naming what is wrong.
    """
    _check_pairs(x, y, info.name)
    expected: Any = tuple(info.input_shape) if info.inputs is None else info.inputs
    if count(x) and shapes(x) != expected:
        raise DataError(f"{info.name} has examples of shape {shapes(x)}: expected {expected}")
    targets = _targets(y, info, info.name)
    for key, one in by_name(y).items():
        check_target(one, targets[key], _called(info.name, key))


def _targets(y: Arrays, info: Info, name: str) -> dict[str, Target]:
    if set(by_name(y)) != set(info.targets):
        given, expected = (
            ", ".join(repr(one) if one else "one without a name" for one in names)
            for names in (by_name(y), info.targets)
        )
        raise DataError(f"{name} has as targets {given}: expected {expected}")
    return info.targets


def _keys(arrays: Arrays) -> Arrays:
    """The name of each array in its place."""
    if isinstance(arrays, dict):
        return {key: key for key in arrays}
    return tuple(by_name(arrays)) if isinstance(arrays, tuple) else ""


def _said(task: SaidTask, y: Arrays, name: str) -> dict[str, Task | None]:
    keys = list(by_name(y))
    said: Mapping[str, Any] = task if isinstance(task, Mapping) else dict.fromkeys(keys, task)
    unknown = sorted(set(said) - set(keys))
    if unknown:
        raise DataError(f"task names {', '.join(map(repr, unknown))}: expected targets of {name} among {keys}")
    return {key: said.get(key) for key in keys}


def _called(name: str, key: str) -> str:
    return f"{name}, target {key!r}," if key else name


def _standardized(x: np.ndarray) -> tuple[Any, Any]:
    """Scale and offset that give examples zero mean and unit variance; 1 and 0 for text."""
    if x.dtype.kind in "US":
        return 1.0, 0.0
    axes = 0 if x.ndim == 2 else None
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    scale = 1 / np.where(std > 0, std, 1.0)  # a constant feature becomes 0
    if axes is None:
        return scale.tolist(), (-mean * scale).tolist()
    return tuple(scale.tolist()), tuple((-mean * scale).tolist())


def _check_pairs(x: Arrays, y: Arrays, name: str) -> None:
    lengths = {len(one) if one.ndim else -1 for one in (*leaves(x), *leaves(y))}
    if any(one.ndim < 2 for one in leaves(x)) or any(one.ndim < 1 for one in leaves(y)) or len(lengths) != 1:
        if isinstance(x, tuple) and len({one.shape for one in x}) == 1 and leaves(y)[0].shape[:1] == (len(x),):
            raise DataError(
                f"{name} has a list of {len(x)} arrays, which are taken for as many inputs: join examples of one input with np.stack"
            )
        examples, targets = (mapped(lambda one: one.shape, arrays) for arrays in (x, y))
        raise DataError(
            f"{name} has examples {examples} and targets {targets}: expected [n, ...] and [n], or [n, ...] for several labels"
        )
    _check_numbers(x, name, "examples", "iufbUS")
    _check_numbers(y, name, "targets", "iufb")


def _check_numbers(arrays: Arrays, name: str, what: str, kinds: str) -> None:
    for values in leaves(arrays):
        if values.dtype.kind not in kinds:
            raise DataError(f"{name} has {what} of type {values.dtype}: expected numbers")
        if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
            raise DataError(f"{name} has {what} that are NaN or infinite: drop or replace them")
