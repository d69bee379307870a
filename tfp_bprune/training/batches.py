"""Training examples in the forms in which users have them, as batches that a model takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Split
from tfp_bprune.types import BpruneError

Batch = tuple[Any, Any]  # inputs as the model takes them, and targets or None
_BATCH = 100
_EXPECTED = (
    "expected an array or tensor, a list or dictionary of one for each input, a tuple (x, y) of these, or batches of them: "
    "a tf.data dataset, a generator, a list, a Keras Sequence"
)


def batches_of(model: Any, data: Any, most: int) -> Iterator[Batch]:
    """The first `most` batches of `data` as inputs and targets, the latter None where there are none.

    Raises:
      BpruneError: what the data means is not certain, or the model does not take it.
    """
    for element in islice(_elements(model, data), most):
        x, y = _taken_apart(model, element)
        yield _inputs(model, x), y


def _elements(model: Any, data: Any) -> Iterable[Any]:
    if isinstance(data, Split):
        data = (data.x, data.y)
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, keras.utils.Sequence):
        return (data[i] for i in range(len(data)))
    if _is_array(data) or isinstance(data, Mapping):
        return _slices(data)
    if isinstance(data, tuple):
        return data if data and all(isinstance(one, tuple) for one in data) else _slices(data)
    if isinstance(data, list):
        return _elements_of_list(model, data)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise BpruneError(f"recalibrate got a {type(data).__name__}: {_EXPECTED}")
    return data


def _elements_of_list(model: Any, data: list[Any]) -> Iterable[Any]:
    """A list is of inputs where the model has several, of batches where each has the shape of one; else it is an array."""
    if not all(_is_array(one) for one in data):
        numbers = bool(data) and all(isinstance(one, list | float | int) for one in data)
        return _slices(np.asarray(data)) if numbers and len(model.inputs) == 1 else data
    if len(model.inputs) > 1:
        return _slices(data)
    rank, ranks = len(model.inputs[0].shape), {len(one.shape) for one in data}
    if ranks == {rank - 1} and rank > 1:
        return _slices(np.stack([np.asarray(one) for one in data]))
    if ranks <= {rank}:
        return data
    raise BpruneError(
        f"recalibrate got a list of arrays of shapes {', '.join(str(tuple(one.shape)) for one in data[:3])}: expected batches "
        f"of shape {tuple(model.inputs[0].shape)}; give inputs and targets as a tuple (x, y)"
    )


def _slices(data: Any) -> Iterator[Any]:
    leaves = tf.nest.flatten(data)
    counts = {len(one) if len(np.shape(one)) else 0 for one in leaves if one is not None}
    if len(counts) != 1:
        raise BpruneError(
            f"recalibrate got arrays of {' and '.join(map(str, sorted(counts)))} examples: expected equal numbers"
        )
    arrays = tf.nest.map_structure(lambda one: None if one is None else np.asarray(one), data)
    for start in range(0, counts.pop(), _BATCH):
        yield tf.nest.map_structure(lambda one: None if one is None else one[start : start + _BATCH], arrays)  # noqa: B023


def _taken_apart(model: Any, element: Any) -> Batch:
    """Inputs and targets of a batch: x, (x,), (x, y) or (x, y, weights); a tuple of one array for each input is x."""
    if not isinstance(element, tuple):
        return element, None
    inputs = len(model.inputs)
    if inputs > 1 and len(element) == inputs and all(_is_array(one) for one in element):
        return element, None
    if not 1 <= len(element) <= 3:
        raise BpruneError(f"recalibrate got a tuple of {len(element)}: expected (x, y) or (x, y, weights)")
    return element[0], element[1] if len(element) > 1 else None


def _inputs(model: Any, x: Any) -> Any:
    """`x` with each array of the type and shape that the model takes, in the structure that it takes."""
    wanted = getattr(model, "_nested_inputs", None)
    wanted = model.inputs if wanted is None or isinstance(model, keras.Sequential) else wanted
    if isinstance(x, Mapping):
        names = {str(key): key for key in x}
        targets = (
            dict(wanted) if isinstance(wanted, Mapping) else dict(zip(model.input_names, model.inputs, strict=True))
        )
        if set(names) != set(map(str, targets)):
            raise BpruneError(f"recalibrate got inputs named {sorted(names)}: expected {sorted(map(str, targets))}")
        return {key: _fitted(x[names[str(key)]], tensor, str(key)) for key, tensor in targets.items()}
    parts = (
        list(x)
        if isinstance(x, list | tuple) and all(map(_is_array, x))
        else [np.asarray(x) if isinstance(x, list) else x]
    )
    flat = tf.nest.flatten(wanted)
    if len(parts) != len(flat):
        raise BpruneError(f"recalibrate got {len(parts)} inputs: model {model.name!r} takes {len(flat)}; {_EXPECTED}")
    fitted = [_fitted(part, tensor, name) for part, tensor, name in zip(parts, flat, model.input_names, strict=True)]
    return fitted[0] if len(fitted) == 1 else tf.nest.pack_sequence_as(wanted, fitted)


def _fitted(part: Any, tensor: Any, name: str) -> Any:
    if not _is_array(part) or not tensor.shape.is_compatible_with(tf.TensorShape(np.shape(part))):
        got = f"shape {tuple(np.shape(part))}" if _is_array(part) else f"a {type(part).__name__}"
        raise BpruneError(
            f"recalibrate got a batch with {got} for input {name!r}: expected {tuple(tensor.shape)}; {_EXPECTED}"
        )
    return tf.cast(part, tensor.dtype) if tensor.dtype != tf.string else tf.convert_to_tensor(part)


def _is_array(value: Any) -> bool:
    if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
        return True
    return (hasattr(value, "shape") and hasattr(value, "dtype")) or hasattr(value, "to_numpy")
