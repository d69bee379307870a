"""What a pruned network may cost: several conditions at once, each estimated while searching and proved afterwards.

The validation split has two parts. The search looks at the first as often as it likes and is led by estimates. The second
is looked at only to prove: each condition has a p-value for "it does not hold", and since all of them must fail to be
shown, the largest p-value counts for all together (intersection-union test, Berger 1982).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.special import expit

from tfp_bprune.claims import bounds
from tfp_bprune.evaluation.metrics import bin_of, expected_calibration_error
from tfp_bprune.evaluation.uncertainty import ood_auroc
from tfp_bprune.graphs.heads import Head
from tfp_bprune.trials.trial import Answers, Numbers
from tfp_bprune.types import BpruneError, Json, if_percent

_DRAWS = 4000
_RMSE_INCREASE = 0.05
# Nats. Chosen on validation splits of four networks (784-500-500-10, mnist and fashion_mnist, two seeds each), 40 random
# allocations around 98 % sparsity: a third's soft drop correlates .93 to .97 with the drop of the other two thirds, at .3
# .92 to .96, at 1.2 .90 to .97, and the drop by sharp decisions .86 to .93.
_WIDTH = 0.5


@dataclass(frozen=True)
class Pair:
    """A pruned classifier beside the unpruned one, on the same examples.

    Attributes:
      whole, pruned: answers on examples of the data.
      strange: what the pruned one says of examples of another dataset, where a condition needs it.
    """

    whole: Answers
    pruned: Answers
    strange: Answers | None = None

    @property
    def lost(self) -> int:
        """Examples, or questions, that the unpruned network has right and the pruned one wrong."""
        return int(np.count_nonzero(self.whole.right & ~self.pruned.right))

    @property
    def gained(self) -> int:
        """The other way round."""
        return int(np.count_nonzero(~self.whole.right & self.pruned.right))

    @property
    def drop(self) -> float:
        """Accuracy lost."""
        return (self.lost - self.gained) / self.whole.labels.size

    @property
    def drops(self) -> np.ndarray:
        """Accuracy lost on each example [n], in [-1, 1]: the mean over its questions, which are not independent."""
        return self.whole.accuracy - self.pruned.accuracy

    @property
    def single(self) -> bool:
        """Whether each example has one question."""
        return self.whole.labels.ndim == 1

    @property
    def soft_drop(self) -> float:
        """Accuracy lost, with a step of some width at the decision boundary in place of a sharp one.

        Networks pruned a little differently differ in a handful of decisions, which is mostly noise; how near all others
        came to the boundary says more. It leads the search and proves nothing.
        """
        return float(np.mean(expit(self.whole.margin / _WIDTH) - expit(self.pruned.margin / _WIDTH)))


@dataclass(frozen=True)
class NumberPair:
    """A pruned regression beside the unpruned one, on the same examples."""

    whole: Numbers
    pruned: Numbers
    strange: None = None

    @property
    def increase(self) -> float:
        """By what part of itself the root mean squared error grows."""
        return self.pruned.rmse / max(self.whole.rmse, 1e-30) - 1

    def beyond(self, limit: float) -> np.ndarray:
        """Of each example [n] how far the pruned network's squared error is above the other's with an RMSE grown by `limit`."""
        return self.pruned.squares - (1 + limit) ** 2 * self.whole.squares


@dataclass(frozen=True)
class Budget:
    """What the network that a search finds must not lose.

    Attributes:
      max_accuracy_drop: accuracy that may be lost, as a fraction: 0.005 is half a point. With several labels, pixels or steps per
        example, it is that over all of them. A regression has none.
      max_ece_increase: how much the expected calibration error may grow.
      min_ood_auroc: least AUROC, in [0.5, 1], with which the predictive entropy detects examples of another dataset.
      level: confidence level of the guarantee.
      max_rmse_increase: for a regression, the fraction by which the root mean squared error may grow; 0.05 by default.

    Raises:
      BpruneError: no condition is given, or one is out of range.

    Example:
      budget = bp.Budget(max_accuracy_drop=0.005, max_ece_increase=0.02)
    """

    max_accuracy_drop: float | None = 0.005
    max_ece_increase: float | None = None
    min_ood_auroc: float | None = None
    level: float = 0.95
    max_rmse_increase: float | None = None

    def __post_init__(self) -> None:
        if self.max_accuracy_drop is self.max_ece_increase is self.min_ood_auroc is self.max_rmse_increase is None:
            raise BpruneError(
                "a budget needs a condition: give max_accuracy_drop, max_ece_increase or min_ood_auroc, or max_rmse_increase"
            )
        if self.max_rmse_increase is not None and not 0 < self.max_rmse_increase < math.inf:
            raise BpruneError(f"max_rmse_increase must be positive, got {self.max_rmse_increase}: 0.05 is 5 %")
        if self.max_accuracy_drop is not None and not 0 <= self.max_accuracy_drop < 1:
            raise BpruneError(
                f"max_accuracy_drop must be in [0, 1), got {self.max_accuracy_drop}: 0.005 is half a point"
            )
        if self.max_ece_increase is not None and not 0 <= self.max_ece_increase < 1:
            raise BpruneError(
                f"max_ece_increase must be in [0, 1), got {self.max_ece_increase}{if_percent(self.max_ece_increase)}"
            )
        if self.min_ood_auroc is not None and not 0.5 <= self.min_ood_auroc <= 1:
            raise BpruneError(
                f"min_ood_auroc must be in [0.5, 1], got {self.min_ood_auroc}{if_percent(self.min_ood_auroc)}"
            )
        if not 0.5 <= self.level < 1:
            raise BpruneError(f"level must be in [0.5, 1), got {self.level}{if_percent(self.level)}")

    def of(self, head: Head, several: bool) -> Budget:
        """The budget with the conditions that apply to an output of this kind.

        Args:
          several: whether an example has several labels, pixels or steps.

        Raises:
          BpruneError: a condition is set that does not apply to such an output.
        """
        classifies = head.classifies
        if classifies and self.max_rmse_increase is not None:
            raise BpruneError(f"max_rmse_increase is for a regression, the network is a {head.task}: leave it out")
        asked = [name for name in ("max_ece_increase", "min_ood_auroc") if getattr(self, name) is not None]
        if asked and not classifies:
            raise BpruneError(f"{asked[0]} is for classes, the network is a regression: give max_rmse_increase")
        if several and self.max_ece_increase is not None:
            raise BpruneError("max_ece_increase is for one class per example, the network has several: leave it out")
        if classifies:
            return self
        if self.max_rmse_increase is None and self.max_accuracy_drop != Budget.max_accuracy_drop:
            raise BpruneError(
                "max_accuracy_drop expects a classification, the network is a regression: give max_rmse_increase"
            )
        return replace(self, max_accuracy_drop=None, max_rmse_increase=self.max_rmse_increase or _RMSE_INCREASE)

    @property
    def others(self) -> Budget | None:
        """All conditions but that on accuracy; None if there are none."""
        if self.max_ece_increase is None and self.min_ood_auroc is None:
            return None
        return replace(self, max_accuracy_drop=None)

    @property
    def _z(self) -> float:
        return float(stats.norm.ppf(self.level))

    def excess(self, pair: Pair | NumberPair, examples: int) -> float:
        """How far the worst condition is from being met by `examples` other examples, in standard errors; at most 0 if it is met.

        These are estimates from `pair`; `evidence` decides.
        """
        return max(self._z + distance for distance in self._distances(pair, examples).values())

    def _distances(self, pair: Pair | NumberPair, examples: int) -> dict[str, float]:
        """Each condition's estimate beyond its limit, in standard errors of so many examples."""
        if isinstance(pair, NumberPair):
            beyond = pair.beyond(self.max_rmse_increase or 0.0)
            return {"rmse": float(beyond.mean() / max(beyond.std(), 1e-30)) * math.sqrt(examples)}
        found, n = {}, len(pair.whole.labels)
        if self.max_accuracy_drop is not None:
            squares = (pair.lost + pair.gained) / n if pair.single else float(np.square(pair.drops).mean())
            error = math.sqrt(max(squares, self.max_accuracy_drop, 1 / n) / examples)
            found["accuracy"] = (pair.soft_drop - self.max_accuracy_drop) / error
        if self.max_ece_increase is not None:
            wrong = 1 - pair.whole.right.mean()
            error = math.sqrt(max(wrong * (1 - wrong), 1 / n) / examples)
            radius = float(np.quantile(_ece_errors(pair, 0), (1 + self.level) / 2)) * math.sqrt(n / examples)
            found["ece"] = (_ece_increase(pair) + radius - self.max_ece_increase) / error - self._z
        if self.min_ood_auroc is not None:
            fewer = _fewer(pair) * examples / n
            needed = bounds.needed_area(self.min_ood_auroc, fewer, 1 - self.level)
            error = math.sqrt(max(needed * (1 - needed), 1 / fewer) / fewer)
            found["ood_auroc"] = (needed - auroc(pair)) / error - self._z
        return found

    def evidence(self, pair: Pair | NumberPair, seed: int = 0) -> Json:
        """Tests each condition on a sample that the search did not use.

        Returns:
          `p_value`, the largest of all; and for each condition `limit`, `estimate`, `bound` (one-sided, at `level`),
          `p_value`, `examples` and the `method`.
        """
        conditions: Json = {}
        if isinstance(pair, NumberPair):
            conditions["rmse_increase"] = self._squares(pair) | {"bound": most_increase(pair, 1 - self.level)}
            return {"p_value": conditions["rmse_increase"]["p_value"], "conditions": conditions}
        if self.max_accuracy_drop is not None:
            conditions["accuracy_drop"] = self._accuracy(pair) | {"bound": _most_lost(pair, 1 - self.level)}
        if self.max_ece_increase is not None:
            conditions["ece_increase"] = self._calibration(pair, seed)
        if self.min_ood_auroc is not None:
            conditions["ood_auroc"] = self._told_apart(pair)
        return {"p_value": max(found["p_value"] for found in conditions.values()), "conditions": conditions}

    def shown(self, pair: Pair | NumberPair, seed: int = 0) -> bool:
        """Whether such a sample shows that all conditions hold, at `level`."""
        if isinstance(pair, NumberPair):
            return bool(self._squares(pair)["p_value"] <= 1 - self.level)
        conditions = [
            (self.max_accuracy_drop, lambda: self._accuracy(pair)),
            (self.max_ece_increase, lambda: self._calibration(pair, seed)),
            (self.min_ood_auroc, lambda: self._told_apart(pair)),
        ]
        return all(found()["p_value"] <= 1 - self.level for limit, found in conditions if limit is not None)

    def _accuracy(self, pair: Pair) -> Json:
        limit, n = self.max_accuracy_drop or 0.0, len(pair.whole.labels)
        if not pair.single:
            return {
                "limit": limit,
                "estimate": pair.drop,
                "p_value": bounds.mean_p_value(pair.drops, limit),
                "lost": pair.lost,
                "gained": pair.gained,
                "examples": n,
                "method": "paired by example, bets on a bounded mean (Waudby-Smith and Ramdas 2024): conservative",
            }
        return {
            "limit": limit,
            "estimate": pair.drop,
            "p_value": bounds.p_value(pair.lost, pair.gained, n, limit),
            "lost": pair.lost,
            "gained": pair.gained,
            "examples": n,
            "method": "paired, score statistic, exact (Tango 1998; Berger and Boos 1994)",
        }

    def _squares(self, pair: NumberPair) -> Json:
        limit = self.max_rmse_increase or 0.0
        return {
            "limit": limit,
            "estimate": pair.increase,
            "p_value": bounds.skewed_p_value(pair.beyond(limit)),
            "examples": len(pair.whole.labels),
            "method": "paired squared errors, t corrected for skewness (Johnson 1978): approximate",
        }

    def _calibration(self, pair: Pair, seed: int) -> Json:
        limit, increase, errors = self.max_ece_increase or 0.0, _ece_increase(pair), _ece_errors(pair, seed)
        beyond = (1 + np.count_nonzero(errors >= limit - increase)) / (1 + len(errors))
        return {
            "limit": limit,
            "estimate": increase,
            "bound": increase + float(np.quantile(errors, (1 + self.level) / 2)),
            "p_value": min(1.0, 2 * float(beyond)),
            "examples": len(pair.whole.labels),
            "method": "sampling errors of both calibration errors added, by simulation",
        }

    def _told_apart(self, pair: Pair) -> Json:
        limit, area, fewer = self.min_ood_auroc or 0.0, auroc(pair), _fewer(pair)
        return {
            "limit": limit,
            "estimate": area,
            "bound": bounds.least_area(area, fewer, 1 - self.level),
            "p_value": bounds.area_p_value(area, fewer, limit),
            "examples": fewer,
            "method": "Chernoff's bound on a mean of independent pairs (Hoeffding 1963): conservative",
        }


def _most_lost(pair: Pair, error: float) -> float:
    if pair.single:
        return bounds.most(pair.lost, pair.gained, len(pair.whole.labels), error)
    return bounds.most_of_mean(pair.drops, error)


def most_increase(pair: NumberPair, error: float) -> float:
    """The smallest growth of the RMSE, at least 0, that the sample rules out; infinity where it rules out none below tenfold."""

    def beyond(limit: float) -> float:
        return bounds.skewed_p_value(pair.beyond(limit)) - error

    if beyond(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while beyond(high) > 0:
        if high > 10:
            return math.inf
        low, high = high, 2 * high
    return bounds.crossing(beyond, low, high)


def _ece_increase(pair: Pair) -> float:
    return _ece(pair.pruned) - _ece(pair.whole)


def _ece(answers: Answers) -> float:
    return expected_calibration_error(answers.probabilities, answers.labels)


def _ece_errors(pair: Pair, seed: int) -> np.ndarray:
    """Quantiles, in rising order, of the most by which the increase of the calibration error can be underestimated by chance.

    A calibration error is a sum over bins of |a|, a being the mean of right - confidence there, estimated as |a + d|. Chance
    makes it wider, most of all for a network that is calibrated well, as the unpruned one is, so that the increase looks
    too small, which no bootstrap mends. For the unpruned network |a + d| - |a| is at most |d|. For the pruned one |a| -
    |a + d| is at most -sign(a) d: a mean of independent terms, much smaller than a sum of |d|; signs that the sample leaves
    open matter for its tails alone, and the widest of three choices counts. A quantile of the sum of both is at most the sum
    of quantiles that each miss with half of the error.
    """
    rng = np.random.default_rng(seed)
    whole, _ = _deviations(pair.whole, rng)
    pruned, signs = _deviations(pair.pruned, rng)
    shrunk = [np.sort(-pruned @ sign) for sign in (signs, np.ones_like(signs), -np.ones_like(signs))]
    return np.sort(np.abs(whole).sum(1)) + np.max(shrunk, axis=0)


def _deviations(answers: Answers, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws [draws, bins] of how far the mean of right - confidence in each bin is off by chance, and its signs [bins].

    Examples are drawn by cells, right and wrong ones of each bin apart, so that how many fall into a bin is left to chance
    too. Each cell of a bin that was met counts one example more than it has, as does one cell for all bins that were not
    met, so that what a sample happens to lack is not taken for impossible.
    """
    gap, which = answers.right - answers.probabilities.max(1), bin_of(answers.probabilities)
    cell, cells = 2 * which + answers.right, 2 * (int(which.max()) + 1)
    counts = np.bincount(cell, minlength=cells)
    mean = np.bincount(cell, gap, cells) / np.maximum(counts, 1)
    variance = np.maximum(np.bincount(cell, np.square(gap), cells) / np.maximum(counts, 1) - np.square(mean), 0)
    other = np.arange(cells) ^ 1  # of the same bin: what one has wrong at its confidence, the other would have right
    mean = np.where(counts > 0, mean, mean[other] + np.where(np.arange(cells) % 2 == 1, 1.0, -1.0))
    weights = np.append(counts + (counts + counts[other] > 0), 1.0)
    mean, deviation = np.append(mean, 1.0), np.append(np.sqrt(variance), 0.0)
    chance, n = weights / weights.sum(), len(gap)
    drawn = rng.multinomial(n, chance, _DRAWS)
    sums = drawn * mean + np.sqrt(drawn) * deviation * rng.normal(size=drawn.shape)
    errors = (sums - n * chance * mean) / n
    bins = errors[:, :-1].reshape(_DRAWS, -1, 2).sum(2)
    signs = np.sign(np.bincount(which, gap, cells // 2))
    return np.column_stack([bins, errors[:, -1]]), np.append(signs, 1.0)


def auroc(pair: Pair) -> float:
    """Probability that the pruned network's predictive entropy is higher for an example of the other dataset."""
    return ood_auroc(*_entropies(pair))


def _fewer(pair: Pair) -> int:
    """How many independent pairs of one example of each dataset there are."""
    return min(len(part) for part in _entropies(pair))


def _entropies(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Of examples of the data and of the other dataset."""
    if pair.strange is None:
        raise BpruneError("min_ood_auroc needs examples of another dataset: name one with --ood")
    return pair.pruned.entropy, pair.strange.entropy
