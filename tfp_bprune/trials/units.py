"""In which order whole units of each layer go; a pruned network is then a count of units for each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfp_bprune.pruning import groups
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.pruning.select import prunable_weights, unit_ranking
from tfp_bprune.trials.ranking import Counts, Kernels, Ranking, by_score
from tfp_bprune.types import Criterion, Granularity, PruneError

Masks = dict[str, np.ndarray]


class UnitRanking(Ranking):
    """Units by rank, by the tensor that makes them; those that a residual addition ties, by the first of those.

    Args:
      units: of the network.
      before: what is left of each kernel.
      names: the kernels in the order of an evaluator's.
      scores: of each unit of each layer; minus infinity for what is gone already.
      labels: which units of `units` those are.
    """

    what = "units"

    def __init__(
        self, units: groups.Units, before: Masks, scores: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
    ) -> None:
        super().__init__(scores)
        self._units, self._before, self._labels = units, before, dict(labels)
        self._reading = _owners(units, before, np.concatenate(list(self._labels.values())))

    def with_scores(self, scores: Mapping[str, np.ndarray]) -> Ranking:
        """As in `Ranking`."""
        return UnitRanking(self._units, self._before, scores, self._labels)

    def masks(self, counts: Counts) -> Masks:
        """The masks that keep the first `counts` units of each layer."""
        return groups.without(self._units, self._gone(super().masks(counts)), self._before)

    def globally(self, total: int) -> Counts:
        """As in `Ranking`; every layer keeps a unit."""
        return {name: max(count, min(1, self.left[name])) for name, count in super().globally(total).items()}

    def held(self, kept: Mapping[str, np.ndarray]) -> Masks:
        """Masks under which nothing reads the units that are not kept, and each still says how it answers."""
        return groups.without(self._units, self._gone(kept), self._before, self._units.read)

    def gathered(self, pulls: np.ndarray) -> np.ndarray:
        """Of each unit, the sum over the weights that read it."""
        count = sum(map(len, self._labels.values()))
        return np.bincount(self._reading, pulls, count + 1)[:count].astype(np.float32)

    def kernels(self, counts: Counts) -> Kernels:
        """What is left of each kernel once the units are gone from it."""
        sides: dict[str, set[int]] = {name: set() for name in self._before}
        for side in (*self._units.made, *self._units.read, *self._units.kept):
            sides[side.tensor].add(side.axis)
        return {name: _left(mask, sides[name]) for name, mask in self.masks(counts).items()}

    def _gone(self, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.concatenate([labels[~kept[name]] for name, labels in self._labels.items()])


def ranked(model: Any, criterion: Criterion, granularity: Granularity) -> Ranking:
    """The order in which `prune` takes weights, or the units of each layer."""
    return units_by_score(model, criterion) if granularity == "unit" else by_score(model, criterion)


def units_by_score(model: Any, criterion: Criterion) -> UnitRanking:
    """The order in which `prune` takes the units of each layer.

    Raises:
      PruneError: channels cannot be followed, or no unit can go.
    """
    weights = prunable_weights(model, criterion)
    ranking = unit_ranking(model, weights, Scoring(criterion, granularity="unit"))
    before = {name: w.mask for name, w in weights.items()}
    labels = _by_layer(ranking.units)
    if not labels:
        raise PruneError(f"no unit of model {model.name!r} can go: search it by weight")
    scores = {name: ranking.scores[mine] for name, mine in labels.items()}
    if CRITERIA[criterion].ends_at is not None:  # in the same order, but above 0, as `refined` takes logarithms
        scores = {name: np.logaddexp(0, s) for name, s in scores.items()}
    alive = _alive(ranking.units, before)
    scores = {name: np.where(alive[labels[name]], s, -np.inf) for name, s in scores.items()}
    return UnitRanking(ranking.units, before, scores, labels)


def _by_layer(units: groups.Units) -> dict[str, np.ndarray]:
    """The units that may go, each by the first tensor that makes it."""
    found, taken = {}, np.zeros(units.count, bool)
    for side in units.made:
        mine = np.unique(side.labels)
        mine = mine[units.removable[mine] & ~taken[mine]]
        taken[mine] = True
        if len(mine):
            found[side.tensor] = mine
    return found


def _alive(units: groups.Units, before: Masks) -> np.ndarray:
    """Which units have weights left on each of their sides."""
    alive = np.ones(units.count, bool)
    for sides in (units.made, units.read, units.kept):
        has, left = np.zeros(units.count, bool), np.zeros(units.count, bool)
        for side in sides:
            has[side.labels] = True
            np.logical_or.at(left, side.labels, groups.left_by_channel(before[side.tensor], side.axis))
        alive &= left | ~has
    return alive


def _owners(units: groups.Units, before: Masks, labels: np.ndarray) -> np.ndarray:
    """Of each weight of all kernels, one after the other, the place in `labels` of the unit that it reads; of others one
    beyond the last."""
    place = np.full(units.count, len(labels), np.int32)
    place[labels] = np.arange(len(labels))
    read = {side.tensor: side for side in units.read}
    found = []
    for name, mask in before.items():
        owner = np.full(mask.shape, len(labels), np.int32)
        if name in read:
            sides = [1] * mask.ndim
            sides[read[name].axis] = -1
            owner = np.broadcast_to(place[read[name].labels].reshape(sides), mask.shape)
        found.append(owner.ravel())
    return np.concatenate(found)


def _left(mask: np.ndarray, axes: set[int]) -> tuple[tuple[int, ...], int]:
    """The shape of a kernel without the channels of which nothing is left, and how many of its weights are."""
    shape = list(mask.shape)
    for axis in axes:
        shape[axis] = int(np.count_nonzero(groups.left_by_channel(mask, axis)))
    return tuple(shape), int(np.count_nonzero(mask))
