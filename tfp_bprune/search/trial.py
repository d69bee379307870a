"""One trial: prune and evaluate. The network is built and its examples are put on the device once; masks change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.data import Split
from tfp_bprune.evaluate.masked import MaskedNetwork, batches
from tfp_bprune.evaluate.metrics import classification
from tfp_bprune.evaluate.uncertainty import entropy
from tfp_bprune.models.heads import heads_of
from tfp_bprune.prune.select import prunable_weights
from tfp_bprune.types import Criterion, PruneError


@dataclass(frozen=True)
class Answers:
    """What a network said of some examples.

    Attributes:
      probabilities: of each class [n, classes].
      labels: true classes [n].
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Which examples are classified rightly [n]."""
        return self.probabilities.argmax(1) == self.labels

    @property
    def margin(self) -> np.ndarray:
        """By how much log probability the true class leads the best other [n], nats; negative where another leads."""
        rows = np.arange(len(self.labels))
        logs = np.log(np.maximum(self.probabilities, 1e-30))
        others = logs.copy()
        others[rows, self.labels] = -np.inf
        return logs[rows, self.labels] - others.max(1)

    @property
    def entropy(self) -> np.ndarray:
        """Predictive entropy [n], nats."""
        return entropy(self.probabilities)

    def scores(self) -> dict[str, float]:
        """`accuracy`, `nll`, `ece` and `brier`."""
        return classification(self.probabilities, self.labels)


class Evaluator(MaskedNetwork):
    """The posterior mean of a network under any masks, and examples kept on the device.

    Args:
      model: what `prune` takes.
      criterion: "snr" or "magnitude", which decides what is prunable.

    Raises:
      PruneError: nothing is prunable, or the network is no classifier.
    """

    def __init__(self, model: Any, criterion: Criterion) -> None:
        super().__init__(model, prunable_weights(model, criterion))
        shape = self.network.output_shape
        classifies = all(head.task == "classification" for head in heads_of(model).values()) and isinstance(
            shape, tuple
        )
        if not classifies or len(shape) != 2 or shape[-1] < 2:
            raise PruneError(
                f"model {model.name!r} gives outputs of shape {shape}: a search expects logits [batch, classes]"
            )

    def on(self, split: Split) -> Examples:
        """The examples of a split, put on the device."""
        return Examples(self, split)


class Examples:
    """Examples on the device and the compiled pass over them; see `Evaluator.on`."""

    def __init__(self, evaluator: Evaluator, split: Split) -> None:
        self.evaluator, self.labels = evaluator, split.y
        self._batches = list(batches(split.x))

    def answers(self, masks: Mapping[str, np.ndarray]) -> Answers:
        """What the network under `masks` says of the examples."""
        self.evaluator.hold(masks)
        return Answers(self.as_held(), self.labels)

    def as_held(self) -> np.ndarray:
        """Of each class [n, classes], by the network as it is held."""
        return self.evaluator.of(self._batches)
