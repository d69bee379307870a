"""How small or fast a network with so many weights left in each kernel would be, without exporting it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tfp_bprune.prediction.cost import TYPICAL, Costs, choose
from tfp_bprune.trials.ranking import Ranking
from tfp_bprune.trials.times import Times
from tfp_bprune.trials.trial import WHOLE, Bits, Evaluator
from tfp_bprune.types import BpruneError

TARGETS = ("nonzeros", "bytes", "latency")
_FLOAT = 4
_SKIP_EVERY = 255


class Sizes:
    """The three sizes of a network by its counts.

    `nonzeros`: weights left. `bytes`: what its kernels and everything else take in a SavedModel's files, by the rule of
    `prediction.stored`: four for each value and one for its gap, or dense; rounded ones as many bits as they have, a scale a channel,
    and the entropy of which are left. `latency`: microseconds at a batch of 64 by the
    costs of `prediction.cost`; convolutions run dense however many of their weights are gone. Or by `times` of exports, where whole
    units go.
    """

    def __init__(self, evaluator: Evaluator, times: Times | None = None) -> None:
        self._times = times
        self.shapes = {name: loc.shape for name, loc in evaluator.locs.items()}
        held = sum(math.prod(w.shape) for w in evaluator.network.weights)
        self._rest = _FLOAT * (held - sum(math.prod(shape) for shape in self.shapes.values()))

    def of(self, counts: Mapping[str, int], order: Ranking | None = None, bits: Bits = WHOLE) -> dict[str, float]:
        """All of them by name.

        Args:
          order: that the counts are of; by default they count weights.
          bits: of the weights of layers that are rounded.
        """
        whole = {name: (self.shapes[name], count) for name, count in counts.items()}
        kernels = whole if order is None else order.kernels(dict(counts))
        found: dict[str, Callable[[tuple[int, ...], int], Any]] = {
            "nonzeros": lambda shape, n: n,
            "latency": _latency,
        }
        sizes = {key: float(sum(by(*kernel) for kernel in kernels.values())) for key, by in found.items()}
        sizes["bytes"] = sum(_bytes(shape, n, bits.get(layer_of(name))) for name, (shape, n) in kernels.items())
        if self._times is not None:
            sizes["latency"] = self._times.of({name: shape for name, (shape, _) in kernels.items()})
        return sizes | {"bytes": sizes["bytes"] + self._rest}


def layer_of(tensor: str) -> str:
    """The name of the layer of a tensor "layer/kernel"."""
    return tensor.rpartition("/")[0]


def _bytes(shape: tuple[int, ...], count: int, bits: int | None = None) -> float:
    size = math.prod(shape)
    if bits is not None and size:  # a scale for each channel, and gaps as small as their entropy
        return count * bits / 8 + _FLOAT * shape[-1] + size * _entropy(count / size) / 8
    return min(_FLOAT * size, (_FLOAT + 1) * count + size / _SKIP_EVERY)


def _entropy(part: float) -> float:
    """Bits for each weight that say which part is left."""
    return -sum(p * math.log2(p) for p in (part, 1 - part) if p > 0)


def _latency(shape: tuple[int, ...], count: int) -> float:
    costs = Costs()
    if len(shape) != 2:
        return float(costs.dense(TYPICAL, (math.prod(shape), 1)))
    [form] = choose("auto", shape, count, costs, by_batch=False).forms
    return float(costs.of(form, TYPICAL, shape, count))


def check_target(target: str) -> None:
    """Refuses an unknown target.

    Raises:
      BpruneError: naming those there are.
    """
    if target not in TARGETS:
        raise BpruneError(f"unknown target {target!r}: expected one of {', '.join(TARGETS)}")
