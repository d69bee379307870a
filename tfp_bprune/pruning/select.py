"""What to remove from a model: its prunable weights, their scores, and the masks that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.graphs.convert import adopt, refuse_equal_names, weighted_layers
from tfp_bprune.layers import Variational, Weights, weights_of
from tfp_bprune.pruning import groups, masks
from tfp_bprune.pruning.report import LayerSparsity, Report
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.types import Aggregate, Criterion, Granularity, Json, PruneError, Scope


@dataclass(frozen=True)
class Selection:
    """Masks by tensor name, True for what stays, and the report on them."""

    masks: dict[str, np.ndarray]
    report: Report


def choose_masks(
    model: Any, scoring: Scoring, sparsity: float | None = None, threshold: float | None = None
) -> Selection:
    """Decides what to remove; sparsity, threshold and errors as in `prune`."""
    if (sparsity is None) == (threshold is None):
        raise PruneError(f"give either sparsity or threshold, got sparsity={sparsity} and threshold={threshold}")
    scoring = scoring.of(model)
    weights = prunable_weights(model, scoring.by, scoring.include_bias)
    scores = {name: scored(name, w, scoring.by) for name, w in weights.items()}
    before = {name: w.mask for name, w in weights.items()}
    pinned: list[str] = []
    if scoring.granularity == "unit":
        chosen, lowest, ties, pinned = _choose_units(model, weights, sparsity, threshold, scoring)
    else:
        chosen = _choose_weights(scores, before, sparsity, threshold, scoring.scope, CRITERIA[scoring.by].least)
        kept = np.concatenate([scores[name][chosen[name]] for name in chosen])
        lowest, ties = (
            float(kept.min()) if kept.size else float("inf"),
            masks.ties(scores, chosen, before, scoring.scope),
        )
    costs = groups.costs_of(model, chosen, "multiplications")
    layers = [
        LayerSparsity(name, m.size, m.size - int(np.count_nonzero(m)), costs.get(name)) for name, m in chosen.items()
    ]
    requested: Json = {"sparsity": sparsity} if sparsity is not None else {"threshold": threshold}
    if scoring.counts != "weights":
        requested |= {"counts": scoring.counts}
    asked = (scoring.by, scoring.scope, scoring.granularity)
    return Selection(chosen, Report(*asked, requested, lowest, ties, layers, pinned))


def _choose_weights(
    scores: masks.Arrays,
    before: masks.Arrays,
    sparsity: float | None,
    threshold: float | None,
    scope: Scope,
    least: float,
) -> dict[str, np.ndarray]:
    if sparsity is not None:
        return masks.masks_at_sparsity(scores, sparsity, scope, before)
    return masks.masks_at_threshold(scores, threshold or 0.0, before, least)


def _choose_units(
    model: Any,
    weights: dict[str, Weights],
    sparsity: float | None,
    threshold: float | None,
    scoring: Scoring,
) -> tuple[dict[str, np.ndarray], float, int, list[str]]:
    """Masks, the lowest score of a unit that stays, how many that stay have the highest that went (0 by layer), and the tensors
    of which no unit can go."""
    if sparsity is not None:
        masks.check_sparsity(sparsity)
    else:
        masks.check_threshold(threshold or 0.0, CRITERIA[scoring.by].least)
    ranking, before = unit_ranking(model, weights, scoring), {n: w.mask for n, w in weights.items()}
    units, scores = ranking.units, ranking.scores
    if sparsity is not None:
        chosen = groups.unit_masks(units, ranking.ranks, sparsity, before)
    else:
        chosen = groups.masks_without_units_below(units, scores, threshold or 0.0, before)
    stays = np.zeros(units.count, bool)
    for side in units.layers:
        stays[side.labels[groups.left_by_channel(chosen[side.tensor], side.axis)]] = True
    kept, gone = scores[stays & units.removable], scores[~stays & units.removable]
    tied = int(np.count_nonzero(kept == gone.max())) if gone.size and scoring.scope == "global" else 0
    return chosen, float(kept.min()) if kept.size else float("inf"), tied, groups.pinned(units)


@dataclass(frozen=True)
class UnitRanking:
    """The units of a model, their scores, and what they go by: these, or their ranks in each layer; both [labels]."""

    units: groups.Units
    scores: np.ndarray
    ranks: np.ndarray


def unit_ranking(model: Any, weights: dict[str, Weights], scoring: Scoring) -> UnitRanking:
    """Ranks the units that the tensors `weights` make."""
    locs, left = {n: w.loc for n, w in weights.items()}, {n: w.mask for n, w in weights.items()}
    units = groups.units_of(model, locs, scoring.inputs, scoring.counts)
    if scoring.by in ("snr", "magnitude"):  # whose scores a unit's aggregate takes apart
        scales = {n: w.scale for n, w in weights.items() if w.scale is not None} if scoring.by == "snr" else None
        scores = groups.unit_scores(units, locs, scales, left, scoring.aggregate)
    else:
        worth = {n: scored(n, w, scoring.by) for n, w in weights.items()}
        scores = _unit_scores(units, worth, left, scoring)
    return UnitRanking(units, scores, scores if scoring.scope == "global" else groups.ranks_by_layer(units, scores))


def _unit_scores(units: groups.Units, worth: masks.Arrays, left: masks.Arrays, scoring: Scoring) -> np.ndarray:
    """Of each unit, from a criterion's scores of its weights; [labels]."""
    if CRITERIA[scoring.by].of_groups:
        return groups.unit_bests(units, worth, left)
    if CRITERIA[scoring.by].ends_at is not None:
        return groups.unit_means(units, worth, left)
    return groups.unit_scores(units, worth, None, left, scoring.aggregate)


def prunable_weights(model: Any, criterion: Criterion = "snr", include_bias: bool = False) -> dict[str, Weights]:
    """The tensors of `model` that `prune` ranks, by name (`layer/kernel`, `layer/bias`).

    Raises:
      PruneError: there are none.
      BpruneError: several layers have one name.
    """
    refuse_equal_names(model)
    found: dict[str, Weights] = {}
    for layer in weighted_layers(model):
        for name, weights in weights_of(layer).items():
            uncertain = weights.uncertain and (name != "bias" or include_bias)
            if uncertain or (CRITERIA[criterion].of_certain and name != "bias" and not isinstance(layer, Variational)):
                found[f"{layer.name}/{name}"] = weights
    if not found:
        missing = "prior" if CRITERIA[criterion].ends_at is not None else "sigma"
        hint = f"; plain Keras layers have no {missing}, use criterion='magnitude'"
        hint = "" if CRITERIA[criterion].of_certain else hint
        raise PruneError(f"model {model.name!r} has nothing to prune: expected Bayesian layers{hint}")
    return found


def scores_of(
    model: Any,
    *,
    criterion: Criterion | None = None,
    include_bias: bool = False,
    granularity: Granularity = "weight",
    aggregate: Aggregate = "max",
) -> dict[str, np.ndarray]:
    """What `prune` ranks by: the score of every prunable weight, by tensor name; 0 for weights that are gone.

    Args:
      model: as for `prune`; raw tfp.layers are scored as this package's would be.
      criterion, aggregate: as in `prune`.
      include_bias: whether Bayesian biases are prunable too.
      granularity: "weight", or "unit": then of each tensor the score of every unit that it makes, those that cannot go, as
        outputs, among them. `units_table` says more of each.

    Raises:
      PruneError: unknown criterion, nothing to prune, or a weight is NaN or infinite; of units also channels that cannot be
        followed.
    """
    model = adopt(model)
    scoring = Scoring(criterion, granularity=granularity, aggregate=aggregate, include_bias=include_bias).of(model)
    weights = prunable_weights(model, scoring.by, include_bias)
    if granularity == "unit":
        ranking = unit_ranking(model, weights, scoring)
        return {side.tensor: ranking.scores[side.labels] for side in ranking.units.made}
    return {name: np.where(w.mask, scored(name, w, scoring.by), 0.0) for name, w in weights.items()}


def scored(name: str, weights: Weights, criterion: Criterion) -> np.ndarray:
    """The scores of one tensor.

    Raises:
      PruneError: a weight is NaN or infinite.
    """
    for part in (weights.loc, weights.scale):
        if part is not None and not np.isfinite(part).all():
            count = np.count_nonzero(~np.isfinite(part))
            raise PruneError(
                f"{name} has {count} weights of {part.size} that are NaN or infinite: expected a trained model; train it anew"
            )
    return np.where(weights.mask, CRITERIA[criterion].score(weights), 0.0)
