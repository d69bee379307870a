"""What may be promised: a fixed sequence of ever smaller networks, each tested on examples that no search has seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tfp_bprune.search import bounds
from tfp_bprune.search.budget import Budget, Pair
from tfp_bprune.search.ranking import Counts, Ranking
from tfp_bprune.search.session import Sample
from tfp_bprune.search.threshold import scaled
from tfp_bprune.types import Json

FACTORS = (
    16.0,
    8.0,
    4.0,
    2.8,
    2.0,
    1.7,
    1.5,
    1.4,
    1.3,
    1.22,
    1.15,
    1.1,
    1.05,
    1.0,
    0.95,
    0.9,
    0.86,
    0.82,
    0.78,
    0.74,
    0.7,
    0.65,
    0.6,
)


@dataclass(frozen=True)
class Claim:
    """A network for which the budget was shown to hold, or the nearest to it.

    Attributes:
      counts: weights kept of each kernel.
      holds: whether it was shown.
      evidence: see `Budget.evidence`.
      looks: networks tested, the one that failed among them.
    """

    counts: Counts
    ranking: str
    holds: bool
    evidence: Json
    looks: int


def prove(sample: Sample, budget: Budget, ranking: Ranking, name: str, best: Counts) -> Claim:
    """Tests all weights, then multiples of `best` from large to small, and keeps the last before the first that fails.

    The sequence is settled before the sample is looked at, and ends at its first failure; so the chance that what is kept
    breaks the budget is at most 1 - level, however many were tested (fixed sequence testing: Angelopoulos et al. 2021,
    "Learn then test", arXiv 2110.01052, section 2.2).

    Args:
      sample: not searched on.
      best: what the search found.
    """
    passed: Claim | None = None
    looks = 0
    last: Counts | None = None
    for counts in (ranking.left, *(scaled(best, factor, ranking.left) for factor in FACTORS)):
        if counts == last:
            continue
        looks, last = looks + 1, counts
        evidence = budget.evidence(sample.pair(ranking.masks(counts)))
        if evidence["p_value"] > 1 - budget.level:
            return replace(passed, looks=looks) if passed else Claim(counts, name, False, evidence, looks)
        passed = Claim(counts, name, True, evidence, looks)
    assert passed is not None
    return passed


def on_test(pair: Pair) -> Json:
    """The drop in accuracy on the test split, with its 95 % interval."""
    n = len(pair.whole.labels)
    low, high = bounds.interval(pair.lost, pair.gained, n)
    return {
        "unpruned_accuracy": float(pair.whole.right.mean()),
        "accuracy_drop": pair.drop,
        "interval": [low, high],
        "lost": pair.lost,
        "gained": pair.gained,
        "examples": n,
        "method": "paired, score interval (Tango 1998), 95 %",
    }
