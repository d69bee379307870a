"""Exact removal of dead units: a smaller ordinary network that computes the same function.

A unit (dense neuron or convolution filter) goes if nothing that is left reads it, or if it has the same value for
every input and its readers can take that value into their biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.graphs import dead
from tfp_bprune.graphs.channels import ChannelLabels
from tfp_bprune.graphs.copying import config_of, copy_activation_state, made_from
from tfp_bprune.graphs.graph import Step
from tfp_bprune.graphs.inline import inline
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.layers import Axes, kind_of, weights_of
from tfp_bprune.layers.kind import along
from tfp_bprune.layers.rules import rule_of


def compact(model: Any) -> Any:
    """The model without its dead units, weights sliced; the model itself if there are none or its graph cannot be followed.

    Outputs equal the given model's to within float32 rounding. The inputs and outputs of the model keep their shapes and
    names; of models nested in it the layers become its own.
    """
    kept = kept_of(model)
    return smaller(model, kept) if kept else model


def kept_of(model: Any) -> dict[str, Kept]:
    """What stays of each layer that has channels, by its name; empty if all stay or the graph cannot be followed."""
    labels = dead.labels_of(model)
    if labels is None:
        return {}
    kernels = {step.layer.name: dead.kernels_of(step.layer) for step in (*labels.weighted, *labels.kept)}
    constants = dead.constants(labels, kernels)
    needed = dead.needed(labels, kernels, constants)
    sliced = [s for s in labels.graph.steps if s.layer.name in kernels or s.rule.sized]
    kept = {s.layer.name: Kept.of(s, labels, needed, constants) for s in sliced}
    return {} if all(one.kept_out.all() for one in kept.values()) else kept


def smaller(model: Any, kept: dict[str, Kept]) -> Any:
    """A copy of `model` of which stays what `kept_of` gave."""
    return rebuild(
        inline(model),
        lambda layer: _smaller(layer, kept.get(layer.name)),
        lambda old, new: fill(old, new, kept[old.name]),
    )


@dataclass(frozen=True)
class Kept:
    """What stays of one layer: input and output channels, and the constants that it read; NaN where an input varies."""

    kept_in: np.ndarray
    kept_out: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, step: Step, labels: ChannelLabels, needed: np.ndarray, constants: dict[int, np.ndarray]) -> Kept:
        """That of the layer of `step`, of whose labels some are `needed`."""
        kept_in, kept_out = (needed[labels.of(tensor)] for tensor in (step.inputs[0], step.output))
        return cls(kept_in, kept_out, dead.constant_of(step, constants))

    def index(self, shape: tuple[int, ...], axes: Axes) -> tuple[np.ndarray, ...]:
        """Which entries stay of a weight tensor of `shape`: an open mesh, one array for each axis."""
        stay = [np.arange(size) for size in shape]
        for axis, kept in ((axes.read, self.kept_in), (axes.made, self.kept_out)):
            if axis is not None:
                stay[axis] = np.flatnonzero(along(kept, shape[axis]))
        return np.ix_(*stay)


def _smaller(layer: Any, kept: Kept | None) -> Any:
    """The layer with as many units as stay; None where nothing changes."""
    if kept is None or (kept.kept_in.all() and kept.kept_out.all()):
        return None
    config, kind = config_of(layer), kind_of(layer)
    if kind is not None:
        config = kind.resized(layer, config, int(kept.kept_in.sum()), int(kept.kept_out.sum()))
    else:
        config = rule_of(layer).resized(layer, config, kept.kept_out)
    return made_from(layer, config)


def fill(old: Any, new: Any, kept: Kept, fold: bool = True) -> None:
    """Gives `new` what stays of each weight of `old`; with `fold`, constants of removed inputs go into the bias."""
    kind = kind_of(old)
    if kind is None:
        new.set_weights([w[..., kept.kept_out] for w in old.get_weights()])
        return
    copy_activation_state(old, new)
    for source, target in zip(old.weights, new.weights, strict=True):
        if source.shape.rank == 0:  # what training keeps in the layer
            target.assign(source)
    slices = weights_of(new)
    for name, weights in weights_of(old).items():
        slices[name].copy_slice(weights, kept.index(weights.loc.shape, kind.axes(name)))
    if fold:
        _fold(old, new, kept)


def _fold(old: Any, new: Any, kept: Kept) -> None:
    shift = folded(old, kept)
    if shift is not None:
        weights_of(new)["bias"].shift(shift)


def folded(layer: Any, kept: Kept) -> np.ndarray | None:
    """What the constant inputs that go add to each output [out] that stays; None of a layer without a bias."""
    kind, gone = kind_of(layer), ~kept.kept_in & ~np.isnan(kept.constant)
    if kind is None or "bias" not in weights_of(layer) or kind.flow(layer) != "mixes":
        return None
    return dead.kernels_of(layer).contribution(kept.constant, gone)[kept.kept_out]
