"""The one-dimensional search: one threshold for all weights, by bisection on how many are kept."""

from __future__ import annotations

from tfp_bprune.searching.session import Session
from tfp_bprune.trials.ranking import Counts
from tfp_bprune.types import Json

_PRECISION = 1.02
_FAR, _NEAR = 4.0, 1.25


def bisect(session: Session, ranking: str = "score", most: int = 16, start: int | None = None) -> Json | None:
    """The fewest weights above one threshold that are within the budget, to 2 % of their number.

    The number is quartered until the budget fails; between there and the last that held it is bisected in its logarithm.
    Where accuracy is not monotone in it, what comes out still holds the budget on the sample.

    Args:
      most: trials.
      start: how many to keep at first, near the answer; all by default.

    Returns:
      The best trial, or None where none is within the budget.
    """
    order = session.rankings[ranking]
    everything = sum(order.left.values())
    total, step = start or everything, _NEAR if start else _FAR
    low, high, best = 0, everything + 1, None
    for _ in range(most):
        row = session.trial("global", ranking, order.globally(total))
        if session.within(row):
            high, best = total, row
        else:
            low = total
        total = _between(low, high, everything, step)
        if low and (high <= low * _PRECISION or total in (low, high)):
            break
        if total == high:
            break
    return best


def _between(low: int, high: int, everything: int, step: float) -> int:
    """The next number to try: a step beyond the end that is still open, or the middle."""
    if not low:
        return max(1, round(high / step))
    if high > everything:
        return min(everything, round(low * step))
    return round((low * high) ** 0.5)


def scaled(counts: Counts, factor: float, limits: Counts) -> Counts:
    """Counts times a factor, none above its limit, none of those that were above 0 below 1."""
    return {name: min(max(round(n * factor), 1 if n else 0), limits[name]) for name, n in counts.items()}
