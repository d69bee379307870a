"""Confidence intervals of scores: exact for parts of independent examples, by bootstrap for all others.

The bootstrap draws examples with replacement, and with an example all its labels (Efron and Tibshirani 1993, chapter 13). Of
the ECE, which is biased upward, and more so in a resample, the interval is the basic one, 2 e - q, above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from tfp_bprune.evaluation.metrics import BINS, bin_of, of_two
from tfp_bprune.evaluation.uncertainty import risk_of_groups

Interval = tuple[float, float]
_WORK = 2 * 10**8  # examples times resamples
_FEWEST, _MOST = 200, 1000


@dataclass(frozen=True)
class Means:
    """Scores that are means over examples.

    Attributes:
      values: of each example [n], by the score's name.
      exact: names of those that are 0 or 1 for each example, independently of all others.
      root: names of those whose root is the score.
    """

    values: dict[str, np.ndarray]
    exact: tuple[str, ...] = ()
    root: tuple[str, ...] = ()

    def scores(self, weights: np.ndarray) -> dict[str, float]:
        """With each example counted `weights` [n] times."""
        found = {name: float(weights @ value / weights.sum()) for name, value in self.values.items()}
        return {name: value**0.5 if name in self.root else value for name, value in found.items()}


@dataclass(frozen=True)
class Calibration:
    """The ECE of labels [n, labels], each with its confidence and whether it is right.

    Attributes:
      pooled: whether all labels are of one kind, as those of positions are; else it is the mean over kinds.
    """

    confidence: np.ndarray
    right: np.ndarray
    pooled: bool

    @cached_property
    def _bins(self) -> np.ndarray:
        bins = bin_of(self.confidence.reshape(-1, 1)).reshape(self.confidence.shape)
        return (bins if self.pooled else bins + BINS * np.arange(bins.shape[1])).ravel()

    def score(self, weights: np.ndarray) -> float:
        """Each example counted `weights` [n] times."""
        gaps = (weights[:, None] * (self.right - self.confidence)).ravel()
        return float(np.abs(np.bincount(self._bins, gaps)).sum() / (weights.sum() * self.confidence.shape[1]))


@dataclass(frozen=True)
class Ranking:
    """The area under risk and coverage of answers by their uncertainty, [n x positions] each."""

    uncertainty: np.ndarray
    right: np.ndarray

    @cached_property
    def _group(self) -> np.ndarray:
        return np.unique(self.uncertainty, return_inverse=True)[1]

    def score(self, weights: np.ndarray) -> float:
        """Each example counted `weights` [n] times."""
        weights = np.repeat(weights, len(self.right) // len(weights))
        errors = np.bincount(self._group, weights * (1.0 - self.right))
        return float(risk_of_groups(errors, np.bincount(self._group, weights).astype(int)).mean())


@dataclass(frozen=True)
class Scored:
    """All that the scores of one output follow from."""

    means: Means
    calibration: Calibration | None = None
    ranking: Ranking | None = None

    def scores(self, weights: np.ndarray) -> dict[str, float]:
        """All scores, each example counted `weights` [n] times."""
        found = self.means.scores(weights)
        if self.calibration is not None:
            found["ece"] = self.calibration.score(weights)
        if self.ranking is not None:
            found["aurc"] = self.ranking.score(weights)
        return found


def intervals(scored: Scored, level: float, seed: int = 0) -> tuple[dict[str, float], dict[str, Interval]]:
    """Scores by name, and their intervals, which hold the population's with probability `level`."""
    n = len(next(iter(scored.means.values.values())))
    estimates = scored.scores(np.ones(n))
    rng, resamples = np.random.default_rng(seed), int(np.clip(_WORK // n, _FEWEST, _MOST))
    drawn = [scored.scores(np.bincount(rng.integers(0, n, n), minlength=n).astype(float)) for _ in range(resamples)]
    tails = (1 - level) / 2, (1 + level) / 2
    found = {name: _quantiles([one[name] for one in drawn], tails) for name in estimates}
    found |= {name: _exact(scored.means.values[name], level) for name in scored.means.exact}
    if "ece" in found:
        low, high = found["ece"]
        found["ece"] = (max(0.0, 2 * estimates["ece"] - high), min(1.0, max(0.0, 2 * estimates["ece"] - low)))
    return estimates, found


def _quantiles(values: list[float], tails: tuple[float, float]) -> Interval:
    # Of infinite values, such as the logarithm of a probability of 0, none in between can be interpolated.
    low, high = np.quantile(values, tails, method="nearest")
    return float(low), float(high)


def _exact(values: np.ndarray, level: float) -> Interval:
    """Of Clopper and Pearson 1934."""
    found = stats.binomtest(int(values.sum()), len(values)).proportion_ci(level, "exact")
    return float(found.low), float(found.high)


def of_classes(probabilities: np.ndarray, labels: np.ndarray, said: Mapping[str, np.ndarray]) -> Scored:
    """From probabilities [n, ..., classes], labels [n, ...] and the uncertainties [n, ...] of which there are means."""
    n = len(labels)
    flat, y = probabilities.reshape(-1, probabilities.shape[-1]), labels.reshape(-1)
    right = (flat.argmax(1) == y).astype(float)
    with np.errstate(divide="ignore"):
        nll = -np.log(flat[np.arange(len(y)), y].astype(float))
    brier = np.square(flat).sum(1) - 2 * flat[np.arange(len(y)), y] + 1
    values = {"accuracy": right, "nll": nll, "brier": brier, **{key: one.reshape(-1) for key, one in said.items()}}
    means = Means({key: one.reshape(n, -1).mean(1) for key, one in values.items()}, ("accuracy",) * (len(y) == n))
    calibration = Calibration(flat.max(1).reshape(n, -1), right.reshape(n, -1), pooled=True)
    return Scored(means, calibration, Ranking(said["entropy"].reshape(-1), right))


def of_labels(probabilities: np.ndarray, labels: np.ndarray, said: Mapping[str, np.ndarray]) -> Scored:
    """From probabilities [n, labels] of several labels, zeros and ones [n, labels], and uncertainties."""
    right = ((probabilities > 0.5) == (labels > 0.5)).astype(float)
    true = np.where(labels > 0.5, probabilities, 1 - probabilities.astype(float))
    with np.errstate(divide="ignore"):
        nll = -np.log(true).sum(1)
    values = {"accuracy": right.mean(1), "exact_match": right.all(1).astype(float), "nll": nll}
    values["brier"] = 2 * np.square(1 - true).mean(1)
    values |= {key: one.reshape(len(one), -1).mean(1) for key, one in said.items()}
    both = of_two(probabilities)
    calibration = Calibration(both.max(-1), (both.argmax(-1) == labels).astype(float), pooled=False)
    return Scored(Means(values, ("exact_match",)), calibration)


def of_numbers(
    mean: np.ndarray, std: np.ndarray | None, targets: np.ndarray, said: Mapping[str, np.ndarray], reach: float
) -> Scored:
    """From means, deviations and targets [n, ...]; `reach` deviations from the mean are the central interval."""
    error = (targets.astype(float) - mean).reshape(len(mean), -1)
    values, exact = {"rmse": np.square(error).mean(1)}, ()
    if std is not None:
        z = error / std.reshape(error.shape)
        nats = 0.5 * np.square(z) + np.log(std.reshape(error.shape)) + 0.5 * np.log(2 * np.pi)
        values |= {"nll": nats.sum(1), "coverage": (np.abs(z) <= reach).mean(1)}
        exact = ("coverage",) * (error.shape[1] == 1)
    values |= {key: one.reshape(len(one), -1).mean(1) for key, one in said.items()}
    return Scored(Means(values, exact, ("rmse",)))
