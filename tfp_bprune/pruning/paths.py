"""Masks that leave as much as was asked for once the weights that then do nothing are gone too.

Removing a few live weights can leave many others on no path from input to output. They count as removed: the ranking
goes on only as far as both together make the sparsity that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfp_bprune.pruning import groups
from tfp_bprune.pruning.dead import Paths
from tfp_bprune.pruning.masks import Arrays, masks_at_sparsity
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.pruning.select import prunable_weights, scored, unit_ranking
from tfp_bprune.types import Scope

Masks = dict[str, np.ndarray]
Live = Callable[[Arrays], Masks]
TOLERANCE = 5e-4  # of a sparsity; nearer than this no search goes
_ROUNDS = 4


def live_masks(model: Any, sparsity: float, scoring: Scoring) -> Masks:
    """What to keep of `model` so that it has `sparsity` after `remove_dead`.

    Of single weights as close as the network's paths allow and not above, except where below is farther; of units the
    fewest that make at least `sparsity`. Where channels cannot be followed nothing is dead, and it is as in `prune`.
    """
    scoring = scoring.of(model)
    weights = prunable_weights(model, scoring.by, scoring.include_bias)
    before = {name: w.mask for name, w in weights.items()}
    paths = Paths.of(model)
    live: Live = paths.live if paths else dict
    if scoring.granularity == "unit":
        ranking = unit_ranking(model, weights, scoring)
        return groups.unit_masks(ranking.units, ranking.ranks, sparsity, before, live)
    scores = {name: scored(name, w, scoring.by) for name, w in weights.items()}
    return masks_at_live_sparsity(scores, sparsity, scoring.scope, before, live)


def masks_at_live_sparsity(scores: Arrays, sparsity: float, scope: Scope, before: Arrays, live: Live) -> Masks:
    """As `masks_at_sparsity`, with what is not `live` under the masks counted as gone.

    Args:
      live: gives what is live under some masks; fewer weights never make more live.
    """
    size = sum(s.size for s in scores.values())
    wanted, slack = round((1 - sparsity) * size), TOLERANCE * size
    masks = masks_at_sparsity(scores, sparsity, scope, before)
    if _count(live(before)) <= wanted:
        return dict(before)
    if _count(live(masks)) >= wanted - slack:
        return masks
    nearest = masks
    for _ in range(_ROUNDS):
        order = _order(scores, scope, before)
        under, over = _around(order, before, live, wanted)
        under = _thinned(under, live(under), scores, order, wanted)
        nearest = min((under, over, nearest), key=lambda masks: abs(_count(live(masks)) - wanted))
        if abs(_count(live(nearest)) - wanted) <= slack or _count(live(under)) >= _count(live(before)):
            break
        before = live(under)
    return nearest


def _around(order: np.ndarray, before: Arrays, live: Live, wanted: int) -> tuple[Masks, Masks]:
    """Masks without the most weights that leave at least `wanted` of them live, and without one more."""
    low, high = 0, len(order) - wanted
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _count(live(_without(before, order[:middle]))) >= wanted else (low, middle)
    return _without(before, order[:low]), _without(before, order[:high])


def _thinned(masks: Masks, live: Masks, scores: Arrays, order: np.ndarray, wanted: int) -> Masks:
    """Without further weights, the lowest first, until `wanted` are left; never the last that makes or reads a unit,
    so that none becomes dead by it."""
    spare = {name: live[name] & ~_best_of_units(scores[name], live[name]) for name in scores}
    candidates = order[_flat(spare)[order]]
    return _without(masks, candidates[: max(0, _count(live) - wanted)])


def _best_of_units(scores: np.ndarray, live: np.ndarray) -> np.ndarray:
    """The best live weight of each output and of each input channel of a kernel [..., in, out]."""
    if scores.ndim < 2:
        return np.ones(scores.shape, bool)  # a bias
    ranked, best = np.where(live, scores, -np.inf), np.zeros(scores.shape, bool)
    for axis in (-1, -2):
        by_channel = np.moveaxis(ranked, axis, 0).reshape(scores.shape[axis], -1)
        view = np.zeros(by_channel.shape, bool)
        view[np.arange(len(view)), by_channel.argmax(1)] = True
        moved = np.moveaxis(ranked, axis, 0).shape
        best |= np.moveaxis(view.reshape(moved), 0, axis)
    return best


def _order(scores: Arrays, scope: Scope, before: Arrays) -> np.ndarray:
    """Weights of all tensors, flat, in the order in which they go."""
    ranked = {name: np.where(before[name], s, -np.inf).ravel() for name, s in scores.items()}
    if scope == "layer":  # by the part of its tensor that goes before
        ranked = {name: np.argsort(np.argsort(s, kind="stable"), kind="stable") / s.size for name, s in ranked.items()}
    return np.argsort(np.concatenate(list(ranked.values())), kind="stable")


def _without(masks: Mapping[str, np.ndarray], gone: np.ndarray) -> Masks:
    kept = _flat(masks)
    kept[gone] = False
    ends = np.cumsum([m.size for m in masks.values()])[:-1]
    return {name: part.reshape(m.shape) for (name, m), part in zip(masks.items(), np.split(kept, ends), strict=True)}


def _flat(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([m.ravel() for m in masks.values()])


def _count(masks: Mapping[str, np.ndarray]) -> int:
    return sum(int(np.count_nonzero(m)) for m in masks.values())
