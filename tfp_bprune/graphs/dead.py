"""Which channels carry nothing: those that have one value for every input, and those that nothing left reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tfp_bprune.graphs.channels import ChannelLabels, width_of
from tfp_bprune.graphs.copying import is_raw
from tfp_bprune.graphs.graph import Step, graph_of
from tfp_bprune.layers import Kind, kind_of, weights_of
from tfp_bprune.layers.kind import along
from tfp_bprune.layers.rules import applied, is_elementwise


def labels_of(model: Any) -> ChannelLabels | None:
    """The channels of a model; None where they cannot be followed (`graph.followed`), or layers are raw tfp.layers."""
    graph = graph_of(model)
    if graph is None or any(is_raw(step.layer) for step in graph.steps):
        return None
    return ChannelLabels(graph)


@dataclass(frozen=True)
class Kernels:
    """The weights of a layer, and which of its outputs depend on which of its inputs.

    Attributes:
      locs, scales: of each kernel; scales are 0 where weights are certain.
      bias, bias_scale: [out].
      takes: whether the bias can stand for what a constant input makes.
    """

    layer: Any
    kind: Kind
    locs: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]
    bias: np.ndarray
    bias_scale: np.ndarray
    takes: bool
    fold_noise: bool

    @cached_property
    def left(self) -> dict[str, np.ndarray]:
        """Which weights are not exactly 0 in every draw, by kernel."""
        return {name: (loc != 0) | (self.scales[name] != 0) for name, loc in self.locs.items()}

    @cached_property
    def live(self) -> np.ndarray:
        """Which outputs an input reaches: [in, out], or [out] where each has its own (`Kind.connects`)."""
        return self.kind.connects(self.layer, self.left)

    @cached_property
    def uncertain(self) -> np.ndarray:
        """Which outputs an input reaches through some weight that is uncertain; as `live`."""
        through = [self.left | {name: scale != 0} for name, scale in self.scales.items()]
        return np.logical_or.reduce([self.kind.connects(self.layer, some) for some in through])

    @cached_property
    def folds(self) -> np.ndarray:
        """[in], of a layer that mixes: whether an input could go into the bias if it were constant."""
        return self.takes & (self.fold_noise | ~self.uncertain.any(1))

    def masked(self, masks: dict[str, np.ndarray]) -> Kernels:
        """The same without the weights whose mask is False, by kernel."""
        locs = {name: loc * masks[name] if name in masks else loc for name, loc in self.locs.items()}
        scales = {name: scale * masks[name] if name in masks else scale for name, scale in self.scales.items()}
        return replace(self, locs=locs, scales=scales)

    def contribution(self, constant: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """What the constant `inputs` add to each output of a layer that mixes."""
        if not inputs.any():
            return np.zeros(len(self.bias))
        return np.where(inputs, np.nan_to_num(constant), 0.0) @ self.kind.carried(self.layer, self.locs)


def kernels_of(layer: Any, fold_noise: bool = False) -> Kernels:
    """The weights of a layer of some kind, Bayesian or plain.

    Args:
      fold_noise: whether a constant may go into the bias where weights that read it are uncertain. Their means are
        folded then, and their noise is lost.
    """
    kind, found = kind_of(layer), weights_of(layer)
    assert kind is not None
    bias = found.pop("bias", None)
    locs = {name: weights.loc for name, weights in found.items()}
    scales = {n: np.zeros_like(w.loc) if w.scale is None else w.scale for n, w in found.items()}
    nothing = np.zeros(kind.width(layer))
    values = nothing if bias is None else bias.loc
    deviations = nothing if bias is None or bias.scale is None else bias.scale
    # A bias that is pruned stays 0.
    takes = bias is not None and (not bias.uncertain or bool(bias.mask.all()))
    return Kernels(layer, kind, locs, scales, values, deviations, takes and kind.takes_constants(layer), fold_noise)


def constants(labels: ChannelLabels, kernels: dict[str, Kernels]) -> dict[int, np.ndarray]:
    """For each tensor, the value of each channel that is the same for all inputs and positions; NaN for the others."""
    found: dict[int, np.ndarray] = {}
    for step in labels.graph.steps:
        inputs = [found[tensor] for tensor in step.inputs]
        if step.layer.name in kernels:
            inputs = [constant_of(step, found)]
        found[step.output] = _constant_output(step, inputs, kernels.get(step.layer.name), width_of(step))
    return found


def _constant_output(step: Step, inputs: list[np.ndarray], kernels: Kernels | None, width: int) -> np.ndarray:
    layer = step.layer
    if kernels is not None:
        of = _constant_units if kernels.live.ndim == 2 else _constant_channels
        return of(layer, inputs[0], kernels)
    rule = step.rule
    arranged = rule.channels(layer, inputs, step.shape) if inputs else None
    if arranged is None:
        return np.full(width, np.nan)
    return rule.constant(layer, np.array(arranged), step.is_noisy)


def constant_of(step: Step, constants: dict[int, np.ndarray]) -> np.ndarray:
    """The constants that a weighted layer reads, of which it can take account once and for all: of one that is called elsewhere
    too, those that are 0, since other calls may read other numbers."""
    constant = constants[step.inputs[0]]
    return np.where(constant == 0, 0.0, np.nan) if step.is_shared else constant


def _constant_units(layer: Any, constant: np.ndarray, kernels: Kernels) -> np.ndarray:
    """The value of each unit that no varying input reaches, NaN for the others."""
    folded = foldable(kernels, constant)
    fixed = ~kernels.live[~folded].any(0) & (kernels.bias_scale == 0)
    return _activated(layer, kernels.bias + kernels.contribution(constant, folded), fixed)


def _constant_channels(layer: Any, constant: np.ndarray, kernels: Kernels) -> np.ndarray:
    """The same of a layer that keeps channels: each output has one input, and is fixed if that is, or is not read."""
    constant = along(constant, len(kernels.bias))
    silent = ~kernels.live | (constant == 0)
    known = ~np.isnan(constant) & kernels.takes & (kernels.fold_noise | ~kernels.uncertain)
    fixed = (silent | known) & (kernels.bias_scale == 0)
    read = np.where(silent, 0.0, np.nan_to_num(constant) * kernels.kind.carried(layer, kernels.locs))
    return _activated(layer, kernels.bias + read, fixed)


def _activated(layer: Any, values: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """The outputs of a weighted layer where they are `fixed`, NaN for the others."""
    if not is_elementwise(layer):
        return np.full(len(fixed), np.nan)
    activation = getattr(layer, "activation", None)
    return np.where(fixed, values if activation is None else applied(activation, values), np.nan)


def needed(
    labels: ChannelLabels,
    kernels: dict[str, Kernels],
    constants: dict[int, np.ndarray],
    pinned: np.ndarray | None = None,
) -> np.ndarray:
    """Which labels must stay, found from the outputs backwards until nothing is added.

    Args:
      pinned: those that stay whatever reads them; by default those of the graph.
    """
    needed = np.zeros(labels.count, bool)
    needed[labels.pinned if pinned is None else pinned] = True
    tensors = {tensor for step in labels.weighted for tensor in (step.inputs[0], step.output)}
    roots = {tensor: labels.of(tensor) for tensor in tensors}
    before = -1
    while needed.sum() != before:
        before = needed.sum()
        for step in reversed(labels.weighted):
            made, read = roots[step.output], roots[step.inputs[0]]
            if not needed[made].any():  # a layer keeps at least one unit
                needed[made[0]] = True
            layer = kernels[step.layer.name]
            reads = layer.live[:, needed[made]].any(1) & ~foldable(layer, constant_of(step, constants))
            needed[read[reads]] = True
    return needed


def foldable(kernels: Kernels, constant: np.ndarray) -> np.ndarray:
    """Which inputs can go for good: those always 0, and constants that the bias can take."""
    return (constant == 0) | (~np.isnan(constant) & kernels.folds)
