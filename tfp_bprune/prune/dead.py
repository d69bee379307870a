"""Removal of weights that no longer do anything: their input never varies, or nothing reads their output.

The higher the sparsity, the more of the weights that are left lie on no path from input to output; what counts is the
"effective" sparsity without them (Vysogorets and Kempe 2021, arXiv 2107.02306).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune.layers import Variational
from tfp_bprune.models import dead
from tfp_bprune.models.graph import Step
from tfp_bprune.prune.prune import keep_only


def remove_dead(model: Any) -> int:
    """Removes from `model` itself the kernel weights that carry nothing, and returns how many they were.

    A unit without weights has one value for every input: what its readers make of it by their means goes into their
    biases, so that the mean network's outputs stay equal to within float32 rounding, and its readers go. What their
    noise made of it, one shift for all examples of a draw, is lost. Weights of units that nothing reads go too.

    Args:
      model: of Bayesian or plain Keras layers, in training or not. One with nested models, shared layers or raw
        tfp.layers stays as it is.
    """
    labels = dead.labels_of(model)
    if labels is None:
        return 0
    kernels = {step.layer.name: dead.kernel_of(step.layer, fold_noise=True) for step in labels.weighted}
    constants = dead.constants(labels, kernels)
    needed = dead.needed(labels, kernels, constants)
    removed = 0
    for step in labels.weighted:
        removed += _clear(step, kernels[step.layer.name], constants[step.inputs[0]], needed[labels.of(step.output)])
    return removed


def _clear(step: Step, kernel: dead.Kernel, constant: np.ndarray, made: np.ndarray) -> int:
    """Removes what reads a constant and what makes an output not `made` for anything from one layer; returns how many."""
    layer, folded = step.layer, dead.foldable(kernel, constant)
    left = kernel.left
    kept = left & ~folded[:, None] & made
    if (kept == left).all():
        return 0
    _shift(layer, dead.contribution(kernel, constant, folded))
    shape = (layer.kernel_posterior if isinstance(layer, Variational) else layer.kernel).shape
    keep_only(layer, "kernel", kept.reshape(shape))
    return int(np.count_nonzero(left & ~kept))


def _shift(layer: Any, by: np.ndarray) -> None:
    """Adds to the bias of a layer, where there is anything to add."""
    if by.any():
        bias = layer.bias_posterior.loc_variable if getattr(layer, "bias_posterior", None) else layer.bias
        bias.assign_add(by.astype(bias.dtype.as_numpy_dtype))
