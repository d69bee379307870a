"""What a network needs to know of its data, said by hand or taken from arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfp_bprune.types import DataError, Task


@dataclass(frozen=True)
class Info:
    """What a network needs to know of its data.

    Attributes:
      name: dataset name.
      task: `"classification"` or `"regression"`.
      input_shape: shape of one example, without the batch.
      classes: number of classes; 1 for regression.
      scale, offset: the network's first step is `x * scale + offset`; scalars for images, one per feature for tables.
      target_loc, target_scale: mean and standard deviation of the training targets (regression).
      fingerprint: SHA-256 over all examples, in their order.
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


def info_of(x: np.ndarray, y: np.ndarray, name: str = "arrays") -> Info:
    """Describes training examples, so that a network's first step gives them zero mean and unit variance.

    Args:
      x: [n, ...] in raw units. The features of a table [n, features] are standardized each by itself, images and other
        arrays as a whole.
      y: [n]; an array of integers holds classes from 0 on, one of floats the targets of a regression.
      name: what messages and manifests call the data.

    Raises:
      DataError: there are no examples, not one target for each, a number that is not finite, or a negative class.
    """
    _check_pairs(x, y, name)
    if len(x) == 0:
        raise DataError(f"{name} has no examples: expected at least one to describe")
    axes = 0 if x.ndim == 2 else None
    mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
    scale = 1 / np.where(std > 0, std, 1.0)  # a constant feature becomes 0
    whole = np.issubdtype(y.dtype, np.integer)
    info = Info(
        name,
        "classification" if whole else "regression",
        x.shape[1:],
        int(y.max()) + 1 if whole else 1,
        scale.tolist() if axes is None else tuple(scale.tolist()),
        (-mean * scale).tolist() if axes is None else tuple((-mean * scale).tolist()),
    )
    check_arrays(x, y, info)
    return info


def check_arrays(x: np.ndarray, y: np.ndarray, info: Info) -> None:
    """Refuses examples that are not as `info` says.

    Raises:
      DataError: not one target for each example, another shape, something that is no finite number, or an unknown class.
    """
    _check_pairs(x, y, info.name)
    if len(x) and x.shape[1:] != tuple(info.input_shape):
        raise DataError(f"{info.name} has examples of shape {x.shape[1:]}: expected {tuple(info.input_shape)}")
    if info.task == "regression" or len(y) == 0:
        return
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"the classes of {info.name} are of type {y.dtype}: expected whole numbers from 0 on")
    if y.min() < 0 or y.max() >= info.classes:
        raise DataError(
            f"{info.name} has classes from {y.min()} to {y.max()}: expected 0 to {info.classes - 1}, number them anew"
        )


def _check_pairs(x: np.ndarray, y: np.ndarray, name: str) -> None:
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise DataError(f"{name} has examples {x.shape} and targets {y.shape}: expected [n, ...] and [n]")
    for what, values in (("examples", x), ("targets", y)):
        if values.dtype.kind not in "iuf":
            raise DataError(f"{name} has {what} of type {values.dtype}: expected numbers")
        if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
            raise DataError(f"{name} has {what} that are NaN or infinite: drop or replace them")
