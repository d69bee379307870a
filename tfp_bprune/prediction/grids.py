"""Weights in few bits: what they are rounded to, and by how much that lowers the ELBO.

Means go to a grid of equal steps with a scale for each output channel, symmetric, so that 0 stays 0. Scales of posteriors
differ by factors and not by differences: each goes to one of a few levels, the root mean square of those that share it, so
that the variance which weights bring to an output keeps its size. A level stands for a narrow range: an input reads some weights
more than others, those that are known better among them, and would see another variance if both shared a level.

A posterior N(mu, s^2) at its optimum has the curvature of the loss for its precision: 1 / s^2 = d^2 L / d mu^2. So moving a
mean by d lowers the ELBO by about d^2 / (2 s^2) nats, and a change of its scale by the factor r by (r^2 - 1) / 2 - log r:
together KL(moved || posterior). A grid whose step is s adds s^2 / 12 to the variance and costs 1/24 nat a weight.

Variances stay the posterior's own when means are rounded: about any mean near its own s is the best scale, by the same formula,
and s^2 + d^2, the second moment about the moved mean, costs (d^2 / s^2 - log(1 + d^2 / s^2)) / 2 more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.types import Storage

WITHIN = 1 / 24  # nats a weight: a step as wide as the posterior
# Bits of scales: fewer lose the order of examples by uncertainty, and more tell nothing, but take a longer table.
_LEAST_OF_SCALES, _MOST_OF_SCALES = 4, 6
_SHARING = 4  # a level is for so many numbers at least, on average
_PARTS = np.linspace(1.0, 0.3, 15)  # of the largest weight of a channel, where the grid may end
_BITS = range(2, 9)
_FURTHEST = 2**7 - 1  # the most steps from 0 that 8 bits reach
_EIGHTHS = 57  # of a bit between the widest step that is tried, the largest weight, and the narrowest, a 128th of it
_BINS = 512  # of the logarithms of scales, between which their ranges may end
_PRICE = 2e-4  # nats of the ELBO for a nat of code: an eighth of what 15 levels over a factor of 10 lose


@dataclass(frozen=True)
class Grid:
    """Numbers [rows, columns] as whole ones of a few bits.

    Attributes:
      codes: uint8.
      bits: of each code.
    """

    codes: np.ndarray
    bits: int

    @property
    def values(self) -> np.ndarray:
        """The numbers, as files give them back: float32, 0 where they were."""
        raise NotImplementedError

    def with_codes(self, codes: np.ndarray) -> Grid:
        """The same grid for some of the numbers, or for all as they lie otherwise."""
        return replace(self, codes=codes)


@dataclass(frozen=True)
class Steps(Grid):
    """Multiples of the scale of their column, or of one step for all: (code - zero) scale.

    Attributes:
      scale: [columns], or [1] for all; exact in bfloat16.
    """

    scale: np.ndarray

    @property
    def zero(self) -> int:
        """The code of 0."""
        return 2 ** (self.bits - 1)

    @property
    def values(self) -> np.ndarray:
        """As in `Grid`."""
        return (self.codes.astype(np.float32) - self.zero) * self.scale


@dataclass(frozen=True)
class Levels(Grid):
    """Numbers of a table, of which the first is 0.

    Attributes:
      levels: at most 2^bits, exact in bfloat16.
    """

    levels: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """As in `Grid`."""
        return self.levels[self.codes]


def bits_of(storage: Storage) -> int | None:
    """The bits of a whole number; None for floats."""
    return int(storage[3:]) if storage.startswith("int") else None


def storage_of(bits: int) -> Storage:
    """Whole numbers of so many bits."""
    return cast(Storage, f"int{bits}")


def steps(array: np.ndarray, bits: int) -> Steps:
    """The grid of `array` [rows, columns] with the least squared error, of those that end at a part of the largest weight."""
    top, zero = 2 ** (bits - 1) - 1, 2 ** (bits - 1)
    peak = np.abs(array).max(0, initial=0.0)
    best = np.full(len(peak), np.inf)
    codes, scale = np.full(array.shape, zero, np.uint8), np.ones(len(peak), np.float32)
    for part in _PARTS:
        tried = as_bfloat16(np.where(peak > 0, peak * part / top, 1.0))
        whole = np.clip(np.rint(array / tried), -top, top)
        error = np.square((whole * tried - array).astype(np.float64)).sum(
            0
        )  # squares of large weights are beyond float32
        better = error < best
        best[better], scale[better] = error[better], tried[better]
        codes[:, better] = (whole[:, better] + zero).astype(np.uint8)
    return Steps(codes, bits, scale)


def multiples(array: np.ndarray, step: float) -> Steps:
    """The grid of `array` [rows, columns] with one step for all, in the fewest bits that reach its largest weight.

    A step that is so small that 8 bits do not reach it is doubled until they do.
    """
    peak = float(np.abs(array).max(initial=0.0))
    while np.rint(peak / as_bfloat16(step)) > _FURTHEST:
        step *= 2
    scale = as_bfloat16([step])
    whole = np.rint(array / scale)
    bits = next(b for b in _BITS if np.abs(whole).max(initial=0) < 2 ** (b - 1))
    return Steps((whole + 2 ** (bits - 1)).astype(np.uint8), bits, scale)


def widest(loc: np.ndarray, scale: np.ndarray, within: float = WITHIN) -> float | None:
    """The widest step for all weights of a posterior that lowers the ELBO by no more than `within` nats for each that is left.

    Widths are tried by eighths of a bit. None where the grid has to be finer than 8 bits allow, or nothing is left.
    """
    left = scale > 0
    if not left.any():
        return None
    kept, deviation = loc[left], scale[left]
    widths = np.max(np.abs(kept)) * 2.0 ** (-np.arange(_EIGHTHS) / 8)
    for step in map(float, as_bfloat16(widths)):
        grid = multiples(kept, step)
        if grid.scale[0] == step and elbo_loss(kept, deviation, grid.values) <= within * len(kept):
            return step
    return None


def entropy_of(codes: np.ndarray) -> float:
    """The bytes that codes take at least if each is coded by its frequency alone."""
    counts = np.bincount(codes.ravel())
    parts = counts[counts > 0] / max(codes.size, 1)
    return float(-(parts * np.log2(parts)).sum() * codes.size / 8)


def levels(array: np.ndarray, bits: int) -> Levels:
    """Levels for numbers that are not negative, with the least squared error of their logarithms, to second order the least KL,
    and `_PRICE` for each nat of the entropy of their codes, by which files grow.

    Most posteriors of a network may be as narrow as the narrow part of its prior, all but equal: one level does for them, however
    many they are, and the others are left to those that differ, which bring most of the variance.
    """
    bits = min(max(bits, _LEAST_OF_SCALES), _MOST_OF_SCALES)
    left = array > 0
    logs = np.log(array[left].astype(np.float64))
    codes, table = np.zeros(array.shape, np.uint8), np.zeros(1, np.float32)
    if len(logs):
        found = _ranges(logs, min(2**bits - 1, -(-len(logs) // _SHARING))) + 1
        table = np.zeros(found.max() + 1, np.float32)
        means = np.bincount(found, np.exp(2 * logs)) / np.maximum(np.bincount(found), 1)
        table[1:], codes[left] = as_bfloat16(np.sqrt(means))[1:], found
    return Levels(codes, bits, table)


def _ranges(numbers: np.ndarray, count: int) -> np.ndarray:
    """To which of at most `count` ranges each number belongs, for the least squared distances from the means of ranges, and price.

    The best there are, but for ends within bins: those up to a bin follow from those up to each bin before, of one range less.
    """
    low = numbers.min()
    bins = ((numbers - low) * (_BINS / max(np.ptp(numbers), 1e-9))).astype(int).clip(0, _BINS - 1)
    used, bins = np.unique(bins, return_inverse=True)
    size, total, square = (
        np.concatenate([[0.0], np.cumsum(np.bincount(bins, weights, len(used)))])
        for weights in (None, numbers - low, np.square(numbers - low))
    )
    first, last = np.arange(len(used))[:, None], np.arange(len(used))[None] + 1
    number, sums = np.maximum(size[last] - size[first], 1), total[last] - total[first]
    distances = square[last] - square[first] - np.square(sums) / number
    cost = np.where(last > first, distances + _PRICE * number * np.log(len(numbers) / number), np.inf)
    costs, begins = [cost[0]], list[np.ndarray]()
    for _ in range(min(count, len(used)) - 1):
        tried = np.concatenate([[np.inf], costs[-1][:-1]])[:, None] + cost
        begins.append(tried.argmin(0))
        costs.append(tried.min(0))
    ranges, starts, end = int(np.argmin([one[-1] for one in costs])), list[int](), len(used)
    for begin in reversed(begins[:ranges]):
        end = int(begin[end - 1])
        starts.append(end)
    return np.searchsorted(starts[::-1], bins, side="right")


def elbo_loss(loc: np.ndarray, scale: np.ndarray, new_loc: np.ndarray, new_scale: np.ndarray | None = None) -> float:
    """Nats by which the ELBO falls, as the posterior predicts it, where means and perhaps scales are others.

    Args:
      loc, scale: of the posterior; weights whose scale is 0 are gone.
      new_loc, new_scale: in their place.
    """
    left = scale > 0
    deviation = scale[left].astype(np.float64)
    nats = np.square((new_loc[left] - loc[left]) / deviation) / 2
    if new_scale is not None:
        ratio = np.maximum(new_scale[left] / deviation, np.finfo(np.float32).tiny)
        nats += (np.square(ratio) - 1) / 2 - np.log(ratio)
    return float(nats.sum())


def as_bfloat16(numbers: Any) -> np.ndarray:
    """Numbers that bfloat16 holds, so that files need two bytes for each."""
    kind = tf.bfloat16.as_numpy_dtype
    tiny = float(np.finfo(np.float32).tiny)
    return np.maximum(np.asarray(numbers, np.float32), tiny).astype(kind).astype(np.float32)
