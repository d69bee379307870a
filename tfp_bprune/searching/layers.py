"""The sparsity of every layer: from the sensitivities, then Bayesian optimization, then small steps around the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from tfp_bprune.claims.bounds import crossing
from tfp_bprune.searching.session import Session, smallest
from tfp_bprune.searching.threshold import scaled
from tfp_bprune.trials.oracle import Point, propose
from tfp_bprune.trials.ranking import Counts
from tfp_bprune.types import Json

PARTS = (0.6, 1.6, 0.45, 0.75)  # of a kernel's count, the most telling first; 1 is the centre, which is known
_RANGE = (math.log(0.45), math.log(1.6))
_PRICES = (-30.0, 5.0)  # of a weight, logarithm of nats: everything is worth the one, nothing the other
_PENALTY, _NLL = 0.25, 0.5
_LEVELS = (1.0, 0.9, 0.8)
_GRID = 60
_WORST = 1e3  # nats, where an NLL is infinite
_LOCAL_PART = 0.4
_FIRST_STEP, _LAST_STEP = 0.1, 0.012


def per_layer(session: Session, center: Counts, curves: Sequence[Json], trials: int, seed: int, ranking: str) -> None:
    """Makes `trials` trials, or fewer where small steps lead nowhere; the best is for `best_of` to find.

    Args:
      center: counts to look around: those of the best single threshold.
      curves: rows of `sensitivity` around it, and that of the centre itself, whose `tensor` is None and `kept` 1.
      seed: of the optimization.
    """
    end = session.done + trials
    limits = session.rankings[ranking].left
    for counts in _starts(center, curves, limits):
        if session.done < end:
            session.trial("start", ranking, counts)
    middle = session.done + round((end - session.done) * (1 - _LOCAL_PART))
    while session.done < middle:
        session.trial("bayesian", ranking, _asked(session, center, seed, ranking))
    steps = _local(session, center, ranking)
    for counts in steps:
        if session.done >= end:
            break
        session.trial("local", ranking, counts)


def best_of(session: Session, ranking: str | None = None) -> Json | None:
    """The smallest trial within the budget, by the target."""
    return smallest([row for row in session.rows if ranking in (None, row["ranking"])], session.target)


def value_of(session: Session, row: Json) -> float:
    """What the optimization makes small: log of the size, and a price for what is beyond the budget.

    The NLL in it tells trials apart that lose equally many examples.
    """
    beyond = min(max(row["excess"], 0.0), 12.0)
    return math.log(max(row[session.target], 1.0)) + _PENALTY * beyond + _NLL * min(_nll(row), 1.0)


def _nll(row: Json) -> float:
    """Of a trial; the log keeps null for an infinite one, of a class that was given no probability at all. Of a regression the
    growth of its RMSE, which tells trials apart as well."""
    if "rmse_increase" in row:
        return float(row["rmse_increase"])
    return math.inf if row["nll"] is None else float(row["nll"])


def _asked(session: Session, center: Counts, seed: int, ranking: str) -> Counts:
    space = {name: _RANGE for name, n in center.items() if n}
    near = [row for row in session.rows if row["ranking"] == ranking and _inside(row["counts"], center, space)]
    point = propose(
        space,
        [(_point(row["counts"], center, space), value_of(session, row)) for row in near],
        seed=1000 * seed + session.done,
    )
    return _counts(point, center, session.rankings[ranking].left)


def _point(counts: Counts, center: Counts, space: Mapping[str, tuple[float, float]]) -> Point:
    return {name: math.log(max(counts[name], 0.5) / center[name]) for name in space}


def _inside(counts: Counts, center: Counts, space: Mapping[str, tuple[float, float]]) -> bool:
    point = _point(counts, center, space)
    return all(low - 0.01 <= point[name] <= high + 0.01 for name, (low, high) in space.items())


def _counts(point: Point, center: Counts, limits: Counts) -> Counts:
    wanted = {name: n * math.exp(point.get(name, 0.0)) for name, n in center.items()}
    return {name: min(max(round(n), 1 if center[name] else 0), limits[name]) for name, n in wanted.items()}


def _starts(center: Counts, curves: Sequence[Json], limits: Counts) -> Iterator[Counts]:
    """Allocations in which one more weight would lower the loss by the same in every layer, at a few sizes."""
    total = sum(center.values())
    for level in _LEVELS if curves else ():
        yield _allocated(center, curves, level * total, limits)


def _allocated(center: Counts, curves: Sequence[Json], total: float, limits: Counts) -> Counts:
    """The counts of about `total` weights with the least sum of the layers' losses; by a price for each weight."""
    grid = np.linspace(*_RANGE, _GRID)
    losses = {name: _loss(name, curves, grid) for name in center}

    def at(price: float) -> Counts:
        best = {n: grid[int(np.argmin(losses[n] + price * center[n] * np.exp(grid)))] for n in center if center[n]}
        return _counts(best, center, limits)

    def beyond(log_price: float) -> float:
        return sum(at(math.exp(log_price)).values()) - total

    low, high = _PRICES
    if beyond(low) <= 0:
        high = low
    elif beyond(high) <= 0:
        high = crossing(beyond, low, high)
    chosen = at(math.exp(high))
    return scaled(chosen, total / max(sum(chosen.values()), 1), limits)


def _loss(name: str, curves: Sequence[Json], grid: np.ndarray) -> np.ndarray:
    """NLL at counts `count * exp(grid)`, between those measured; never less with fewer weights."""
    found = sorted((math.log(row["kept"]), _nll(row)) for row in curves if row["tensor"] in (name, None))
    x, y = np.array(found).T
    falling = np.maximum.accumulate(np.minimum(y, _WORST)[::-1])[::-1]
    return np.interp(grid, x, falling)


def _local(session: Session, center: Counts, ranking: str) -> Iterator[Counts]:
    """From the best trial, one layer at a time less; shorter steps where the budget was left, until they are too short."""
    limits = session.rankings[ranking].left
    more = 1.0
    while best_of(session, ranking) is None:  # nothing holds the budget yet: more of everything
        more *= 1.2
        yield scaled(center, more, limits)
    steps = {name: _FIRST_STEP for name, n in center.items() if n}
    while steps:
        for name in list(steps):
            start = (best_of(session, ranking) or {"counts": center})["counts"]
            fewer = max(1, min(start[name] - 1, round(start[name] * (1 - steps[name]))))
            if fewer < start[name]:
                yield start | {name: fewer}
            if fewer == start[name] or not session.within(session.rows[-1]):
                steps[name] /= 2
            if steps[name] < _LAST_STEP:
                del steps[name]
