"""Arrays as users hand them over: one, or a tuple or a dictionary of several, each with one example a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfp_bprune.types import DataError

Arrays = Any  # an array, a tuple of arrays, or a dictionary of arrays by name


def as_arrays(given: Any, name: str, what: str) -> Arrays:
    """NumPy arrays of anything that `np.asarray` takes: tensors, lists, pandas, or tuples, lists and dictionaries of such.

    Raises:
      DataError: none of these, or nothing in it.
    """
    if isinstance(given, Mapping):
        found: Arrays = {str(key): _array(one, name, what) for key, one in given.items()}
    elif isinstance(given, list | tuple) and given and all(np.ndim(one) > 0 and hasattr(one, "shape") for one in given):
        found = tuple(_array(one, name, what) for one in given)
    else:
        return _array(given, name, what)
    if not found:
        raise DataError(f"{name} has no {what}: expected an array, or several by name")
    return found[0] if isinstance(found, tuple) and len(found) == 1 else found


def _array(given: Any, name: str, what: str) -> np.ndarray:
    refuse_other_than_dense(given, f"{name} has {what}")
    try:
        array = np.asarray(given)
        if array.dtype == object and array.ndim:  # columns of pandas, of strings or of numbers that may be missing
            array = np.array(array.tolist())
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} has {what} of type {type(given).__name__} that make no array ({error}): expected rows of one length"
        ) from error
    return array


def refuse_other_than_dense(given: Any, who: str) -> None:
    """Refuses what `np.asarray` would make no array of, or an array of other numbers.

    Args:
      who: begins the message.

    Raises:
      DataError: a ragged or a sparse tensor or matrix, or an array with masked numbers.
    """
    kind = f"{type(given).__module__.partition('.')[0]}'s {type(given).__name__}"
    if hasattr(given, "nested_row_splits"):
        raise DataError(f"{who} that are ragged ({kind}): expected rows of one length, as its to_tensor() pads them")
    if any(hasattr(given, name) for name in ("dense_shape", "tocoo", "sparse_coords")):
        raise DataError(
            f"{who} that are sparse ({kind}): expected a dense array, as toarray() or tf.sparse.to_dense makes"
        )
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise DataError(f"{who} of which some are masked: fill them, as filled(0) does, or drop their rows")


def leaves(arrays: Arrays) -> list[np.ndarray]:
    """The arrays, in their order."""
    if isinstance(arrays, dict):
        return list(arrays.values())
    return list(arrays) if isinstance(arrays, tuple) else [arrays]


def mapped(function: Callable[[Any], Any], arrays: Arrays) -> Arrays:
    """`function` of each array, in the same structure."""
    if isinstance(arrays, dict):
        return {name: function(one) for name, one in arrays.items()}
    return tuple(function(one) for one in arrays) if isinstance(arrays, tuple) else function(arrays)


def rows(arrays: Arrays, chosen: Any) -> Arrays:
    """The examples with the numbers `chosen`, or in that slice."""
    return mapped(lambda array: array[chosen], arrays)


def count(arrays: Arrays) -> int:
    """Number of examples."""
    return len(leaves(arrays)[0])


def shapes(arrays: Arrays) -> dict[str, tuple[int, ...]] | tuple[int, ...]:
    """The shape of one example, of several arrays by name; those of a tuple are named by their numbers."""
    if isinstance(arrays, np.ndarray):
        return arrays.shape[1:]
    return {name: one.shape[1:] for name, one in by_name(arrays).items()}


def by_name(arrays: Arrays) -> dict[str, np.ndarray]:
    """Several arrays as a dictionary, those of a tuple by their numbers; one alone as ""."""
    if isinstance(arrays, dict):
        return arrays
    return {str(i): one for i, one in enumerate(arrays)} if isinstance(arrays, tuple) else {"": arrays}
