"""How good a prediction is: arrays in, numbers out."""

from __future__ import annotations

import math

import numpy as np

from tfp_bprune.types import DataError

_BINS = 15
_Z_95 = 1.959963984540054


def classification(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of predicted class probabilities [n, classes] against labels [n].

    Returns:
      `accuracy`; `nll`, nats per example; `ece`, expected calibration error; `brier`, the sum of squares over classes.
    """
    _check(probabilities, labels)
    true = probabilities[np.arange(len(labels)), labels]
    with np.errstate(divide="ignore"):
        nll = -np.log(true)
    one_hot = np.eye(probabilities.shape[1])[labels]
    return {
        "accuracy": float(np.mean(probabilities.argmax(1) == labels)),
        "nll": float(nll.mean()),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": float(np.square(probabilities - one_hot).sum(1).mean()),
    }


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = _BINS) -> float:
    """Mean gap between confidence and accuracy over `bins` equal bins of confidence (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    right = probabilities.argmax(1) == labels
    gaps = np.bincount(bin_of(probabilities, bins), right.astype(float) - probabilities.max(1), bins)
    return float(np.abs(gaps).sum() / len(labels))


def bin_of(probabilities: np.ndarray, bins: int = _BINS) -> np.ndarray:
    """The bin of confidence of each example [n], of `bins` equal ones over [0, 1]."""
    return np.minimum((probabilities.max(1) * bins).astype(int), bins - 1)


def regression(mean: np.ndarray, std: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Scores of normal predictions (mean, std) [n] against targets [n].

    Returns:
      `rmse`, target units; `nll`, nats per example; `coverage`: how often the central 95 % interval holds the target.
    """
    _check(mean, targets)
    z = (targets - mean) / std
    return {
        "rmse": float(np.sqrt(np.square(targets - mean).mean())),
        "nll": float((0.5 * np.square(z) + np.log(std)).mean() + 0.5 * math.log(2 * math.pi)),
        "coverage": float((np.abs(z) <= _Z_95).mean()),
    }


def of_outputs(outputs: dict[str, np.ndarray], targets: np.ndarray) -> dict[str, float]:
    """Scores of an exported model's named outputs, with the mean uncertainties where there are any."""
    if "probabilities" in outputs:
        scores = classification(outputs["probabilities"], targets)
        extra: tuple[str, ...] = ("entropy", "epistemic", "aleatoric")
    else:
        variance = np.square(outputs["noise_std"]) + np.square(outputs.get("weights_std", 0.0))
        scores = regression(outputs["mean"], np.sqrt(variance), targets)
        extra = ("noise_std", "weights_std")
    return scores | {name: float(outputs[name].mean()) for name in extra if name in outputs}


def _check(predictions: np.ndarray, targets: np.ndarray) -> None:
    if len(targets) == 0:
        raise DataError("nothing to score: the split is empty, expected at least one example")
    if len(predictions) != len(targets):
        raise DataError(
            f"{len(predictions)} predictions cannot be scored against {len(targets)} targets: expected one of each"
        )
