"""Which channels of a network belong together: what has to go if one of them goes.

Tensors that must keep the same channels (through activation, pooling, batch normalization, addition, flatten,
concatenation) share labels. A dense or convolution layer starts new labels. A label goes from every tensor or from
none, so that removal keeps all shapes consistent, residual additions included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.graphs.convert import activation_name
from tfp_bprune.graphs.graph import Graph, Step
from tfp_bprune.layers import StatelessDropout, kind_of
from tfp_bprune.layers.kind import Flow, along

_L = keras.layers
ACTIVATIONS = (_L.Activation, _L.ReLU, _L.LeakyReLU, _L.ELU, _L.ThresholdedReLU)
POOLING = tuple(
    getattr(_L, f"{kind}Pooling{rank}D")
    for kind in ("Max", "Average", "GlobalMax", "GlobalAverage")
    for rank in (1, 2, 3)
)
NOISE = (
    _L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D, _L.AlphaDropout, _L.GaussianDropout,
    _L.GaussianNoise, StatelessDropout,
)  # fmt: skip
IDENTITIES = (  # outside training, when called by the `call` of these classes themselves: `is_identity`
    *NOISE, _L.ActivityRegularization, _L.RandomFlip, _L.RandomTranslation, _L.RandomRotation, _L.RandomZoom,
    _L.RandomContrast, _L.RandomBrightness, _L.RandomHeight, _L.RandomWidth,
)  # fmt: skip
MERGES = (_L.Add, _L.Subtract, _L.Average, _L.Multiply, _L.Concatenate)
_JOINING = (_L.Add, _L.Subtract, _L.Average, _L.Multiply, _L.Maximum, _L.Minimum)  # channel by channel
_ELEMENTWISE = {
    "linear", "relu", "relu6", "elu", "selu", "gelu", "tanh", "sigmoid", "hard_sigmoid", "swish", "silu", "softplus",
    "softsign", "exponential", "leaky_relu", "mish",
}  # fmt: skip


class ChannelLabels:
    """Labels of the channels (last axis) of every tensor of a graph.

    Attributes:
      graph: the graph.
      weighted: the steps whose layers start new labels: dense and convolution layers, Bayesian or plain.
      kept: the steps whose layers have weights for each channel by itself, as depthwise convolutions.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.weighted = [step for step in graph.steps if flow_of(step.layer) == "mixes"]
        self.kept = [step for step in graph.steps if flow_of(step.layer) == "keeps"]
        self._labels: dict[int, np.ndarray] = {}
        self._parent: list[int] = []
        self._pinned: set[int] = set()
        for step in graph.steps:
            self._labels[step.output] = self._follow(step)
        for tensor in graph.outputs:
            self._pin(self._labels[tensor])

    def of(self, tensor: int) -> np.ndarray:
        """Labels [channels] of a tensor; channels with equal labels, anywhere, go together."""
        return np.array([self._root(int(label)) for label in self._labels[tensor]], dtype=np.int64)

    @property
    def count(self) -> int:
        """Labels are integers below this."""
        return len(self._parent)

    @property
    def pinned(self) -> np.ndarray:
        """Labels that must stay: inputs and outputs of the model, and of layers whose channels cannot be told apart."""
        return np.unique([self._root(label) for label in self._pinned])

    def _follow(self, step: Step) -> np.ndarray:
        layer, inputs = step.layer, [self._labels[tensor] for tensor in step.inputs]
        flow = flow_of(layer)
        if flow in ("mixes", "keeps"):
            made = self._new(step) if flow == "mixes" else along(inputs[0], width_of(step))
            if not is_elementwise(layer):  # each of a softmax's outputs depends on all of its units
                self._pin(made)
            return made
        if keeps_channels(step):
            return inputs[0]
        if isinstance(layer, _L.Flatten) and layer.data_format == "channels_last":
            return np.tile(inputs[0], positions(step, len(inputs[0])))
        if joins_channels(step) and len({len(labels) for labels in inputs}) == 1:
            return self._join(inputs)
        if isinstance(layer, _L.Concatenate) and layer.axis in (-1, len(step.shape) - 1):
            return np.concatenate(inputs)
        for labels in inputs:
            self._pin(labels)
        made = self._new(step)
        self._pin(made)
        return made

    def _new(self, step: Step) -> np.ndarray:
        start, width = len(self._parent), width_of(step)
        self._parent.extend(range(start, start + width))
        return np.arange(start, start + width)

    def _join(self, several: list[np.ndarray]) -> np.ndarray:
        for other in several[1:]:
            for a, b in zip(several[0], other, strict=True):
                self._parent[self._root(int(b))] = self._root(int(a))
        return several[0]

    def _root(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label

    def _pin(self, labels: np.ndarray) -> None:
        self._pinned.update(labels.tolist())


def flow_of(layer: Any) -> Flow:
    """How channels go through a layer that is of some kind; "unknown" for any other."""
    kind = kind_of(layer)
    return "unknown" if kind is None else kind.flow(layer)


def is_elementwise(layer: Any) -> bool:
    """Whether the layer's activation treats channels one by one; only known ones are taken to."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, _L.Layer):  # Dense(activation=LeakyReLU())
        return isinstance(activation, ACTIVATIONS) and is_elementwise(activation)
    return activation_name(layer) in _ELEMENTWISE


def is_identity(layer: Any) -> bool:
    """Whether the layer changes nothing outside training; one of a class of the user's own may."""
    return isinstance(layer, IDENTITIES) and type(layer).call in {kind.call for kind in IDENTITIES}


def joins_channels(step: Step) -> bool:
    """Whether channel i of the output depends on channel i of each input alone."""
    return isinstance(step.layer, _JOINING)


def is_normalization(step: Step) -> bool:
    """Batch normalization over the last axis."""
    last = len(step.shape) - 1
    return isinstance(step.layer, _L.BatchNormalization) and step.layer.axis in ([last], last)


def keeps_channels(step: Step) -> bool:
    """Whether channel i of the output depends on channel i of the one input alone."""
    layer = step.layer
    if isinstance(layer, ACTIVATIONS):
        return is_elementwise(layer)
    if isinstance(layer, POOLING):
        return layer.data_format == "channels_last"
    return is_identity(layer) or is_normalization(step)


def width_of(step: Step) -> int:
    """How many channels a step makes; 0 where it is not known, or where it makes one number, as the size of a batch is."""
    return int(step.shape[-1] or 0) if step.shape else 0


def positions(step: Step, channels: int) -> int:
    """How many positions a flatten step lays side by side."""
    return math.prod(size or 0 for size in step.shape[1:]) // channels
