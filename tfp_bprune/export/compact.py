"""Exact removal of dead units: a smaller ordinary network that computes the same function.

A unit (dense neuron or convolution filter) goes if nothing that is left reads it, or if it has the same value for
every input and its readers can take that value into their biases. Channels are followed through the graph: tensors
that must keep the same channels (activation, pooling, batch normalization, addition, flatten, concatenation) share
labels, and a label goes from all of them or from none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.layers import StatelessDropout, Variational
from tfp_bprune.models.convert import activation_name, kind_of
from tfp_bprune.models.graph import Graph, Step, graph_of
from tfp_bprune.models.rebuild import rebuild

_L = keras.layers
_SAME_CHANNELS = (
    _L.Activation, _L.ReLU, _L.LeakyReLU, _L.ELU, _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, StatelessDropout,
    _L.MaxPooling1D, _L.MaxPooling2D, _L.MaxPooling3D, _L.AveragePooling1D, _L.AveragePooling2D, _L.AveragePooling3D,
    _L.GlobalAveragePooling1D, _L.GlobalAveragePooling2D, _L.GlobalMaxPooling1D, _L.GlobalMaxPooling2D,
)  # fmt: skip
_ELEMENTWISE = {
    "linear", "relu", "relu6", "elu", "selu", "gelu", "tanh", "sigmoid", "hard_sigmoid", "swish", "silu", "softplus",
    "softsign", "exponential", "leaky_relu", "mish",
}  # fmt: skip


@dataclass
class Channels:
    """What is known of the channels (last axis) of one tensor.

    Attributes:
      labels: channels with equal labels, in any tensor, stay or go together.
      constant: the channel's value where it is the same for all inputs and positions, else NaN.
    """

    labels: np.ndarray
    constant: np.ndarray


@dataclass(frozen=True)
class Kernel:
    """A dense or convolution layer's weights: loc and scale [positions, in, out]; bias [out]."""

    loc: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    bias_scale: np.ndarray
    folds: bool

    @property
    def live(self) -> np.ndarray:
        """Whether any position of (in, out) is not exactly 0."""
        return ((self.loc != 0) | (self.scale != 0)).any(0)


def compact(model: Any) -> Any:
    """The model without its dead units, weights sliced; the model itself if there are none or its graph is not plain.

    Outputs equal the given model's to within float32 rounding. The inputs and outputs of the model keep their shapes.
    """
    graph = graph_of(model)
    if graph is None:
        return model
    analysis = _Analysis(graph)
    kept_in, kept_out = analysis.kept()
    if all(kept.all() for kept in kept_out.values()):
        return model
    slicer = _Slicer(analysis, kept_in, kept_out)
    return rebuild(model, slicer.replacement, slicer.transfer)


class _Analysis:
    """Labels, constants and needs of every channel of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.channels: dict[int, Channels] = {}
        self._parent: list[int] = []
        self.pinned: set[int] = set()
        self.kernels = {s.layer.name: kernel_of(s.layer) for s in graph.steps if _is_followed(s.layer)}
        for step in graph.steps:
            self.channels[step.output] = self._follow(step)
        for tensor in graph.outputs:
            self._pin(tensor)

    def _follow(self, step: Step) -> Channels:
        layer, inputs = step.layer, [self.channels[i] for i in step.inputs]
        if step.layer.name in self.kernels:
            return Channels(self._new_labels(step), self._constant_outputs(step, inputs[0]))
        if isinstance(layer, _SAME_CHANNELS) and not _mixes(layer):
            return Channels(inputs[0].labels, _on_channels(layer, step, inputs[0].constant))
        if isinstance(layer, _L.BatchNormalization) and layer.axis in ([len(step.shape) - 1], len(step.shape) - 1):
            return Channels(inputs[0].labels, _normalized(layer, inputs[0].constant))
        if isinstance(layer, _L.Flatten) and layer.data_format == "channels_last":
            repeats = _size(step) // len(inputs[0].labels)
            return Channels(np.tile(inputs[0].labels, repeats), np.tile(inputs[0].constant, repeats))
        if isinstance(layer, _L.Add) and len({len(c.labels) for c in inputs}) == 1:
            return Channels(self._join([c.labels for c in inputs]), np.sum([c.constant for c in inputs], axis=0))
        if isinstance(layer, _L.Concatenate) and layer.axis in (-1, len(step.shape) - 1):
            return Channels(np.concatenate([c.labels for c in inputs]), np.concatenate([c.constant for c in inputs]))
        for tensor in step.inputs:  # a layer that is not known to treat channels one by one
            self._pin(tensor)
        made = Channels(self._new_labels(step), np.full(_width(step), np.nan))
        self.pinned.update(made.labels.tolist())
        return made

    def _new_labels(self, step: Step) -> np.ndarray:
        start = len(self._parent)
        self._parent.extend(range(start, start + _width(step)))
        return np.arange(start, start + _width(step))

    def _join(self, several: list[np.ndarray]) -> np.ndarray:
        for other in several[1:]:
            for a, b in zip(several[0], other, strict=True):
                self._parent[self._root(b)] = self._root(a)
        return several[0]

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label

    def _roots(self, labels: np.ndarray) -> np.ndarray:
        return np.array([self._root(int(label)) for label in labels], dtype=np.int64)

    def _pin(self, tensor: int) -> None:
        self.pinned.update(self.channels[tensor].labels.tolist())

    def _constant_outputs(self, step: Step, read: Channels) -> np.ndarray:
        """The value of each output that no varying input reaches, NaN for the others."""
        kernel = self.kernels[step.layer.name]
        varies = ~_foldable(kernel, read.constant)
        fixed = ~kernel.live[varies].any(0) & (kernel.bias_scale == 0)
        values = kernel.bias + _folded(kernel, read.constant, ~varies)
        if _mixes(step.layer):
            return np.full(len(fixed), np.nan)
        return np.where(fixed, _apply_activation(step.layer, values), np.nan)

    def kept(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Which input and output channels of each dense, convolution or normalization layer stay, by layer name."""
        needed = np.zeros(len(self._parent), bool)
        needed[self._roots(np.array(sorted(self.pinned), dtype=np.int64))] = True
        roots = {tensor: self._roots(c.labels) for tensor, c in self.channels.items()}
        readers = [s for s in self.graph.steps if s.layer.name in self.kernels]
        while True:
            before = needed.sum()
            for step in reversed(readers):
                self._mark_read(step, roots, needed)
                out = roots[step.output]
                if not needed[out].any():  # a layer keeps at least one unit
                    needed[out[0]] = True
            if needed.sum() == before:
                break
        sliced = [
            s for s in self.graph.steps if s.layer.name in self.kernels or isinstance(s.layer, _L.BatchNormalization)
        ]
        kept_in = {s.layer.name: needed[roots[s.inputs[0]]] for s in sliced}
        return kept_in, {s.layer.name: needed[roots[s.output]] for s in sliced}

    def _mark_read(self, step: Step, roots: dict[int, np.ndarray], needed: np.ndarray) -> None:
        kernel, source = self.kernels[step.layer.name], step.inputs[0]
        read = kernel.live[:, needed[roots[step.output]]].any(1) & ~_foldable(kernel, self.channels[source].constant)
        needed[roots[source][read]] = True


class _Slicer:
    """Makes the smaller layers and fills them."""

    def __init__(self, analysis: _Analysis, kept_in: dict[str, np.ndarray], kept_out: dict[str, np.ndarray]) -> None:
        self._kept_in, self._kept_out = kept_in, kept_out
        self._constants = {
            s.layer.name: analysis.channels[s.inputs[0]].constant for s in analysis.graph.steps if s.inputs
        }

    def replacement(self, layer: Any) -> Any:
        """The layer with as many units as stay; None where nothing changes."""
        if layer.name not in self._kept_out:
            return None
        config = layer.get_config()
        for key in ("units", "filters"):
            if key in config:
                config[key] = int(self._kept_out[layer.name].sum())
        return layer.__class__.from_config(config)

    def transfer(self, old: Any, new: Any) -> None:
        """The surviving slice of each weight; constants of removed inputs go into the bias."""
        kept_in, kept_out = self._kept_in[old.name], self._kept_out[old.name]
        if isinstance(old, _L.BatchNormalization):
            new.set_weights([w[kept_in] for w in old.get_weights()])
            return
        gone = ~kept_in
        shift = _folded(kernel_of(old), self._constants[old.name], gone & ~np.isnan(self._constants[old.name]))
        for source, target in zip(old.weights, new.weights, strict=True):
            name, value = source.name.split("/")[-1].split(":")[0], source.numpy()
            if name in ("bias", "bias_loc"):
                value = (value + shift).astype(value.dtype)
            if name.startswith("kernel"):
                value = value[..., kept_in, :][..., kept_out]
            elif name.startswith("bias"):
                value = value[kept_out]
            target.assign(value)


def kernel_of(layer: Any) -> Kernel:
    """The weights of a dense or convolution layer, Bayesian or plain, kernel positions flattened."""
    if isinstance(layer, Variational):
        q, bias_q = layer.kernel_posterior, layer.bias_posterior
        loc, scale = q.loc.numpy(), q.scale.numpy()
        bias_variable = bias_q.loc if bias_q is not None else layer.bias
        bias = None if bias_variable is None else bias_variable.numpy()
        bias_scale = bias_q.scale.numpy() if bias_q is not None else np.zeros(loc.shape[-1])
    else:
        loc = layer.kernel.numpy()
        scale, bias = np.zeros_like(loc), layer.bias.numpy() if layer.use_bias else None
        bias_scale = np.zeros(loc.shape[-1])
    # Zero padding breaks a constant at the borders, so only an unpadded layer can fold one into its bias.
    folds = bias is not None and getattr(layer, "padding", "valid") == "valid"
    flat = (-1, *loc.shape[-2:])
    return Kernel(
        loc.reshape(flat), scale.reshape(flat), np.zeros(loc.shape[-1]) if bias is None else bias, bias_scale, folds
    )


def _foldable(kernel: Kernel, constant: np.ndarray) -> np.ndarray:
    """Which inputs can go for good: those always 0, and constants that only certain weights read."""
    certain = (kernel.scale == 0).all((0, 2))
    return (constant == 0) | (~np.isnan(constant) & certain & kernel.folds)


def _folded(kernel: Kernel, constant: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """What constant `inputs` add to each output."""
    return np.einsum("i,pio->o", np.where(inputs, np.nan_to_num(constant), 0.0), kernel.loc.astype(np.float64))


def _is_followed(layer: Any) -> bool:
    """Dense layers, and convolutions whose last axis is the channels and whose filters read all of them."""
    ordinary = getattr(layer, "groups", 1) == 1 and getattr(layer, "data_format", "channels_last") == "channels_last"
    return kind_of(layer) is not None and ordinary


def _size(step: Step) -> int:
    return math.prod(size or 0 for size in step.shape[1:])


def _width(step: Step) -> int:
    return int(step.shape[-1] or 0)


def _mixes(layer: Any) -> bool:
    """Whether the layer's activation may combine channels; only known ones are taken not to."""
    return activation_name(layer) not in _ELEMENTWISE


def _apply_activation(layer: Any, values: np.ndarray) -> np.ndarray:
    function: Callable[..., Any] | None = layer.activation
    return values if function is None else np.asarray(function(values.astype(np.float32)), np.float64)


def _on_channels(layer: Any, step: Step, constant: np.ndarray) -> np.ndarray:
    """A constant after a layer that treats channels alike: activations map it, pooling and dropout leave it."""
    if not isinstance(layer, _L.Activation | _L.ReLU | _L.LeakyReLU | _L.ELU):
        return constant
    return np.where(
        np.isnan(constant), np.nan, np.asarray(layer(np.nan_to_num(constant).astype(np.float32)), np.float64)
    )


def _normalized(layer: Any, constant: np.ndarray) -> np.ndarray:
    gamma = layer.gamma.numpy() if layer.scale else 1.0
    beta = layer.beta.numpy() if layer.center else 0.0
    return (
        gamma * (constant - layer.moving_mean.numpy()) / np.sqrt(layer.moving_variance.numpy() + layer.epsilon) + beta
    )
