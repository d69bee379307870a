"""Units: dense neurons and convolution filters with all that belongs to them, scored and masked as one.

A unit is a channel label of the graph: every filter that makes that channel (several where a residual addition ties
them) and every weight that reads it. Without both, batch normalization or a bias that is trained on could bring it
back; with both gone nothing that happens to them reaches the output, and `graphs.compact` removes the unit whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tfp_bprune.graphs.channels import ChannelLabels
from tfp_bprune.graphs.graph import Step, UnfollowedError, followed, graph_of
from tfp_bprune.graphs.products import positions
from tfp_bprune.layers import kind_of
from tfp_bprune.layers.kind import along
from tfp_bprune.pruning.masks import Arrays, sparsity_of
from tfp_bprune.types import Aggregate, Counts, PruneError


@dataclass(frozen=True)
class Side:
    """The weights of one tensor as belonging to units.

    Attributes:
      tensor: its name.
      axis: the axis of the tensor that runs over channels.
      labels: the unit of each entry of that axis.
    """

    tensor: str
    axis: int
    labels: np.ndarray


@dataclass(frozen=True)
class Units:
    """The units of a model.

    Attributes:
      made, read, kept: the weights that make each unit, those that read it, and those that each channel has to itself on
        its way, as in a depthwise convolution.
      count: labels are below this.
      removable: labels that may go.
      inputs: the weights that read each input of a layer that is no unit by itself, where these are asked for.
      costs: what a weight of a tensor counts, by its name: 1, or how often an example multiplies it.
    """

    made: list[Side]
    read: list[Side]
    kept: list[Side]
    count: int
    removable: np.ndarray
    inputs: list[Side] = field(default_factory=list)
    costs: dict[str, int] = field(default_factory=dict)

    @property
    def sides(self) -> tuple[Side, ...]:
        """All of them."""
        return (*self.made, *self.read, *self.kept, *self.inputs)

    @property
    def layers(self) -> list[Side]:
        """The sides whose labels are in competition: of each layer's units, and of its inputs."""
        return [*self.made, *self.inputs]


def units_of(model: Any, names: Mapping[str, np.ndarray], inputs: bool = False, counts: Counts = "weights") -> Units:
    """The units of `model`, as far as kernels in `names` make them.

    Args:
      names: arrays of the kernels' shapes by tensor name.
      inputs: whether what a layer reads counts too where it is no unit by itself: a feature of the model's input, or one of
        the positions of a filter that a dense layer reads flattened. Its weights are those that read it.
      counts: what the weights are counted by.

    Raises:
      PruneError: channels cannot be followed (`graphs.graph.followed`).
    """
    try:
        graph = followed(model)
    except UnfollowedError as error:
        raise PruneError(f"{error}, or to prune by weight") from error
    labels = ChannelLabels(graph)
    steps = (*labels.weighted, *labels.kept)
    layers = {id(step.layer): step for step in steps}.values()  # whose channels are the same in every call
    made, read, kept = (
        [side for step in layers for side in _sides(step, labels, which, names)] for which in ("made", "read", "kept")
    )
    removable = np.zeros(labels.count, bool)
    for side in made:
        removable[side.labels] = True
    removable[labels.pinned] = False
    for step in steps:  # made or read by a layer that is not prunable: it must stay
        if any(tensor not in names for tensor in _tensors(step)):
            removable[labels.of(step.output)] = False
            removable[labels.of(step.inputs[0])] = False
    costs = costs_of(model, names, counts)
    if not costs:
        raise PruneError(
            f"model {model.name!r} has weights within other layers, or a nested model that takes inputs of any size, whose multiplications "
            "are not known: expected counts='weights', or, of a nested model, what `tfp_bprune.inline(model)` gives"
        )
    units = Units(made, read, kept, labels.count, removable, costs=costs)
    return _with_inputs(units, labels.pinned) if inputs else units


def costs_of(model: Any, names: Iterable[str], counts: Counts = "weights") -> dict[str, int]:
    """What a weight of each tensor counts, by tensor name: 1, or how often an example multiplies it (biases 0).

    Empty where the calls of layers cannot be followed, as those within attention, or their sizes are not known.
    """
    if counts == "weights":
        return dict.fromkeys(names, 1)
    graph = graph_of(model)
    if graph is None or not graph.is_sized:
        return {}
    times: Counter[str] = Counter()
    for step in graph.steps:
        times[step.layer.name] += positions(step)
    layers = {name: name.rpartition("/")[0] for name in names}
    if not set(layers.values()) <= set(times):
        return {}
    return {name: 0 if name.endswith("/bias") else times[layer] for name, layer in layers.items()}


def _with_inputs(units: Units, pinned: np.ndarray) -> Units:
    """The same with labels of their own for the inputs of layers that are no units."""
    count, found = units.count, []
    for side in units.read:
        alone = len(np.unique(side.labels)) == len(side.labels)
        if not alone or np.isin(side.labels, pinned).all():
            found.append(Side(side.tensor, side.axis, np.arange(count, count + len(side.labels))))
            count += len(side.labels)
    removable = np.concatenate([units.removable, np.ones(count - units.count, bool)])
    return replace(units, inputs=found, count=count, removable=removable)


def _tensors(step: Step) -> list[str]:
    kind = kind_of(step.layer)
    return [f"{step.layer.name}/{name}" for name in (kind.kernels if kind else ())]


def _sides(step: Step, labels: ChannelLabels, which: str, names: Mapping[str, np.ndarray]) -> Iterator[Side]:
    """The sides of one kind that a layer's prunable kernels have."""
    kind = kind_of(step.layer)
    assert kind is not None
    for name, axes in kind.kernels.items():
        tensor = f"{step.layer.name}/{name}"
        # A kernel without an axis of outputs alone, beside others or not, belongs to its input channels.
        axis = axes.made if which == "made" else axes.read
        alone = axes.made is None
        if tensor not in names or axis is None or (which != "made" and alone != (which == "kept")):
            continue
        of = labels.of(step.output if which == "made" else step.inputs[0])
        yield Side(tensor, axis, along(of, names[tensor].shape[axis]))


def pinned(units: Units) -> list[str]:
    """The tensors of which no unit can go."""
    return [side.tensor for side in units.made if not units.removable[side.labels].any()]


def unit_scores(
    units: Units, locs: Arrays, scales: Arrays | None, masks: Arrays, aggregate: Aggregate = "max"
) -> np.ndarray:
    """Score of each unit, over the weights that are left; [labels].

    A unit is worth no more than the weakest of its sides, the weights that make it, those that read it, and those that its
    channel has to itself: without any of them it is gone. Each side is scored by

    - "max": the highest |mu| / sigma, the threshold at which pruning by weight would take the last of them. It ranks
      units of all layers on the scale on which weights are ranked, whatever their number: the default, since it kept
      most of the accuracy of convolutional networks without retraining;
    - "mean": the mean of |mu| / sigma;
    - "norm": ||mu|| / ||sigma||, root of signal power over noise power for inputs of equal size.

    Without scales (`magnitude`) sigma is 1.

    Raises:
      PruneError: unknown aggregate.
    """
    if aggregate not in _AGGREGATES:
        raise PruneError(f"unknown aggregate {aggregate!r}: expected one of {', '.join(_AGGREGATES)}")
    score = _AGGREGATES[aggregate]
    return _of_weaker_side(units, lambda sides: score(_totals(sides, units.count, locs, scales, masks)))


def unit_means(units: Units, scores: Arrays, masks: Arrays) -> np.ndarray:
    """Sum of the scores of each unit's weights that are left, on all its sides, by what these count; [labels]. For scores that
    add up.

    Of the sign of their sum, so that both end at the same units; but a unit of many weights has to be worth more in all than
    one of few, as it costs more. By their sums 784-300-100 on MNIST came at 96 % to 32-69 units and 8.2 % validation error,
    by their means to 88-47 and 3.9 %.
    """
    left = {name: mask * units.costs.get(name, 1) for name, mask in masks.items()}
    return _sums(units.sides, units.count, scores, masks) / np.maximum(unit_counts(units, left), 1)


def unit_counts(units: Units, masks: Arrays) -> np.ndarray:
    """How many of each unit's weights are left, on all its sides; [labels]."""
    return _sums(units.sides, units.count, masks, masks)


def least_means(units: Units, values: Arrays, masks: Arrays) -> np.ndarray:
    """Means of non-negative values over the weights of each unit that are left, on the side where that is less; [labels]."""

    def means(sides: Sequence[Side]) -> np.ndarray:
        total, left = (_sums(sides, units.count, arrays, masks) for arrays in (values, masks))
        return total / np.maximum(left, 1)

    return _of_weaker_side(units, means)


def unit_bests(units: Units, scores: Arrays, masks: Arrays) -> np.ndarray:
    """The best score of each unit's weights that are left, on the side where that is less; [labels]. For scores of groups."""

    def bests(sides: Sequence[Side]) -> np.ndarray:
        best = np.full(units.count, -np.inf)
        for side in sides:
            left = np.where(masks[side.tensor], scores[side.tensor], -np.inf)
            np.maximum.at(best, side.labels, _by_channel(left, side.axis).max(1))
        return best

    return _of_weaker_side(units, bests)


def _of_weaker_side(units: Units, each: Callable[[Sequence[Side]], np.ndarray]) -> np.ndarray:
    """The least of what `each` gives of the sides that a unit has; [labels]."""
    least = np.full(units.count, np.inf)
    for sides in (units.made, units.read, units.kept, units.inputs):
        has = np.zeros(units.count, bool)
        for side in sides:
            has[side.labels] = True
        least = np.where(has, np.minimum(least, each(sides)), least)
    return least


def _sums(sides: Sequence[Side], count: int, values: Arrays, masks: Arrays) -> np.ndarray:
    """Sums of values over the weights of each unit that are left, on these sides; [labels]."""
    total = np.zeros(count)
    for side in sides:
        left = np.where(masks[side.tensor], values[side.tensor], 0.0)
        np.add.at(total, side.labels, _by_channel(left, side.axis).sum(1))
    return total


@dataclass(frozen=True)
class _Totals:
    """Sums over the weights on one side of each unit, and their best ratio; each [labels].

    `left` counts the weights that are not pruned.
    """

    signal: np.ndarray
    noise: np.ndarray
    ratio: np.ndarray
    best: np.ndarray
    left: np.ndarray


def _totals(sides: Sequence[Side], count: int, locs: Arrays, scales: Arrays | None, masks: Arrays) -> _Totals:
    total = _Totals(*(np.zeros(count) for _ in range(5)))
    for side in sides:
        name, label = side.tensor, side.labels
        loc, left = _by_channel(locs[name], side.axis), _by_channel(masks[name], side.axis)
        scale = _by_channel(scales[name], side.axis) if scales is not None else np.ones_like(loc)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(np.abs(loc) / scale, nan=0.0, posinf=float(np.finfo(np.float32).max)) * left
        np.add.at(total.signal, label, np.square(loc * left).sum(1, dtype=np.float64))
        np.add.at(total.noise, label, np.square(scale * left).sum(1, dtype=np.float64))
        np.add.at(total.ratio, label, ratio.sum(1, dtype=np.float64))
        np.maximum.at(total.best, label, ratio.max(1))
        np.add.at(total.left, label, left.sum(1))
    return total


def _by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """A kernel as [channels, weights of each], channels along `axis`."""
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def left_by_channel(mask: np.ndarray, axis: int) -> np.ndarray:
    """Whether each entry of an axis has a weight that is left."""
    return _by_channel(mask, axis).any(1)


def _norm(side: _Totals) -> np.ndarray:
    certain = np.where(side.signal > 0, np.inf, 0.0)
    return np.sqrt(np.divide(side.signal, side.noise, out=certain, where=side.noise > 0))


def _mean(side: _Totals) -> np.ndarray:
    return np.divide(side.ratio, side.left, out=np.zeros_like(side.ratio), where=side.left > 0)


_AGGREGATES: dict[str, Callable[[_Totals], np.ndarray]] = {"norm": _norm, "mean": _mean, "max": lambda side: side.best}


def ranks_by_layer(units: Units, scores: np.ndarray) -> np.ndarray:
    """The part of a layer's removable units that score lower than each; [labels], in [0, 1).

    Removed in this order, all layers lose the same part of their units (Li et al. 2017, arXiv 1608.08710, section 3.2).
    Layers that a residual addition ties count as one.
    """
    ranks = np.full(units.count, np.inf)
    for label in (side.labels for side in units.layers):
        mine = np.unique(label[units.removable[label] & np.isinf(ranks[label])])
        order = np.argsort(np.argsort(scores[mine], kind="stable"), kind="stable")
        ranks[mine] = order / max(len(mine), 1)
    return ranks


def unit_masks(
    units: Units,
    scores: np.ndarray,
    sparsity: float,
    masks: Arrays,
    live: Callable[[Arrays], dict[str, np.ndarray]] = dict,
) -> dict[str, np.ndarray]:
    """Masks without the fewest lowest-scored units that leave at least `sparsity` of all weights gone.

    Every layer keeps at least its best unit, so a sparsity near 1 may be out of reach; the report says what was
    reached.

    Args:
      scores: from `unit_scores`, or `ranks_by_layer` of them.
      sparsity: fraction of the weights, or of what they cost, in [0, 1).
      masks: what is left now, by tensor name; what is gone stays gone and counts.
      live: what of some masks counts as left; by default all of it.
    """
    order = _order_of_removal(units, scores)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        if sparsity_of(live(without(units, order[:middle], masks)), units.costs) >= sparsity:
            high = middle
        else:
            low = middle + 1
    return without(units, order[:low], masks)


def masks_without_units_below(
    units: Units, scores: np.ndarray, threshold: float, masks: Arrays
) -> dict[str, np.ndarray]:
    """Masks without the units that score below `threshold`, except the best unit of each layer."""
    order = _order_of_removal(units, scores)
    return without(units, order[scores[order] < threshold], masks)


def _order_of_removal(units: Units, scores: np.ndarray) -> np.ndarray:
    removable = units.removable.copy()
    for label in (side.labels for side in units.layers):
        if removable[label].all():
            removable[label[np.argmax(scores[label])]] = False
    candidates = np.flatnonzero(removable)
    return candidates[np.argsort(scores[candidates], kind="stable")]


def without(
    units: Units, gone: np.ndarray, masks: Arrays, sides: Sequence[Side] | None = None
) -> dict[str, np.ndarray]:
    """Masks without the units `gone`, labels; on all of their sides unless some are named."""
    stays = np.ones(units.count, bool)
    stays[gone] = False
    kept = dict(masks)
    for side in units.sides if sides is None else sides:
        shape = [1] * masks[side.tensor].ndim
        shape[side.axis] = -1
        kept[side.tensor] = kept[side.tensor] & stays[side.labels].reshape(shape)
    return kept
