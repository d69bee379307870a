"""What a report shows of a scored prediction: a few numbers for each curve, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune.evaluation.evaluate import Evaluation
from tfp_bprune.evaluation.metrics import bin_of
from tfp_bprune.evaluation.prediction import Prediction, reach_of
from tfp_bprune.evaluation.uncertainty import risk_coverage
from tfp_bprune.types import Json

_BINS = 10
_FEWEST = 5  # examples in a bin, of fewer the accuracy is noise
_POINTS = 100  # of a curve
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LEVELS = tuple(round(0.1 * i, 1) for i in range(1, 10))


def summary_of(evaluation: Evaluation) -> Json:
    """Scores with intervals, and of a network with one output its curves.

    Returns:
      What `Evaluation.to_json` has; `calibration`, points [expected, found, examples]: of classes confidence and accuracy in ten
      equal bins, those of fewer than five examples left out, of a regression the level of an interval and how often it holds
      the target; `risk`, points [coverage, risk]: the error rate, or the root mean squared error, among the least uncertain;
      `uncertainty`: by kind of it, quantiles (5, 25, 50, 75, 95 %) where the prediction is right and where it is wrong, or of
      all.
    """
    result: Json = evaluation.to_json()
    if len(evaluation.prediction.heads) > 1:
        return result
    curves = _of_classes if evaluation.prediction.head.classifies else _of_numbers
    return result | curves(evaluation.prediction, np.asarray(evaluation.targets))


def _of_classes(said: Prediction, targets: np.ndarray) -> Json:
    right = (said.labels == targets.reshape(said.labels.shape)).ravel()
    confidence = said.confidence.ravel()
    bins = bin_of(confidence[:, None], _BINS)
    counts = np.bincount(bins, minlength=_BINS)
    means = [np.bincount(bins, values.astype(float), _BINS) / np.maximum(counts, 1) for values in (confidence, right)]
    points = [[float(c), float(a), int(n)] for c, a, n in zip(*means, counts, strict=True) if n >= _FEWEST]
    kinds = {name: said.outputs[name].ravel() for name in ("entropy", "epistemic", "aleatoric") if name in said.outputs}
    kinds = {name: values for name, values in kinds.items() if len(values) == len(right)}
    return {
        "calibration": points,
        "risk": _thinned(*risk_coverage(1 - confidence, right)),
        "uncertainty": {
            name: {"right": _quantiles(values[right]), "wrong": _quantiles(values[~right])}
            for name, values in kinds.items()
        },
    }


def _of_numbers(said: Prediction, targets: np.ndarray) -> Json:
    spread = [name for name in ("noise_std", "weights_std") if name in said.outputs]
    if not spread:
        return {}
    mean, std = said.mean.ravel(), said.std.ravel()
    error = np.abs(targets.ravel() - mean)
    points = [[level, float((error <= reach_of(level) * std).mean()), len(error)] for level in _LEVELS]
    order = np.argsort(std, kind="stable")
    risk = np.sqrt(np.cumsum(np.square(error[order])) / np.arange(1, len(error) + 1))
    return {
        "calibration": points,
        "risk": _thinned(np.arange(1, len(error) + 1) / len(error), risk),
        "uncertainty": {
            name: {"all": _quantiles(np.broadcast_to(said.outputs[name], said.mean.shape).ravel())} for name in spread
        },
    }


def _thinned(x: np.ndarray, y: np.ndarray) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(x) - 1, min(_POINTS, len(x))).astype(int))
    return [[float(a), float(b)] for a, b in zip(x[chosen], y[chosen], strict=True)]


def _quantiles(values: Any) -> list[float]:
    """Empty where there is nothing."""
    return [float(one) for one in np.quantile(values, _QUANTILES)] if len(values) else []
