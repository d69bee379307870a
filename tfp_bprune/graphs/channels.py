"""Which channels of a network belong together: what has to go if one of them goes.

Tensors that must keep the same channels (through activation, pooling, batch normalization, addition, flatten,
concatenation) share labels. A dense or convolution layer starts new labels; one that is called several times has the same
channels in every call. A label goes from every tensor or from none, so that removal keeps all shapes consistent, residual
additions included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune.graphs.graph import Graph, Step
from tfp_bprune.layers import kind_of
from tfp_bprune.layers.kind import Flow, along
from tfp_bprune.layers.rules import is_elementwise


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
        self._first: dict[int, Step] = {}  # call of each layer, by its id
        self._parent: list[int] = []
        self._pinned: set[int] = set()
        self._entering: set[int] = set()
        for step in graph.steps:
            self._labels[step.output] = self._follow(step)
            self._tie(step)
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
        return self._roots(self._pinned | self._entering)

    @property
    def required(self) -> np.ndarray:
        """Those of them that something requires, as nothing does of an input that is not read."""
        return self._roots(self._pinned)

    def _roots(self, labels: set[int]) -> np.ndarray:
        return np.unique([self._root(label) for label in labels]).astype(np.int64)

    def _tie(self, step: Step) -> None:
        """Gives a layer that has the number of its channels, or weights for each, the same channels in every call."""
        first = self._first.setdefault(id(step.layer), step)
        if first is step or not (flow_of(step.layer) in ("mixes", "keeps") or step.rule.sized):
            return
        for before, now in ((first.inputs[0], step.inputs[0]), (first.output, step.output)):
            one, other = self._labels[before], self._labels[now]
            if len(one) == len(other):
                self._join([one, other])
            else:  # as of a shared Reshape
                self._pin(one)
                self._pin(other)

    def _follow(self, step: Step) -> np.ndarray:
        layer, inputs = step.layer, [self._labels[tensor] for tensor in step.inputs]
        flow = flow_of(layer)
        if flow in ("mixes", "keeps"):
            made = self._new(step) if flow == "mixes" else along(inputs[0], width_of(step))
            if not is_elementwise(layer):  # each of a softmax's outputs depends on all of its units
                self._pin(made)
            return made
        arranged = step.rule.channels(layer, inputs, step.shape) if inputs else None
        if arranged is not None:
            return self._join(arranged)
        for labels in inputs:
            self._pin(labels)
        made = self._new(step)
        (self._pinned if inputs else self._entering).update(made.tolist())
        return made

    def _new(self, step: Step) -> np.ndarray:
        start, width = len(self._parent), width_of(step)
        self._parent.extend(range(start, start + width))
        return np.arange(start, start + width)

    def _join(self, several: Sequence[np.ndarray]) -> np.ndarray:
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


def width_of(step: Step) -> int:
    """How many channels a step makes; 0 where it is not known, or where it makes one number, as the size of a batch is."""
    return int(step.shape[-1] or 0) if step.shape else 0
