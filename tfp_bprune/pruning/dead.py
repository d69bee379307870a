"""Removal of weights that no longer do anything: their input never varies, or nothing reads their output.

The higher the sparsity, the more of the weights that are left lie on no path from input to output; what counts is the
"effective" sparsity without them (Vysogorets and Kempe 2021, arXiv 2107.02306).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.graphs import dead
from tfp_bprune.graphs.channels import ChannelLabels
from tfp_bprune.graphs.graph import Step
from tfp_bprune.layers import weights_of
from tfp_bprune.pruning.masks import Arrays


def remove_dead(model: Any) -> int:
    """Removes from `model` itself the kernel weights that carry nothing, and returns how many they were.

    A unit without weights has one value for every input: what its readers make of it by their means goes into their
    biases, so that the mean network's outputs stay equal to within float32 rounding, and its readers go. What their
    noise made of it, one shift for all examples of a draw, is lost. Weights of units that nothing reads go too.

    Args:
      model: of Bayesian or plain Keras layers, in training or not. One whose channels cannot be followed (`graphs.dead.labels_of`)
        stays as it is.
    """
    paths = Paths.of(model)
    if paths is None:
        return 0
    live = _live(paths.labels, paths.kernels)
    return sum(_clear(step, paths.kernels[step.layer.name], live[step.layer.name]) for step in paths.steps)


@dataclass(frozen=True)
class Paths:
    """The kernels of a model as arrays and how they follow each other."""

    labels: ChannelLabels
    kernels: dict[str, dead.Kernels]

    @classmethod
    def of(cls, model: Any) -> Paths | None:
        """Those of `model`; None where its channels cannot be followed."""
        labels = dead.labels_of(model)
        if labels is None:
            return None
        steps = (*labels.weighted, *labels.kept)
        return cls(labels, {step.layer.name: dead.kernels_of(step.layer, fold_noise=True) for step in steps})

    @property
    def steps(self) -> tuple[Step, ...]:
        """A call of each layer with kernels."""
        calls = (*self.labels.weighted, *self.labels.kept)
        return tuple({id(step.layer): step for step in calls}.values())

    def live(self, masks: Arrays) -> dict[str, np.ndarray]:
        """The masks, by `layer/kernel`, that `remove_dead` would leave of `masks`."""
        kernels = {
            layer: of.masked({name: masks[f"{layer}/{name}"] for name in of.locs if f"{layer}/{name}" in masks})
            for layer, of in self.kernels.items()
        }
        live = _live(self.labels, kernels)
        kept = {f"{layer}/{name}": left for layer, found in live.items() for name, left in found.kept.items()}
        return {name: mask & kept[name] if name in kept else mask for name, mask in masks.items()}


@dataclass(frozen=True)
class _Live:
    """What is live of each kernel of a layer, and what its dead part adds to each output, `shift` [out]."""

    kept: dict[str, np.ndarray]
    shift: np.ndarray

    def with_call(self, other: _Live | None) -> _Live:
        """What is live in this call of the layer or in another, of which both add nothing by their dead parts."""
        if other is None:
            return self
        return _Live({name: kept | other.kept[name] for name, kept in self.kept.items()}, self.shift)


def _live(labels: ChannelLabels, kernels: dict[str, dead.Kernels]) -> dict[str, _Live]:
    constants = dead.constants(labels, kernels)
    needed = dead.needed(labels, kernels, constants)
    found: dict[str, _Live] = {}
    for step in labels.weighted:
        of, constant = kernels[step.layer.name], dead.constant_of(step, constants)
        folded = dead.foldable(of, constant)
        kept = _kept(of, ~folded, needed[labels.of(step.output)])
        found[step.layer.name] = _Live(kept, of.contribution(constant, folded)).with_call(found.get(step.layer.name))
    for step in labels.kept:  # what is silent, or not needed, of a channel; the rest may be read
        of, constant = kernels[step.layer.name], dead.constant_of(step, constants)
        read = needed[labels.of(step.inputs[0])] & (constant != 0)
        live = _Live(_kept(of, read, read), np.zeros(len(of.bias)))
        found[step.layer.name] = live.with_call(found.get(step.layer.name))
    return found


def _kept(of: dead.Kernels, read: np.ndarray, made: np.ndarray) -> dict[str, np.ndarray]:
    return {name: left & of.kind.spread(name, left.shape, read, made) for name, left in of.left.items()}


def _clear(step: Step, of: dead.Kernels, live: _Live) -> int:
    """Removes what is not live from one layer and returns how many weights that were."""
    gone = {name: int(np.count_nonzero(left & ~live.kept[name])) for name, left in of.left.items()}
    if not any(gone.values()):
        return 0
    weights = weights_of(step.layer)
    if live.shift.any():
        weights["bias"].shift(live.shift)
    for name, count in gone.items():
        if count:
            weights[name].keep_only(live.kept[name])
    return sum(gone.values())
