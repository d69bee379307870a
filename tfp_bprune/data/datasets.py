"""Datasets by name: those that are registered, here or by anyone, and those of TensorFlow Datasets.

A dataset is a function that gives its examples; see `dataset`. Two real ones come with scikit-learn and need no
download: `digits` (8x8 handwriting) and `diabetes` (regression).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tfp_bprune._registry import Registry
from tfp_bprune.data.info import Info, info_of
from tfp_bprune.types import DataError

Pair = tuple[Any, Any]
Function = TypeVar("Function", bound=Callable[..., Any])
DATASETS: Registry[Callable[[Path], Any]] = Registry("dataset")

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_HELD_OUT = 0.2  # of the examples of a dataset that comes without a test split
_FIXED_SEED = 20200525  # what is held out never depends on the user's seed


def dataset(name: str) -> Callable[[Function], Function]:
    """Registers a function as a dataset, for `load(name)` and `--dataset` of every command; a decorator.

    The function takes no argument, or one, `data_dir`: the folder of TensorFlow Datasets (a `pathlib.Path`). It returns
    `(train, test)` or `(train, test, info)`: two pairs of examples [n, ...] in their raw units and targets [n], as for
    `from_arrays`, and what a network needs to know of them, by default `info_of(*train)`. It must return the same examples in
    the same order every time, since a run recognizes its data by a hash of all of them. A registered name takes precedence
    over a dataset of TensorFlow Datasets.

    Args:
      name: made of letters, digits and _ . + -

    Raises:
      BpruneError: the name has other characters, or is taken by another function.
      DataError: the function needs other arguments.

    >>> @dataset("zeros")
    ... def zeros():
    ...     x, y = np.zeros((10, 3), "float32"), np.arange(10) % 2
    ...     return (x, y), (x, y)
    """

    def register(function: Function) -> Function:
        takes = inspect.signature(function).parameters
        needs = {one.name for one in takes.values() if one.default is one.empty and one.kind not in _ANY_NUMBER}
        if needs - {"data_dir"}:
            raise DataError(f"dataset {name!r} needs {', '.join(sorted(needs))}: expected no argument, or data_dir")
        wants = "data_dir" in takes
        DATASETS.add(name, lambda data_dir: function(data_dir=data_dir) if wants else function(), function)
        return function

    return register


def registered(name: str, data_dir: Path) -> tuple[Pair, Pair, Info]:
    """What the function of a registered dataset gives, with its description.

    Raises:
      DataError: it gives something else than `dataset` says.
    """
    given = DATASETS[name](data_dir)
    if not isinstance(given, tuple) or len(given) not in (2, 3):
        size = f" of {len(given)}" if isinstance(given, tuple) else ""
        raise DataError(
            f"dataset {name!r} gives a {type(given).__name__}{size}: expected (train, test) or (train, test, info)"
        )
    pairs = [pair_of(pair, f"{what} of dataset {name!r}") for pair, what in zip(given, ("train", "test"), strict=False)]
    info = given[2] if len(given) == 3 else info_of(*pairs[0], name=name)
    if not isinstance(info, Info):
        raise DataError(f"dataset {name!r} gives a {type(info).__name__} as info: expected an Info, see `info_of`")
    return pairs[0], pairs[1], replace(info, name=name)


def pair_of(given: Any, what: str) -> Pair:
    """Examples and targets.

    Raises:
      DataError: it is no pair.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        size = f" of {len(given)}" if isinstance(given, tuple | list) else ""
        raise DataError(f"{what} is a {type(given).__name__}{size}: expected a pair (examples, targets)")
    return given[0], given[1]


def hold_out(x: np.ndarray, y: np.ndarray) -> tuple[Pair, Pair]:
    """A fifth of the examples for the test split, always the same: `(train, test)`."""
    order = np.random.default_rng(_FIXED_SEED).permutation(len(x))
    cut = round(_HELD_OUT * len(x))
    test, train = np.sort(order[:cut]), np.sort(order[cut:])
    return (x[train], y[train]), (x[test], y[test])


@dataset("digits")
def digits() -> tuple[Pair, Pair, Info]:
    """1,797 handwritten digits of 8x8 pixels from 0 to 16, in ten classes."""
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    train, test = hold_out(x.reshape(-1, 8, 8, 1).astype(np.uint8), y.astype(np.int64))
    return train, test, Info("digits", "classification", (8, 8, 1), 10, scale=2 / 16)


@dataset("diabetes")
def diabetes() -> tuple[Pair, Pair, Info]:
    """442 patients with ten measurements each, and the progression of their disease after a year."""
    from sklearn import datasets

    x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
    train, test = hold_out(x.astype(np.float32), y.astype(np.float32))
    mean, std = train[0].mean(0), train[0].std(0)
    info = Info("diabetes", "regression", x.shape[1:], 1, tuple((1 / std).tolist()), tuple((-mean / std).tolist()))
    return train, test, info
