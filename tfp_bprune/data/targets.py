"""Targets as users have them, read as one kind for each task: class numbers, zeros and ones, or real numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from tfp_bprune.types import DataError, Task

SaidTask = Task | Mapping[str, Task] | None
_FEW = 20  # classes that need no more examples than there are to be believed


@dataclass(frozen=True)
class Target:
    """What one target is.

    Attributes:
      task, classes, positions, loc, scale: as `task`, `classes`, `positions`, `target_loc` and `target_scale` of `Info`.
    """

    task: Task
    classes: int
    positions: tuple[int, ...] = ()
    loc: float = 0.0
    scale: float = 1.0


class UncertainTask(DataError):
    """What targets are is not certain from them: a task has to be said."""


def read_target(y: np.ndarray, task: Task | None, name: str, known: Target | None = None) -> tuple[np.ndarray, Target]:
    """Targets in the one form that their task has, and what they are.

    Class numbers [n, positions...] stay as they are, one-hot rows [n, positions..., classes] become class numbers; what is
    binary becomes 0 and 1 [n, positions...], labels 0 and 1 [n, positions..., labels]; a regression keeps its numbers, [n] or
    [n, targets]. A last axis of one is dropped.

    Args:
      y: [n, ...].
      task: what they are; None where it is to be certain from them (see `info.info_of`).
      name: what messages call them.
      known: what they have to be, where that is settled; see `check_target`.

    Raises:
      DataError: they are not of that task, or it is not certain.
    """
    if task is not None and task not in get_args(Task):
        raise DataError(f"unknown task {task!r}: expected one of {', '.join(map(repr, get_args(Task)))}")
    if y.ndim > 1 and y.shape[-1] == 1 and not (task == "multilabel" and y.ndim == 2):
        y = y[..., 0]
    kind: Task = task or _certain(y, name)
    if kind == "regression":
        y = y.astype(np.float32) if y.dtype == bool else y
        classes, positions = (y.shape[1], ()) if y.ndim == 2 else (1, y.shape[1:])
        return y, Target(kind, classes, positions)
    if kind == "multilabel":
        if y.ndim < 2:
            raise DataError(f"{name} has one label per example, {y.shape}: expected [n, labels], or task='binary'")
        return _zeros_and_ones(y, name, kind), Target(kind, y.shape[-1], y.shape[1:-1])
    columns = y.shape[-1]
    if _one_hot(y) and (known is None or y.shape[1:] != known.positions) and not (kind == "binary" and columns != 2):
        return y.argmax(-1), Target(kind, columns, y.shape[1:-1])
    if kind == "binary":
        return _zeros_and_ones(y, name, kind), Target(kind, 2, y.shape[1:])
    y = y.astype(np.int64) if y.dtype == bool else y
    return y, Target(kind, int(y.max()) + 1 if len(y) else 1, y.shape[1:])


def targets_like(y: np.ndarray, task: Task, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Targets in the one form of their task, for answers of `shape`: probabilities [n, ..., classes], or means [n, ...].

    Raises:
      DataError: they do not suit such answers.
    """
    y = np.asarray(y)
    if y.shape[:1] != shape[:1]:
        raise DataError(f"{name} has {len(y) if y.ndim else 0} targets for {shape[0]} examples: expected one of each")
    if y.dtype.kind not in "iufb":
        raise DataError(f"{name} has targets of type {y.dtype}: expected numbers")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise DataError(f"{name} has targets that are NaN or infinite: drop or replace them")
    if task == "regression":
        if y.size != np.prod(shape):
            raise DataError(f"{name} has targets of shape {y.shape}: expected {shape}")
        return y.reshape(shape)
    known = Target(task, 2 if task == "binary" else shape[-1], shape[1:-1])
    y = read_target(whole_numbers(y, "classification"), task, name, known)[0]
    check_target(y, known, name)
    return y


def whole_numbers(y: np.ndarray, task: Task | None) -> np.ndarray:
    """Classes that are floats without a fraction, said to be classes, as integers."""
    if task == "classification" and y.dtype.kind == "f" and (np.isfinite(y) & (y == np.floor(y))).all():
        return y.astype(np.int64)
    return y


def check_target(y: np.ndarray, target: Target, name: str) -> None:
    """Refuses targets, as `read_target` gives them, that are not what they should be.

    Raises:
      DataError: another shape, or an unknown class.
    """
    if len(y) == 0:
        return
    if target.task == "classification":
        _check_classes(y, target.classes, name)
    last = (target.classes,) if target.task == "multilabel" or (target.task == "regression" and y.ndim == 2) else ()
    alone = target.task == "regression" and target.classes == 1 and not target.positions
    expected = () if alone else (*target.positions, *last)
    if y.shape[1:] != expected:
        raise DataError(f"{name} has targets of shape {y.shape[1:]} per example: expected {expected}")


def _check_classes(y: np.ndarray, classes: int, name: str) -> None:
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"the classes of {name} are of type {y.dtype}: expected whole numbers from 0 on")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(
            f"{name} has classes from {y.min()} to {y.max()}: expected 0 to {classes - 1}, number them anew, or say "
            "task='regression'"
        )


def _certain(y: np.ndarray, name: str) -> Task:
    """The task that targets have by their type and values."""
    if not len(y):
        return "regression" if y.dtype.kind == "f" else "classification"
    if y.ndim > 1 and _one_hot(y):
        return "classification"
    if y.ndim == 2 and _is_zeros_and_ones(y):
        return "multilabel"
    if y.dtype == bool:
        return "binary"
    if y.dtype.kind == "f":
        if _is_zeros_and_ones(y) and y.min() < y.max():
            raise UncertainTask(f"{name} has targets that are floats, 0 and 1: say task='binary' or task='regression'")
        if _may_be_classes(y):
            raise UncertainTask(
                f"{name} has targets that are floats without fractions, from {y.min():g} to {y.max():g}: say task='classification' or "
                "task='regression'"
            )
        return "regression"
    values, classes = np.unique(y), int(y.max()) + 1
    if classes > _FEW and (values[0] > 1 or classes > 2 * len(values) or 2 * classes > y.size):
        raise UncertainTask(
            f"{name} has whole numbers from {values[0]} to {values[-1]} as targets, {len(values)} different ones in {y.size}: say "
            "task='classification' or task='regression'"
        )
    return "classification"


def _may_be_classes(y: np.ndarray) -> bool:
    """Whether floats are whole numbers, from 0 or 1 on with hardly any left out, as many as there could be classes."""
    if y.ndim > 1 or y.min() not in (0, 1) or y.max() < 2 or (y != np.floor(y)).any():
        return False
    return bool(y.max() + 1 <= min(2 * len(np.unique(y)), max(_FEW, y.size // 2)))


def _is_zeros_and_ones(y: np.ndarray) -> bool:
    return bool(((y == 0) | (y == 1)).all())


def _one_hot(y: np.ndarray) -> bool:
    """Whether rows of several columns hold one 1 each, and zeros."""
    return y.ndim > 1 and y.shape[-1] > 1 and _is_zeros_and_ones(y) and bool((y.sum(-1) == 1).all())


def _zeros_and_ones(y: np.ndarray, name: str, task: Any) -> np.ndarray:
    if not _is_zeros_and_ones(y):
        raise DataError(f"{name} has targets from {y.min()} to {y.max()}: a {task} task expects 0 and 1")
    return y if y.dtype.kind in "iu" else y.astype(np.int64)
