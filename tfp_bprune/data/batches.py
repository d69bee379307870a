"""Examples in the forms in which users have them, as batches by the names of a network's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.arrays import refuse_other_than_dense
from tfp_bprune.data.names import input_name
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.types import DataError

Batch = tuple[dict[str, Any], Any]  # inputs by name, and targets or None
BATCH = 100
ALONE = "inputs"  # the input of a network that has one
_EXPECTED = (
    "expected an array or tensor, a list or dictionary of one for each input, a tuple (x, y) of these, or batches of them: "
    "a tf.data dataset, a generator, a list, a Keras Sequence"
)


@dataclass(frozen=True)
class Inputs:
    """What a network takes, and who asks for it.

    Attributes:
      who: gets the data, as messages call it.
      network: as messages call it.
      specs: a `tf.TensorSpec` [batch, ...] for each input, by name, in their order.
    """

    who: str
    network: str
    specs: dict[str, Any]


def batches_of(inputs: Inputs, data: Any, size: int = BATCH, *, endless: bool = False) -> Iterator[Batch]:
    """The batches of `data`, arrays in slices of `size`, as inputs and targets, the latter None where there are none.

    Args:
      endless: whether a dataset may be repeated without an end, since only some of it is read.

    Raises:
      DataError: what the data means is not certain, it has no end, or the network does not take it.
    """
    _refuse_parts(inputs, data)
    if not endless and isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError(f"{inputs.who} got a dataset without an end: leave out repeat(), or give it one, take(STEPS)")
    for element in _elements(inputs, data, size):
        x, y = _taken_apart(inputs, element)
        yield _by_input(inputs, x), y


def count_of(inputs: Inputs, data: Any) -> int | None:
    """How many examples there are, where that can be told without reading them."""
    _refuse_parts(inputs, data)
    if isinstance(data, Split):
        return len(data)
    if _is_array(data):
        return len(data)
    if isinstance(data, Mapping) or (isinstance(data, tuple) and data and not isinstance(data[0], tuple)):
        found = {len(one) for one in tf.nest.flatten(data) if one is not None and len(np.shape(one))}
        return found.pop() if len(found) == 1 else None
    return None


def _refuse_parts(inputs: Inputs, data: Any) -> None:
    """Refuses ragged, sparse and masked arrays, alone or among several."""
    several = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple) else ()
    for one in (data, *several):
        refuse_other_than_dense(one, f"{inputs.who} got examples")


def _elements(inputs: Inputs, data: Any, size: int) -> Iterable[Any]:
    if isinstance(data, Splits):
        raise DataError(
            f"{inputs.who} got all splits of {data.info.name}: expected one of them, such as data.examples('test')"
        )
    if isinstance(data, Split):
        data = (data.x, data.y)
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, keras.utils.Sequence):
        return (data[i] for i in range(len(data)))
    if _is_array(data) or isinstance(data, Mapping):
        return _slices(inputs, data, size)
    if isinstance(data, tuple):
        return data if data and all(isinstance(one, tuple) for one in data) else _slices(inputs, data, size)
    if isinstance(data, list):
        return _elements_of_list(inputs, data, size)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(f"{inputs.who} got a {type(data).__name__}: {_EXPECTED}")
    return data


def _elements_of_list(inputs: Inputs, data: list[Any], size: int) -> Iterable[Any]:
    """A list is of inputs where there are several, of batches where each has the shape of one; else it is an array."""
    if not all(_is_array(one) for one in data):
        numbers = bool(data) and all(isinstance(one, list | float | int) for one in data)
        return _slices(inputs, np.asarray(data), size) if numbers and len(inputs.specs) == 1 else data
    if len(inputs.specs) > 1:
        return _slices(inputs, data, size)
    [spec] = inputs.specs.values()
    rank, ranks = len(spec.shape), {len(one.shape) for one in data}
    if ranks == {rank - 1} and rank > 1:
        return _slices(inputs, np.stack([np.asarray(one) for one in data]), size)
    if ranks <= {rank}:
        return data
    raise DataError(
        f"{inputs.who} got a list of arrays of shapes {', '.join(str(tuple(one.shape)) for one in data[:3])}: expected batches "
        f"of shape {tuple(spec.shape)}; give inputs and targets as a tuple (x, y)"
    )


def _slices(inputs: Inputs, data: Any, size: int) -> Iterator[Any]:
    arrays = _whole(inputs, data)
    counts = {len(one) if len(np.shape(one)) else 0 for one in tf.nest.flatten(arrays) if one is not None}
    if len(counts) != 1:
        raise DataError(
            f"{inputs.who} got arrays of {' and '.join(map(str, sorted(counts)))} examples: expected equal numbers"
        )
    for start in range(0, counts.pop(), size):
        yield tf.nest.map_structure(lambda one: None if one is None else one[start : start + size], arrays)  # noqa: B023


def _whole(inputs: Inputs, data: Any) -> Any:
    """All arrays as NumPy's: pandas' frames, which TensorFlow would take apart, and lists of numbers or rows too."""
    if isinstance(data, tuple) and not _are_inputs(inputs, data):
        x, *others = data
        return (_whole(inputs, x), *map(_targets, others))
    if isinstance(data, Mapping) and not hasattr(data, "to_numpy"):
        return {key: np.asarray(one) for key, one in data.items()}
    if isinstance(data, tuple | list) and (_are_inputs(inputs, data) or not data):
        return type(data)(np.asarray(one) for one in data)
    return np.asarray(data)


def _are_inputs(inputs: Inputs, data: Any) -> bool:
    """Whether a tuple or list is of one array for each input."""
    if len(data) != len(inputs.specs) or not all(map(_is_array, data)):
        return False
    ranks = [len(spec.shape) for spec in inputs.specs.values()]
    return len(data) > 1 or len(np.shape(data[0])) >= ranks[0]


def _targets(y: Any) -> Any:
    if isinstance(y, Mapping) and not hasattr(y, "to_numpy"):
        return {key: np.asarray(one) for key, one in y.items()}
    several = isinstance(y, list | tuple) and y and all(_is_array(one) and len(np.shape(one)) for one in y)
    return type(y)(np.asarray(one) for one in y) if several else None if y is None else np.asarray(y)


def _taken_apart(inputs: Inputs, element: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch: x, (x,), (x, y) or (x, y, weights); a tuple of one array for each input is x."""
    if not isinstance(element, tuple):
        return element, None
    several = len(inputs.specs)
    if several > 1 and len(element) == several and all(_is_array(one) for one in element):
        return element, None
    if not 1 <= len(element) <= 3:
        raise DataError(f"{inputs.who} got a tuple of {len(element)}: expected (x, y) or (x, y, weights)")
    return element[0], element[1] if len(element) > 1 else None


def _by_input(inputs: Inputs, x: Any) -> dict[str, Any]:
    """`x` with each array of the type and shape that the network takes, by the names of its inputs."""
    specs = inputs.specs
    if isinstance(x, Mapping):
        names = _named(x, list(specs))
        if set(names) != set(specs):
            raise DataError(f"{inputs.who} got inputs named {sorted(names)}: expected {sorted(specs)}")
        return {key: _fitted(inputs, x[names[key]], spec, key) for key, spec in specs.items()}
    parts = (
        list(x)
        if isinstance(x, list | tuple) and all(map(_is_array, x))
        else [np.asarray(x) if isinstance(x, list) else x]
    )
    if len(parts) != len(specs):
        raise DataError(
            f"{inputs.who} got {len(parts)} inputs: model {inputs.network!r} takes {len(specs)}; {_EXPECTED}"
        )
    return {name: _fitted(inputs, part, spec, name) for part, (name, spec) in zip(parts, specs.items(), strict=True)}


def _named(x: Mapping[Any, Any], expected: list[str]) -> dict[str, Any]:
    """The keys of `x` by the names that a network has for them; an input alone that has none goes by any."""
    names = {str(key): key for key in x}
    plain = {input_name(name): key for name, key in names.items()}
    if set(names) != set(expected) == set(plain):
        return plain
    return dict(zip(expected, x, strict=True)) if expected == [ALONE] and len(x) == 1 else names


def _fitted(inputs: Inputs, part: Any, spec: Any, name: str) -> Any:
    """An array of the type and, but for a last axis of one as Keras has it, of the shape that an input takes."""
    refuse_other_than_dense(part, f"{inputs.who} got examples")
    part = np.asarray(part) if hasattr(part, "to_numpy") else part
    if _is_array(part) and tf.as_dtype(part.dtype).is_complex:
        raise DataError(f"{inputs.who} got complex numbers for input {name!r}: expected real ones")
    shape = tuple(np.shape(part)) if _is_array(part) else ()
    if _is_array(part) and not spec.shape.is_compatible_with(tf.TensorShape(shape)):
        if len(shape) == len(spec.shape) - 1 and spec.shape[-1] == 1 and len(shape):
            part = part[..., None]
        elif len(shape) == len(spec.shape) + 1 and shape[-1] == 1:
            part = part[..., 0]
    if not _is_array(part) or not spec.shape.is_compatible_with(tf.TensorShape(np.shape(part))):
        got = f"shape {shape}" if _is_array(part) else f"a {type(part).__name__}"
        raise DataError(
            f"{inputs.who} got a batch with {got} for input {name!r}: expected {tuple(spec.shape)}; {_EXPECTED}"
        )
    return tf.cast(part, spec.dtype) if spec.dtype != tf.string else tf.convert_to_tensor(part)


def _is_array(value: Any) -> bool:
    return (hasattr(value, "shape") and hasattr(value, "dtype")) or hasattr(value, "to_numpy")
