"""What a prediction knows of its own errors: arrays in, numbers out."""

from __future__ import annotations

import numpy as np
from scipy import special

from tfp_bprune.types import DataError


def decompose(draws: np.ndarray) -> dict[str, np.ndarray]:
    """Splits the uncertainty of drawn class probabilities [draws, n, classes] (Depeweg et al. 2018, arXiv 1710.07283, eq. 2).

    Returns:
      `probabilities` [n, classes], the mean over draws; and [n] each, in nats: `entropy` of that mean (total uncertainty),
      `aleatoric`, the mean entropy of a draw, and `epistemic`, their difference (mutual information of class and weights).
    """
    if draws.ndim != 3 or len(draws) == 0:
        raise DataError(f"draws must have shape [draws, n, classes] with at least one draw, got {draws.shape}")
    mean = draws.mean(0)
    total, inner = entropy(mean), entropy(draws).mean(0)
    return {"probabilities": mean, "entropy": total, "aleatoric": inner, "epistemic": np.maximum(total - inner, 0.0)}


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy in nats of class probabilities [..., classes], as [...]."""
    return special.entr(probabilities).sum(-1)


def ood_auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Chance that an example from elsewhere is less certain than one of the data, ties counted half.

    Args:
      inside: uncertainties [n] of examples of the data.
      outside: uncertainties [m] of examples from elsewhere.

    Returns:
      The area under the receiver operating characteristic (Hendrycks and Gimpel 2017, arXiv 1610.02136); .5 is chance.

    Raises:
      DataError: one of them is empty.
    """
    from sklearn.metrics import roc_auc_score

    if min(len(inside), len(outside)) == 0:
        raise DataError(f"both kinds of examples are needed, got {len(inside)} inside and {len(outside)} outside")
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(labels, np.concatenate([inside, outside])))


def risk_coverage(uncertainty: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error rate among the k least uncertain predictions, for every k (Geifman and El-Yaniv 2017, arXiv 1705.08500).

    Args:
      uncertainty: [n].
      right: [n], True where the prediction is right. Equally uncertain predictions are answered or refused together in
        expectation: each counts with their mean error.

    Returns:
      coverage [n], k / n, and risk [n].

    Raises:
      DataError: nothing to rank, or not one answer for each uncertainty.
    """
    if len(uncertainty) == 0 or len(uncertainty) != len(right):
        raise DataError(
            f"{len(uncertainty)} uncertainties and {len(right)} answers: expected one of each, at least one"
        )
    _, group, size = np.unique(uncertainty, return_inverse=True, return_counts=True)
    errors = np.bincount(group, weights=1.0 - np.asarray(right, float))
    risk = risk_of_groups(errors, size)
    return np.arange(1, len(risk) + 1) / len(risk), risk


def risk_of_groups(errors: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The risk at every coverage, of groups of equal uncertainty from the surest on: their errors and sizes [groups]."""
    means = np.repeat(errors / np.maximum(size, 1), size)
    return np.cumsum(means) / np.arange(1, len(means) + 1)


def area_under_risk_coverage(uncertainty: np.ndarray, right: np.ndarray) -> float:
    """Mean risk over all coverages: small where the wrong answers are the uncertain ones."""
    return float(risk_coverage(uncertainty, right)[1].mean())
