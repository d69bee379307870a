"""From scores to masks: pure functions on arrays. True in a mask means that the weight stays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tfp_bprune.types import PruneError, Scope, check_number, if_percent

Arrays = Mapping[str, np.ndarray]


def masks_at_sparsity(
    scores: Arrays, sparsity: float, scope: Scope = "global", before: Arrays | None = None
) -> dict[str, np.ndarray]:
    """Keeps all but the lowest-scored fraction `sparsity` of the weights.

    Exactly round(sparsity * n) weights are gone then, those gone before among them; more if more were gone before.
    Where scores tie at the cut, the ones that come first (by tensor, then row by row) go first, so the result never
    depends on chance.

    Args:
      scores: score of each weight by tensor name.
      sparsity: in [0, 1).
      scope: "global" ranks all tensors together, "layer" each by itself.
      before: masks of an earlier pruning; what it removed stays removed and counts.

    Raises:
      PruneError: sparsity is not in [0, 1), or a score is NaN.
    """
    check_sparsity(sparsity)
    check_scope(scope)
    scores = _ranked(scores, before)
    if scope == "layer":
        return {name: _keep_highest(s.ravel(), sparsity).reshape(s.shape) for name, s in scores.items()}
    kept = _keep_highest(np.concatenate([s.ravel() for s in scores.values()]), sparsity)
    ends = np.cumsum([s.size for s in scores.values()])
    return {
        name: part.reshape(s.shape) for (name, s), part in zip(scores.items(), np.split(kept, ends[:-1]), strict=True)
    }


def check_scope(scope: str) -> None:
    """Refuses an unknown scope.

    Raises:
      PruneError: it is neither "global" nor "layer".
    """
    if scope not in ("global", "layer"):
        raise PruneError(f"scope must be 'global' or 'layer', got {scope!r}")


def check_sparsity(sparsity: float) -> None:
    """Refuses a sparsity that would leave nothing, or is none.

    Raises:
      PruneError: it is not in [0, 1), or no number.
    """
    check_number("sparsity", sparsity, PruneError)
    if not 0 <= sparsity < 1:
        raise PruneError(f"sparsity must be in [0, 1), got {sparsity}{if_percent(sparsity)}")


def check_threshold(threshold: float, least: float = 0.0) -> None:
    """Refuses a threshold below `least`.

    Raises:
      PruneError: it is, or is not a number.
    """
    check_number("threshold", threshold, PruneError)
    if not threshold >= least:
        raise PruneError(f"threshold must be {'a number' if least < 0 else f'at least {least:g}'}, got {threshold}")


def masks_at_threshold(
    scores: Arrays, threshold: float, before: Arrays | None = None, least: float = 0.0
) -> dict[str, np.ndarray]:
    """Keeps the weights whose score is at least `threshold`; arguments as in `masks_at_sparsity`.

    Args:
      least: no threshold below this has a meaning.

    Raises:
      PruneError: the threshold is below `least` or not a number, or a score is NaN.
    """
    check_threshold(threshold, least)
    return {name: s >= threshold for name, s in _ranked(scores, before).items()}


def ties(scores: Arrays, masks: Arrays, before: Arrays | None = None, scope: Scope = "global") -> int:
    """How many kept weights have the same score as the best one that went: there the cut was by position."""
    scores = _ranked(scores, before)
    groups = [[name] for name in scores] if scope == "layer" else [list(scores)]
    return sum(_ties_in([scores[name] for name in group], [masks[name] for name in group]) for group in groups)


def _ties_in(scores: list[np.ndarray], masks: list[np.ndarray]) -> int:
    gone = np.concatenate([s[~m] for s, m in zip(scores, masks, strict=True)])
    gone = gone[np.isfinite(gone)]
    return (
        sum(int(np.count_nonzero(s[m] == gone.max())) for s, m in zip(scores, masks, strict=True)) if gone.size else 0
    )


def sparsity_of(masks: Arrays, costs: Mapping[str, int] | None = None) -> float:
    """Fraction of weights that are gone, counted; or of their costs, of a weight by tensor name."""
    each = costs or dict.fromkeys(masks, 1)
    left = sum(each[name] * int(np.count_nonzero(m)) for name, m in masks.items())
    return 1 - left / sum(each[name] * m.size for name, m in masks.items())


def _ranked(scores: Arrays, before: Arrays | None) -> dict[str, np.ndarray]:
    """The scores, checked, with those of weights already gone at minus infinity."""
    for name, s in scores.items():
        if np.isnan(s).any():
            raise PruneError(
                f"{name} has {np.count_nonzero(np.isnan(s))} NaN scores of {s.size}: its weights are not numbers; train it anew"
            )
    return {name: np.where(before[name], s, -np.inf) if before else np.asarray(s) for name, s in scores.items()}


def _keep_highest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    kept = scores > -np.inf  # what an earlier pruning removed stays removed, however little is asked for now
    kept[np.argsort(scores, kind="stable")[: round(sparsity * scores.size)]] = False
    return kept
