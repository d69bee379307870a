"""Removal of weights that no longer do anything: their input never varies, or nothing reads their output.

The higher the sparsity, the more of the weights that are left lie on no path from input to output; what counts is the
"effective" sparsity without them (Vysogorets and Kempe 2021, arXiv 2107.02306).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfp_bprune.graphs import dead
from tfp_bprune.graphs.channels import ChannelLabels
from tfp_bprune.graphs.graph import Step
from tfp_bprune.layers import Variational
from tfp_bprune.pruning.masks import Arrays
from tfp_bprune.pruning.prune import keep_only


def remove_dead(model: Any) -> int:
    """Removes from `model` itself the kernel weights that carry nothing, and returns how many they were.

    A unit without weights has one value for every input: what its readers make of it by their means goes into their
    biases, so that the mean network's outputs stay equal to within float32 rounding, and its readers go. What their
    noise made of it, one shift for all examples of a draw, is lost. Weights of units that nothing reads go too.

    Args:
      model: of Bayesian or plain Keras layers, in training or not. One with nested models, shared layers or raw
        tfp.layers stays as it is.
    """
    paths = Paths.of(model)
    if paths is None:
        return 0
    live = _live(paths.labels, paths.kernels)
    return sum(_clear(step, paths.kernels[step.layer.name], live[step.layer.name]) for step in paths.labels.weighted)


@dataclass(frozen=True)
class Paths:
    """The kernels of a model as arrays and how they follow each other."""

    labels: ChannelLabels
    kernels: dict[str, dead.Kernel]

    @classmethod
    def of(cls, model: Any) -> Paths | None:
        """Those of `model`; None where its channels cannot be followed."""
        labels = dead.labels_of(model)
        if labels is None:
            return None
        return cls(labels, {step.layer.name: dead.kernel_of(step.layer, fold_noise=True) for step in labels.weighted})

    def live(self, masks: Arrays) -> dict[str, np.ndarray]:
        """The masks, by `layer/kernel`, that `remove_dead` would leave of `masks`."""
        kernels = {name: _masked(kernel, masks.get(f"{name}/kernel")) for name, kernel in self.kernels.items()}
        live = _live(self.labels, kernels)
        found = {name: live[name.removesuffix("/kernel")] for name in masks if name.removesuffix("/kernel") in live}
        return {
            name: mask & found[name].kept.reshape(mask.shape) if name in found else mask for name, mask in masks.items()
        }


@dataclass(frozen=True)
class _Live:
    """What is live of a kernel: `kept` [positions, in, out], and what its dead part adds to each output, `shift` [out]."""

    kept: np.ndarray
    shift: np.ndarray


def _live(labels: ChannelLabels, kernels: dict[str, dead.Kernel]) -> dict[str, Any]:
    constants = dead.constants(labels, kernels)
    needed = dead.needed(labels, kernels, constants)
    found = {}
    for step in labels.weighted:
        kernel, constant = kernels[step.layer.name], constants[step.inputs[0]]
        folded = dead.foldable(kernel, constant)
        kept = kernel.left & ~folded[:, None] & needed[labels.of(step.output)]
        found[step.layer.name] = _Live(kept, dead.contribution(kernel, constant, folded))
    return found


def _masked(kernel: dead.Kernel, mask: np.ndarray | None) -> dead.Kernel:
    if mask is None:
        return kernel
    kept = mask.reshape(kernel.loc.shape)
    return replace(kernel, loc=kernel.loc * kept, scale=kernel.scale * kept)


def _clear(step: Step, kernel: dead.Kernel, live: _Live) -> int:
    """Removes what is not live from one layer and returns how many weights that were."""
    layer, left = step.layer, kernel.left
    if (live.kept == left).all():
        return 0
    _shift(layer, live.shift)
    shape = (layer.kernel_posterior if isinstance(layer, Variational) else layer.kernel).shape
    keep_only(layer, "kernel", live.kept.reshape(shape))
    return int(np.count_nonzero(left & ~live.kept))


def _shift(layer: Any, by: np.ndarray) -> None:
    """Adds to the bias of a layer, where there is anything to add."""
    if by.any():
        bias = layer.bias_posterior.loc_variable if getattr(layer, "bias_posterior", None) else layer.bias
        bias.assign_add(by.astype(bias.dtype.as_numpy_dtype))
