"""What may be promised: fixed sequences of ever smaller networks, each tested on examples that no search has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfp_bprune.claims import bounds
from tfp_bprune.claims.budget import Budget, NumberPair, Pair
from tfp_bprune.searching.session import Sample
from tfp_bprune.searching.threshold import scaled
from tfp_bprune.trials.ranking import Counts, Ranking
from tfp_bprune.trials.trial import WHOLE, Bits
from tfp_bprune.types import Json

FACTORS = (
    16.0, 8.0, 4.0, 2.8, 2.0, 1.7, 1.5, 1.4, 1.3, 1.22, 1.15, 1.1, 1.05, 1.0, 0.95, 0.9, 0.86, 0.82, 0.78, 0.74, 0.7, 0.65,
    0.6,
)  # fmt: skip
_SECOND_START = 2.2  # times the best
_PARTS = (0.1, 0.9)  # of the error: for the sequence from all weights on, and for that near the best


@dataclass(frozen=True)
class Claim:
    """A network for which the budget was shown to hold, or all weights where it was for none.

    Attributes:
      counts: weights kept of each kernel.
      bits: of the weights of layers that are rounded.
      holds: whether it was shown.
      evidence: see `Budget.evidence`; its bounds are at `level`, which is above the budget's, as two sequences, and other
        claims from the same sample, share the error.
      looks: networks tested, the one that failed among them.
    """

    counts: Counts
    ranking: str
    holds: bool
    evidence: Json
    looks: int
    bits: Bits = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """What a search found: weights kept of each kernel in the order of `ranking`, which goes by `name`, and their bits."""

    ranking: Ranking
    name: str
    counts: Counts
    bits: Bits = field(default_factory=dict)


def prove_all(sample: Sample, budget: Budget, found: Sequence[Candidate]) -> list[Claim]:
    """What may be promised of several candidates on one sample, so that all promises hold together at the budget's level.

    Picking the smaller of two certified networks favours the one whose sample was lucky, which voids the guarantee. Each candidate is
    therefore tested at an equal part of the level's error (Bonferroni); by itself each holds at more than the level. One
    that is there twice is one.
    """
    different = [one for place, one in enumerate(found) if _key(one) not in map(_key, found[:place])]
    claims = {_key(one): prove(sample, budget, one, 1 / len(different)) for one in different}
    return [claims[_key(one)] for one in found]


def _key(one: Candidate) -> tuple[Any, ...]:
    return one.name, *sorted(one.counts.items()), *sorted(one.bits.items())


def prove(sample: Sample, budget: Budget, found: Candidate, share: float = 1.0) -> Claim:
    """Tests all weights, then multiples of what was found from large to small, in its bits, and keeps the last before the first that fails.

    Near what was found a second sequence begins, so that one unlucky network among the large ones does not end it all. Both are
    settled before the sample is looked at, each ends at its first failure, and each is tested at its part of the level's
    error, the second at most of it; so the chance that what is kept breaks the budget is at most `share` (1 - level), however
    many were tested (fixed sequence testing with several starts: Angelopoulos et al. 2021, "Learn then test", arXiv 2110.01052,
    algorithm 1).

    Args:
      sample: not searched on.
      share: part of the error of the budget's level that this claim may take.
    """
    ranking, error = found.ranking, share * (1 - budget.level)
    networks = _sequence(found.counts, ranking.left, bool(found.bits))
    most = _SECOND_START * sum(found.counts.values())
    near = next(place for place, counts in enumerate(networks) if sum(counts.values()) <= most)
    pairs: dict[int, Pair | NumberPair] = {}
    kept, at = 0, replace(budget, level=1 - max(_PARTS) * error)
    holds = False
    for begin, part in zip((0, near), _PARTS, strict=True):
        strict = replace(budget, level=1 - part * error)
        for place in range(begin, len(networks)):
            if place not in pairs:
                pairs[place] = sample.pair(ranking.masks(networks[place]), found.bits if place else WHOLE)
            if not strict.shown(pairs[place]):
                break
            kept, at, holds = place, strict, True
    evidence = at.evidence(pairs[kept]) | {"level": at.level}
    return Claim(networks[kept], found.name, holds, evidence, len(pairs), found.bits if kept else WHOLE)


def _sequence(best: Counts, left: Counts, rounded: bool = False) -> list[Counts]:
    """All weights, then multiples of `best` from large to small, each once; all of them again where the others are rounded."""
    networks = [left]
    for counts in (scaled(best, factor, left) for factor in FACTORS):
        if counts != networks[-1] or (rounded and len(networks) == 1):
            networks.append(counts)
    return networks


def on_test(pair: Pair | NumberPair, budget: Budget) -> Json:
    """What the test split says of a claim: the drop in accuracy with its 95 % interval, and the budget's other conditions.

    Returns:
      `unpruned_accuracy`, `accuracy_drop`, `interval`, `lost`, `gained`, `examples`, `method`; `conditions`, estimate and
      one-sided 95 % bound of calibration and detection where they are asked for. Of a regression `unpruned_rmse` and
      `rmse_increase` in the place of the first two, and neither `lost` nor `gained`.
    """
    n = len(pair.whole.labels)
    if isinstance(pair, NumberPair):
        return _increase_on_test(pair, n)
    low, high = bounds.interval(pair.lost, pair.gained, n) if pair.single else _normal(pair.drop, pair.drops)
    others = budget.others
    conditions = replace(others, level=0.95).evidence(pair)["conditions"] if others else {}
    return {
        "unpruned_accuracy": float(pair.whole.right.mean()),
        "accuracy_drop": pair.drop,
        "interval": [low, high],
        "lost": pair.lost,
        "gained": pair.gained,
        "examples": n,
        "method": "paired, score interval (Tango 1998), 95 %" if pair.single else "paired by example, normal, 95 %",
        "conditions": {name: _reported(condition) for name, condition in conditions.items()},
    }


def _increase_on_test(pair: NumberPair, n: int) -> Json:
    # The delta method: log RMSE is half the logarithm of a mean.
    whole, pruned = (one.squares / max(one.squares.mean(), 1e-300) for one in (pair.whole, pair.pruned))
    low, high = _normal(float(np.log1p(pair.increase)), (pruned - whole) / 2)
    return {
        "unpruned_rmse": pair.whole.rmse,
        "rmse_increase": pair.increase,
        "interval": [float(np.expm1(low)), float(np.expm1(high))],
        "examples": n,
        "method": "paired, normal for the logarithm of the ratio, 95 %",
        "conditions": {},
    }


def _normal(estimate: float, values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval around an estimate that is a mean of values [n], up to a constant."""
    half = 1.959963984540054 * float(values.std()) / math.sqrt(len(values))
    return estimate - half, estimate + half


def _reported(condition: Json) -> Json:
    return {key: condition[key] for key in ("estimate", "bound", "examples", "method")}
