"""What pictures take: a prediction with its targets, an evaluation, or arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.types import DataError


@dataclass(frozen=True)
class Answers:
    """Class answers [n] beside the truth.

    Attributes:
      probabilities: [n, classes].
      labels: the true class numbers [n]; None where they were not given.
      uncertain: what is said of uncertainty, by name [n].
    """

    probabilities: np.ndarray
    labels: np.ndarray | None
    uncertain: dict[str, np.ndarray]

    @property
    def right(self) -> np.ndarray:
        """Whether each answer is right [n].

        Raises:
          DataError: the truth was not given.
        """
        return self.probabilities.argmax(1) == self.truth

    @property
    def truth(self) -> np.ndarray:
        """The true class numbers [n].

        Raises:
          DataError: they were not given.
        """
        if self.labels is None:
            raise DataError("the plot compares predictions with the true classes: expected an Evaluation, or y")
        return self.labels

    def uncertainty(self, by: str) -> np.ndarray:
        """What is uncertain of each answer [n], by its name, or "confidence", 1 - the largest probability.

        Raises:
          DataError: there is none of that name.
        """
        if by == "confidence":
            return 1 - self.probabilities.max(1)
        if by not in self.uncertain:
            known = ", ".join(map(repr, [*self.uncertain, "confidence"]))
            raise DataError(
                f"the predictions have no {by!r}: expected one of {known}; predict with 'moments' or 'sampled' for more"
            )
        return self.uncertain[by]


def answers_of(said: Any, y: Any = None) -> Answers:
    """Of an `Evaluation`, of a `Prediction` and class numbers `y` [n], or of probabilities [n, classes] and `y`.

    Raises:
      DataError: it is none of these, or there is not one class for each answer.
    """
    if hasattr(said, "prediction"):
        said, y = said.prediction, said.targets if y is None else y
    outputs = getattr(said, "outputs", None)
    probabilities = np.asarray(said if outputs is None else said.probabilities, np.float64)
    if probabilities.ndim == 2 and probabilities.shape[1] == 1:
        probabilities = np.concatenate([1 - probabilities, probabilities], 1)
    if probabilities.ndim != 2 or (outputs is not None and said.head.task == "multilabel"):
        raise DataError(f"the plot needs one class per example: got probabilities of shape {probabilities.shape}")
    uncertain = {name: one for name, one in (outputs or {}).items() if np.shape(one) == (len(probabilities),)}
    if "entropy" not in uncertain:
        logs = np.log(np.where(probabilities > 0, probabilities, 1))
        uncertain["entropy"] = -(probabilities * logs).sum(1)
    labels = None if y is None else np.asarray(y)
    if labels is not None and labels.ndim == 2:
        labels = labels.argmax(1) if labels.shape[1] > 1 else labels[:, 0]
    if labels is not None and labels.shape != (len(probabilities),):
        raise DataError(f"{len(probabilities)} answers and targets {labels.shape}: expected one class for each")
    return Answers(probabilities, None if labels is None else labels.astype(np.int64), uncertain)
