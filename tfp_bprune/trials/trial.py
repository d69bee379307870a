"""One trial: prune and evaluate. The network is built and its examples are put on the device once; masks change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from tfp_bprune.data.arrays import leaves
from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.masked import MaskedNetwork, Masks, batches
from tfp_bprune.evaluation.metrics import classification, of_two
from tfp_bprune.evaluation.uncertainty import entropy
from tfp_bprune.graphs.heads import Head
from tfp_bprune.prediction.grids import storage_of
from tfp_bprune.prediction.kernels import rounded
from tfp_bprune.prediction.lower import channels_of
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.types import Criterion

Bits = Mapping[str, int]  # of the weights of layers, by the layer's name; those not in it are float32
WHOLE: Bits = MappingProxyType({})


@dataclass(frozen=True)
class Answers:
    """What a classifier said of some examples.

    Attributes:
      probabilities: of each class [n, classes]; where an example has several questions, its pixels, steps or labels,
        [n, questions, classes].
      labels: true classes [n], or [n, questions].
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which questions are answered rightly, of the shape of `labels`."""
        return self.probabilities.argmax(-1) == self.labels

    @property
    def accuracy(self) -> np.ndarray:
        """The part of its questions that each example has right [n]."""
        right = self.right
        return right.reshape(len(right), -1).mean(1)

    @property
    def margin(self) -> np.ndarray:
        """By how much log probability the true class leads the best other, nats, of the shape of `labels`; negative where
        another leads."""
        logs = np.log(np.maximum(self.probabilities, 1e-30))
        true = self.labels[..., None]
        others = logs.copy()
        np.put_along_axis(others, true, -np.inf, -1)
        return np.take_along_axis(logs, true, -1)[..., 0] - others.max(-1)

    @property
    def entropy(self) -> np.ndarray:
        """Predictive entropy [n], nats, summed over an example's questions."""
        each = entropy(self.probabilities)
        return each.reshape(len(each), -1).sum(1)

    def scores(self) -> dict[str, float]:
        """`accuracy`, `nll`, `ece` and `brier`, over all questions."""
        return classification(self.probabilities.reshape(-1, self.probabilities.shape[-1]), self.labels.reshape(-1))


@dataclass(frozen=True)
class Numbers:
    """What a regression said of some examples.

    Attributes:
      mean: predicted [n, ...].
      labels: targets [n, ...].
    """

    mean: np.ndarray
    labels: np.ndarray

    @property
    def squares(self) -> np.ndarray:
        """Squared error of each example [n], the mean over its numbers, in squared target units."""
        squares = np.square(self.mean - self.labels)
        return squares.reshape(len(squares), -1).mean(1)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, target units."""
        return float(np.sqrt(self.squares.mean()))

    def scores(self) -> dict[str, float]:
        """`rmse`."""
        return {"rmse": self.rmse}


def said(head: Head, outputs: np.ndarray, targets: np.ndarray) -> Answers | Numbers:
    """What finished outputs [n, ...] say, beside the targets."""
    if head.task in ("regression", "gaussian"):
        width = outputs.shape[-1] // 2 if head.task == "gaussian" else outputs.shape[-1]
        mean = outputs[..., :width]
        return Numbers(mean, np.asarray(targets, np.float64).reshape(mean.shape))
    second = outputs[..., 0] if head.task == "binary" else outputs
    both = outputs if head.task == "classification" else of_two(second)
    labels = np.asarray(targets).reshape(both.shape[:-1])
    if labels.ndim == 1:
        return Answers(both, labels)
    return Answers(both.reshape(len(both), -1, both.shape[-1]), labels.reshape(len(labels), -1))


class Evaluator(MaskedNetwork):
    """The posterior mean of a network under any masks, and examples kept on the device.

    Args:
      model: what `prune` takes, with one output.
      criterion: "snr" or "magnitude", which decides what is prunable.

    Raises:
      PruneError: nothing is prunable, or the network has several outputs.
      BpruneError: what the output means is not certain.
    """

    def __init__(self, model: Any, criterion: Criterion) -> None:
        super().__init__(model, prunable_weights(model, criterion))
        self._bits: Bits = {}

    def hold(self, masks: Masks, bits: Bits = WHOLE) -> None:
        """Removes the weights whose mask is False, and rounds those of layers in `bits` as an export does."""
        for name, layer in self.owners.items():
            if bits.get(layer.name) != self._bits.get(layer.name):
                self._held[name] = np.zeros(0, bool)  # unlike any mask: to be assigned anew
        self._bits = dict(bits)
        super().hold(masks)

    def _left(self, name: str, mask: np.ndarray | None) -> np.ndarray:
        left, layer = super()._left(name, mask), self.owners[name]
        if (bits := self._bits.get(layer.name)) is None:
            return left
        return rounded(left, storage_of(bits), channels_of(layer, name.rpartition("/")[2], left.ndim))

    def on(self, split: Split) -> Examples:
        """The examples of a split, put on the device."""
        return Examples(self, split)


class Examples:
    """Examples on the device and the compiled pass over them; see `Evaluator.on`."""

    def __init__(self, evaluator: Evaluator, split: Split) -> None:
        self.evaluator = evaluator
        self.labels = leaves(split.y)[0]
        self._batches = list(batches(split.x, evaluator.network))

    def answers(self, masks: Masks, bits: Bits = WHOLE) -> Answers | Numbers:
        """What the network under `masks`, its layers rounded to `bits`, says of the examples."""
        self.evaluator.hold(masks, bits)
        return said(self.evaluator.head, self.as_held(), self.labels)

    def as_held(self) -> np.ndarray:
        """Probabilities [n, ...] or numbers, by the network as it is held."""
        return self.evaluator.of(self._batches)
