"""Which channels carry nothing: those that have one value for every input, and those that nothing left reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.graphs.channels import (
    ACTIVATIONS,
    ChannelLabels,
    is_elementwise,
    is_normalization,
    joins_channels,
    keeps_channels,
    positions,
    width_of,
)
from tfp_bprune.graphs.convert import is_raw
from tfp_bprune.graphs.graph import Step, graph_of
from tfp_bprune.layers import StatelessDropout, Variational

_L = keras.layers
# Monte-Carlo dropout that leaves a zero as it is; another constant it does not.
_FACTORS = (
    _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D, _L.GaussianDropout, StatelessDropout,
)  # fmt: skip


def labels_of(model: Any) -> ChannelLabels | None:
    """The channels of a model; None where they cannot be followed: nested models, shared layers, raw tfp.layers."""
    graph = graph_of(model)
    if graph is None or any(is_raw(step.layer) for step in graph.steps):
        return None
    return ChannelLabels(graph)


@dataclass(frozen=True)
class Kernel:
    """A dense or convolution layer's weights: loc and scale [positions, in, out]; bias and its scale [out].

    Attributes:
      folds: [in], whether an input could go into the bias if it were constant.
    """

    loc: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    bias_scale: np.ndarray
    folds: np.ndarray

    @property
    def left(self) -> np.ndarray:
        """Which weights are not exactly 0 in every draw [positions, in, out]."""
        return (self.loc != 0) | (self.scale != 0)

    @property
    def live(self) -> np.ndarray:
        """Whether any position of (in, out) is left."""
        return self.left.any(0)


def kernel_of(layer: Any, fold_noise: bool = False) -> Kernel:
    """The weights of a dense or convolution layer, Bayesian or plain, kernel positions flattened.

    Args:
      fold_noise: whether a constant may go into the bias where weights that read it are uncertain. Their means are
        folded then, and their noise is lost.
    """
    if isinstance(layer, Variational):
        q, bias_q = layer.kernel_posterior, layer.bias_posterior
        loc, scale = q.loc.numpy(), q.scale.numpy()
        bias = bias_q.loc if bias_q is not None else layer.bias
        bias_scale = bias_q.scale.numpy() if bias_q is not None else np.zeros(loc.shape[-1])
    else:
        loc, bias = layer.kernel.numpy(), layer.bias
        scale, bias_scale = np.zeros_like(loc), np.zeros(loc.shape[-1])
    loc, scale = (values.reshape(-1, *loc.shape[-2:]) for values in (loc, scale))
    folds = _takes_constants(layer) & (fold_noise | (scale == 0).all((0, 2)))
    return Kernel(loc, scale, np.zeros(loc.shape[-1]) if bias is None else bias.numpy(), bias_scale, folds)


def _takes_constants(layer: Any) -> bool:
    """Whether the layer's bias can stand for what a constant input makes.

    Zero padding breaks a constant at the borders, and a bias that is pruned stays 0.
    """
    if getattr(layer, "padding", "valid") != "valid":
        return False
    q = layer.posteriors.get("bias") if isinstance(layer, Variational) else None
    return bool(q.mask.numpy().all()) if q is not None else layer.bias is not None


def constants(labels: ChannelLabels, kernels: dict[str, Kernel]) -> dict[int, np.ndarray]:
    """For each tensor, the value of each channel that is the same for all inputs and positions; NaN for the others."""
    found: dict[int, np.ndarray] = {}
    for step in labels.graph.steps:
        inputs = [found[tensor] for tensor in step.inputs]
        found[step.output] = _constant_output(step, inputs, kernels.get(step.layer.name), width_of(step))
    return found


def _constant_output(step: Step, inputs: list[np.ndarray], kernel: Kernel | None, width: int) -> np.ndarray:
    layer = step.layer
    if kernel is not None:
        return _constant_units(layer, inputs[0], kernel)
    if is_normalization(step):
        return _normalized(layer, inputs[0])
    if isinstance(layer, ACTIVATIONS) and is_elementwise(layer):
        return np.where(np.isnan(inputs[0]), np.nan, _called(layer, inputs[0]))
    if step.is_noisy:
        return np.where(inputs[0] == 0, 0.0, np.nan) if isinstance(layer, _FACTORS) else np.full(width, np.nan)
    if keeps_channels(step):
        return inputs[0]
    if isinstance(layer, _L.Flatten) and layer.data_format == "channels_last":
        return np.tile(inputs[0], positions(step, len(inputs[0])))
    if joins_channels(step) and len({len(constant) for constant in inputs}) == 1:
        return _joined(layer, np.array(inputs))
    if isinstance(layer, _L.Concatenate) and layer.axis in (-1, len(step.shape) - 1):
        return np.concatenate(inputs)
    return np.full(width, np.nan)


def _joined(layer: Any, constants: np.ndarray) -> np.ndarray:
    """What a layer that joins branches makes of their constants [branches, channels]."""
    if isinstance(layer, _L.Multiply):
        return np.where((constants == 0).any(0), 0.0, np.prod(constants, 0))
    if isinstance(layer, _L.Subtract):
        return constants[0] - constants[1]
    kinds: dict[Any, Any] = {_L.Add: np.sum, _L.Average: np.mean, _L.Maximum: np.max, _L.Minimum: np.min}
    return next(
        (function(constants, axis=0) for kind, function in kinds.items() if type(layer) is kind),
        np.full(constants.shape[1], np.nan),
    )


def _constant_units(layer: Any, constant: np.ndarray, kernel: Kernel) -> np.ndarray:
    """The value of each unit that no varying input reaches, NaN for the others."""
    folded = foldable(kernel, constant)
    fixed = ~kernel.live[~folded].any(0) & (kernel.bias_scale == 0)
    if not is_elementwise(layer):
        return np.full(len(fixed), np.nan)
    values = kernel.bias + contribution(kernel, constant, folded)
    return np.where(fixed, values if layer.activation is None else _called(layer.activation, values), np.nan)


def needed(labels: ChannelLabels, kernels: dict[str, Kernel], constants: dict[int, np.ndarray]) -> np.ndarray:
    """Which labels must stay, found from the outputs backwards until nothing is added."""
    needed = np.zeros(labels.count, bool)
    needed[labels.pinned] = True
    tensors = {tensor for step in labels.weighted for tensor in (step.inputs[0], step.output)}
    roots = {tensor: labels.of(tensor) for tensor in tensors}
    before = -1
    while needed.sum() != before:
        before = needed.sum()
        for step in reversed(labels.weighted):
            made, read = roots[step.output], roots[step.inputs[0]]
            if not needed[made].any():  # a layer keeps at least one unit
                needed[made[0]] = True
            kernel = kernels[step.layer.name]
            reads = kernel.live[:, needed[made]].any(1) & ~foldable(kernel, constants[step.inputs[0]])
            needed[read[reads]] = True
    return needed


def foldable(kernel: Kernel, constant: np.ndarray) -> np.ndarray:
    """Which inputs can go for good: those always 0, and constants that the bias can take."""
    return (constant == 0) | (~np.isnan(constant) & kernel.folds)


def contribution(kernel: Kernel, constant: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """What the constant `inputs` add to each output."""
    return np.einsum("i,pio->o", np.where(inputs, np.nan_to_num(constant), 0.0), kernel.loc.astype(np.float64))


def _called(function: Any, values: np.ndarray) -> np.ndarray:
    return np.asarray(function(np.nan_to_num(values).astype(np.float32)), np.float64)


def _normalized(layer: Any, constant: np.ndarray) -> np.ndarray:
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    deviation = np.sqrt(layer.moving_variance.numpy() + layer.epsilon)
    return gamma * (constant - layer.moving_mean.numpy()) / deviation + beta
