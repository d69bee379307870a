"""How sparse a network should be at each step: pure functions from the step to a sparsity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tfp_bprune.types import PruneError

SparsitySchedule = Callable[[int], float]


@dataclass(frozen=True)
class Polynomial:
    """The schedule that `polynomial` gives."""

    final: float
    begin: int
    end: int
    initial: float
    power: float

    def __call__(self, step: int) -> float:
        """The sparsity at `step`."""
        part = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return self.final + (self.initial - self.final) * (1 - part) ** self.power


def polynomial(final: float, begin: int, end: int, initial: float = 0.0, power: float = 3.0) -> Polynomial:
    """s(t) = final + (initial - final) (1 - (t - begin) / (end - begin))^power between `begin` and `end`.

    Zhu and Gupta 2017 (arXiv 1710.01878), eq. 1: fast at first, when there is much to spare.

    >>> [round(polynomial(0.9, 0, 10)(step), 3) for step in (0, 5, 10, 99)]
    [0.0, 0.788, 0.9, 0.9]

    Raises:
      PruneError: a sparsity outside [0, 1), or an end that is not after the beginning.
    """
    if not (0 <= initial <= final < 1):
        raise PruneError(f"sparsities must satisfy 0 <= initial <= final < 1, got {initial} and {final}")
    if end <= begin:
        raise PruneError(f"the schedule must end after it begins, got begin={begin} and end={end}")
    return Polynomial(final, begin, end, initial, power)
