"""The names of variables, known here alone: those of a weight `w` are `w_part`, one of them `w_mask`, what is left of it."""

from __future__ import annotations

from collections.abc import Container

import numpy as np

from tfp_bprune.types import BpruneError

STATE = ("noise_step", "kl_schedule", "last_kl")  # what training keeps in a layer
_MASK = "_mask"


def of_part(weight: str, part: str) -> str:
    """Name of the variable that holds a part of a weight's distribution."""
    return f"{weight}_{part}"


def is_state(name: str) -> bool:
    """Whether a variable of this name is no parameter, but what training keeps in a layer."""
    return name.split(":")[0].endswith(STATE)


def mask_of(name: str, known: Container[str]) -> str | None:
    """Name of the mask that a variable goes by, among those `known`: of the longest weight that its name begins with."""
    parts = name.split("_")
    for end in range(len(parts) - 1, 0, -1):
        mask = "_".join(parts[:end]) + _MASK
        if mask in known:
            return mask
    return None


def sliced(
    name: str, values: np.ndarray, full: tuple[int, ...], wanted: tuple[int, ...], index: tuple[np.ndarray, ...]
) -> np.ndarray:
    """The entries `index`, an open mesh of a tensor of shape `full`, of values that broadcast to it.

    Raises:
      BpruneError: values of another shape, which there is no telling how to slice.
    """
    if values.ndim == len(full) and all(size in (1, whole) for size, whole in zip(values.shape, full, strict=True)):
        first = np.zeros((1,) * values.ndim, int)
        at = (i if size == whole else first for i, size, whole in zip(index, values.shape, full, strict=True))
        found: np.ndarray = values[tuple(at)]
    else:
        found = values
    if found.shape != wanted:
        raise BpruneError(
            f"{name} has the shape {list(values.shape)} and must become {list(wanted)}: expected one that broadcasts, axis by "
            f"axis, to the weight's {list(full)}"
        )
    return found
