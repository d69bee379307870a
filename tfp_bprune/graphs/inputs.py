"""Which inputs of a network anything reads: features one by one where they reach a dense layer, channels elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.graphs import dead
from tfp_bprune.graphs.channels import ChannelLabels, flow_of
from tfp_bprune.graphs.graph import Step
from tfp_bprune.graphs.heads import input_names
from tfp_bprune.types import Json

Places = list[np.ndarray]
_MOST = 2**24  # whole numbers that float32 tells apart


@dataclass(frozen=True)
class InputUse:
    """What of one input is read.

    Attributes:
      by: "feature", each number of an example by itself, or "channel", the last axis, of which all positions are read alike.
      of: how many there are.
      which: the numbers of those that something reads, from 0 on, features in the order of a flattened example.
    """

    by: Literal["feature", "channel"]
    of: int
    which: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether all are read."""
        return len(self.which) == self.of

    def to_json(self) -> Json:
        """As plain data, with `read`, how many are."""
        return {"by": self.by, "of": self.of, "read": len(self.which), "which": list(self.which)}


def read_inputs(model: Any) -> dict[str, InputUse]:
    """What of each input of `model`, by name, has an effect on an output; empty where channels cannot be followed.

    Where that is not known, an input counts as read: what is said not to be read may hold any number.
    """
    labels = dead.labels_of(model)
    if labels is None:
        return {}
    steps = (*labels.weighted, *labels.kept)
    kernels = {step.layer.name: dead.kernels_of(step.layer) for step in steps}
    constants = dead.constants(labels, kernels)
    following = _Following(labels, kernels, constants)
    return {
        name: following.use_of(tensor._keras_history.layer)
        for name, tensor in zip(input_names(model), model.inputs, strict=True)
    }


class _Following:
    """The numbers of the inputs on their way to the layers that read them."""

    def __init__(
        self, labels: ChannelLabels, kernels: dict[str, dead.Kernels], constants: dict[int, np.ndarray]
    ) -> None:
        self._labels, self._kernels, self._constants = labels, kernels, constants
        self._needed = dead.needed(labels, kernels, constants)
        self._wanted = dead.needed(
            labels, kernels, constants, labels.required
        )  # inputs too, only if anything reads them
        starts = [step for step in labels.graph.steps if not step.inputs]
        self._starts = {id(step.layer): step for step in starts}
        self._codes = _codes(starts)
        self._read: set[float] = set()
        self._follow()

    def use_of(self, layer: Any) -> InputUse:
        """Of the input that an input layer is."""
        step = self._starts[id(layer)]
        channels = self._wanted[self._labels.of(step.output)]
        codes = self._codes.get(step.output)
        if codes is None:
            return _use("channel", channels)
        read = np.isin(codes[0], list(self._read))
        by_channel = read.reshape(-1, read.shape[-1])
        if read.ndim > 1 and (by_channel == by_channel.any(0)).all():
            return _use("channel", by_channel.any(0))
        return _use("feature", read.ravel())

    def _follow(self) -> None:
        places: dict[int, Places | None] = {}
        for step in self._labels.graph.steps:
            given = [places[tensor] for tensor in step.inputs]
            codes = self._codes.get(step.output)
            places[step.output] = _moved(step, given) if step.inputs else None if codes is None else [codes]
            if places[step.output] is None:
                for tensor, arrays in zip(step.inputs, given, strict=True):
                    self._mark(arrays, self._read_by(step, tensor))
        for tensor in self._labels.graph.outputs:
            self._mark(places[tensor], None)

    def _read_by(self, step: Step, tensor: int) -> np.ndarray:
        """Which channels of a tensor a layer reads."""
        kernels = self._kernels.get(step.layer.name)
        if kernels is not None and flow_of(step.layer) == "mixes":
            made = self._needed[self._labels.of(step.output)]
            return kernels.live[:, made].any(1) & ~dead.foldable(kernels, dead.constant_of(step, self._constants))
        return self._wanted[self._labels.of(tensor)]

    def _mark(self, arrays: Places | None, channels: np.ndarray | None) -> None:
        for array in arrays or ():
            read = array if channels is None or len(channels) != array.shape[-1] else array[..., channels]
            self._read.update(read.ravel().tolist())


def _use(by: Literal["feature", "channel"], read: np.ndarray) -> InputUse:
    return InputUse(by, read.size, tuple(np.flatnonzero(read).tolist()))


def _codes(starts: Sequence[Step]) -> dict[int, np.ndarray]:
    """For each number of an example one of its own, [1, ...] for each input of which the sizes are known.

    Sums and means of several are none of them, but by chance, which tells a layer that mixes from one that moves.
    """
    fixed = [step for step in starts if step.shape[1:] and None not in step.shape[1:]]
    sizes = [math.prod(size or 0 for size in step.shape[1:]) for step in fixed]
    if not 0 < sum(sizes) <= _MOST:
        return {}
    apart = _MOST // sum(sizes)
    codes = np.cumsum(np.random.default_rng(0).integers(1, apart + 1, sum(sizes))).astype(np.float32)
    parts = np.split(codes, np.cumsum(sizes)[:-1])
    return {step.output: part.reshape(1, *step.shape[1:]) for step, part in zip(fixed, parts, strict=True)}


def _moved(step: Step, given: Sequence[Places | None]) -> Places | None:
    """Where the numbers of the inputs are after a layer that only moves them, or looks at each by itself."""
    if step.is_noisy or any(arrays is None for arrays in given):
        return None
    several = [arrays for arrays in given if arrays is not None]
    count = max(map(len, several))
    filled = [[*arrays, *[np.zeros_like(arrays[0])] * (count - len(arrays))] for arrays in several]
    rule, found = step.rule, []
    for parts in zip(*filled, strict=True):
        made = rule.places(step.layer, [tf.constant(part) for part in parts])
        if made is None:
            return None
        found += [np.asarray(one) for one in made]
    known = np.unique(np.concatenate([np.zeros(1, np.float32), *(part.ravel() for parts in filled for part in parts)]))
    return found if all(np.isin(one, known).all() for one in found) else None
