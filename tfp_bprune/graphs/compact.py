"""Exact removal of dead units: a smaller ordinary network that computes the same function.

A unit (dense neuron or convolution filter) goes if nothing that is left reads it, or if it has the same value for
every input and its readers can take that value into their biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.graphs import dead
from tfp_bprune.graphs.channels import ChannelLabels, is_normalization
from tfp_bprune.graphs.graph import Step
from tfp_bprune.graphs.rebuild import rebuild

_L = keras.layers


def compact(model: Any) -> Any:
    """The model without its dead units, weights sliced; the model itself if there are none or its graph is not plain.

    Outputs equal the given model's to within float32 rounding. The inputs and outputs of the model keep their shapes.
    """
    labels = dead.labels_of(model)
    if labels is None:
        return model
    kernels = {step.layer.name: dead.kernel_of(step.layer) for step in labels.weighted}
    constants = dead.constants(labels, kernels)
    needed = dead.needed(labels, kernels, constants)
    sliced = [s for s in labels.graph.steps if s.layer.name in kernels or is_normalization(s)]
    slices = {s.layer.name: _Slice.of(s, labels, needed, constants) for s in sliced}
    if all(s.kept_out.all() for s in slices.values()):
        return model
    return rebuild(
        model, lambda layer: _smaller(layer, slices.get(layer.name)), lambda old, new: _fill(old, new, slices[old.name])
    )


@dataclass(frozen=True)
class _Slice:
    """What stays of one layer: input and output channels, and the constants that it read."""

    kept_in: np.ndarray
    kept_out: np.ndarray
    constant: np.ndarray

    @classmethod
    def of(cls, step: Step, labels: ChannelLabels, needed: np.ndarray, constants: dict[int, np.ndarray]) -> _Slice:
        return cls(needed[labels.of(step.inputs[0])], needed[labels.of(step.output)], constants[step.inputs[0]])


def _smaller(layer: Any, kept: _Slice | None) -> Any:
    """The layer with as many units as stay; None where nothing changes."""
    if kept is None or (kept.kept_in.all() and kept.kept_out.all()):
        return None
    config = layer.get_config()
    for key in ("units", "filters"):
        if key in config:
            config[key] = int(kept.kept_out.sum())
    return layer.__class__.from_config(config)


def _fill(old: Any, new: Any, kept: _Slice) -> None:
    """The surviving slice of each weight; constants of removed inputs go into the bias."""
    if isinstance(old, _L.BatchNormalization):
        new.set_weights([w[kept.kept_in] for w in old.get_weights()])
        return
    gone = ~kept.kept_in & ~np.isnan(kept.constant)
    shift = dead.contribution(dead.kernel_of(old), kept.constant, gone)
    for source, target in zip(old.weights, new.weights, strict=True):
        name, value = source.name.split("/")[-1].split(":")[0], source.numpy()
        if name in ("bias", "bias_loc"):
            value = (value + shift).astype(value.dtype)
        if name.startswith("kernel"):
            value = value[..., kept.kept_in, :][..., kept.kept_out]
        elif name.startswith("bias"):
            value = value[kept.kept_out]
        target.assign(value)
