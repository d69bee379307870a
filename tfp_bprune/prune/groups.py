"""Units: dense neurons and convolution filters with all that belongs to them, scored and masked as one.

A unit is a channel label of the graph: every filter that makes that channel (several where a residual addition ties
them) and every weight that reads it. Without both, batch normalization or a bias that is trained on could bring it
back; with both gone nothing that happens to them reaches the output, and `export.compact` removes the unit whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.models.channels import ChannelLabels
from tfp_bprune.models.graph import graph_of
from tfp_bprune.prune.masks import Arrays, sparsity_of
from tfp_bprune.types import Aggregate, PruneError


@dataclass(frozen=True)
class Units:
    """The units of a model.

    Attributes:
      made, read: label of each output and each input channel of every kernel, by tensor name.
      count: labels are below this.
      removable: labels that may go.
    """

    made: dict[str, np.ndarray]
    read: dict[str, np.ndarray]
    count: int
    removable: np.ndarray


def units_of(model: Any, names: Mapping[str, np.ndarray]) -> Units:
    """The units of `model`, as far as kernels in `names` make them.

    Raises:
      PruneError: the graph has nested or shared layers, so that channels cannot be followed.
    """
    graph = graph_of(model)
    if graph is None:
        raise PruneError(
            f"model {model.name!r} has nested or shared layers: units cannot be followed; prune it by weight"
        )
    labels = ChannelLabels(graph)
    steps = [step for step in labels.weighted if f"{step.layer.name}/kernel" in names]
    made = {f"{s.layer.name}/kernel": labels.of(s.output) for s in steps}
    read = {f"{s.layer.name}/kernel": labels.of(s.inputs[0]) for s in steps}
    removable = np.zeros(labels.count, bool)
    for label in made.values():
        removable[label] = True
    removable[labels.pinned] = False
    others = [s for s in labels.weighted if f"{s.layer.name}/kernel" not in names]
    for step in others:  # made or read by a layer that is not prunable: it must stay
        removable[labels.of(step.output)] = False
        removable[labels.of(step.inputs[0])] = False
    return Units(made, read, labels.count, removable)


def unit_scores(
    units: Units, locs: Arrays, scales: Arrays | None, masks: Arrays, aggregate: Aggregate = "norm"
) -> np.ndarray:
    """Score of each unit, over the incoming weights that are left; [labels].

    With "norm", the group signal-to-noise ratio ||mu|| / ||sigma||: the square root of the signal power over the noise
    power that the unit's weights pass on for inputs of equal size, so a filter with one strong weight is not judged by
    its idle ones, nor a large filter by its size. "mean" and "max" are over |mu| / sigma of single weights. Without
    scales (`magnitude`) the denominator is the root of the number of weights, or 1.

    Raises:
      PruneError: unknown aggregate.
    """
    if aggregate not in _AGGREGATES:
        raise PruneError(f"unknown aggregate {aggregate!r}: expected one of {', '.join(_AGGREGATES)}")
    return _AGGREGATES[aggregate](units, locs, scales, masks)


def _norm(units: Units, locs: Arrays, scales: Arrays | None, masks: Arrays) -> np.ndarray:
    signal, noise = np.zeros(units.count), np.zeros(units.count)
    for name, label in units.made.items():
        power = np.square(scales[name]) if scales is not None else np.ones_like(locs[name])
        np.add.at(signal, label, _per_output(np.square(locs[name]) * masks[name]))
        np.add.at(noise, label, _per_output(power * masks[name]))
    return np.sqrt(np.divide(signal, noise, out=np.where(signal > 0, np.inf, 0.0), where=noise > 0))


def _mean(units: Units, locs: Arrays, scales: Arrays | None, masks: Arrays) -> np.ndarray:
    total, number = np.zeros(units.count), np.zeros(units.count)
    for name, label in units.made.items():
        np.add.at(total, label, _per_output(_ratio(name, locs, scales) * masks[name]))
        np.add.at(number, label, _per_output(masks[name].astype(float)))
    return np.divide(total, number, out=np.zeros(units.count), where=number > 0)


def _max(units: Units, locs: Arrays, scales: Arrays | None, masks: Arrays) -> np.ndarray:
    best = np.zeros(units.count)
    for name, label in units.made.items():
        ratio = _ratio(name, locs, scales) * masks[name]
        np.maximum.at(best, label, ratio.reshape(-1, ratio.shape[-1]).max(0))
    return best


_AGGREGATES: dict[str, Callable[..., np.ndarray]] = {"norm": _norm, "mean": _mean, "max": _max}


def unit_masks(units: Units, scores: np.ndarray, sparsity: float, masks: Arrays) -> dict[str, np.ndarray]:
    """Masks without the fewest lowest-scored units that leave at least `sparsity` of all weights gone.

    Every layer keeps at least its best unit, so a sparsity near 1 may be out of reach; the report says what was
    reached.

    Args:
      scores: from `unit_scores`.
      sparsity: fraction of the weights, in [0, 1).
      masks: what is left now, by tensor name; what is gone stays gone and counts.
    """
    order = _order_of_removal(units, scores)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if sparsity_of(_without(units, order[:middle], masks)) >= sparsity:
            high = middle
        else:
            low = middle + 1
    return _without(units, order[:low], masks)


def masks_without_units_below(
    units: Units, scores: np.ndarray, threshold: float, masks: Arrays
) -> dict[str, np.ndarray]:
    """Masks without the units that score below `threshold`, except the best unit of each layer."""
    order = _order_of_removal(units, scores)
    return _without(units, order[scores[order] < threshold], masks)


def _order_of_removal(units: Units, scores: np.ndarray) -> np.ndarray:
    removable = units.removable.copy()
    for label in units.made.values():
        if removable[label].all():
            removable[label[np.argmax(scores[label])]] = False
    candidates = np.flatnonzero(removable)
    return candidates[np.argsort(scores[candidates], kind="stable")]


def _without(units: Units, gone: np.ndarray, masks: Arrays) -> dict[str, np.ndarray]:
    stays = np.ones(units.count, bool)
    stays[gone] = False
    kept = dict(masks)
    for name in units.made:
        kept[name] = masks[name] & stays[units.made[name]] & stays[units.read[name]][:, None]
    return kept


def _per_output(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1]).sum(0, dtype=np.float64)


def _ratio(name: str, locs: Arrays, scales: Arrays | None) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(locs[name]) / (scales[name] if scales is not None else 1.0)
    return np.nan_to_num(ratio, nan=0.0, posinf=float(np.finfo(np.float32).max))
