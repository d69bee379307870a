"""What a network, or an export of one, says of examples: `Prediction`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from tfp_bprune.data.names import plain_name
from tfp_bprune.graphs.heads import Head
from tfp_bprune.types import BpruneError, DataError, class_names_of

_UNSAID = ("probabilities", "mean", "draws", "interval", "prediction_set")  # whose averages tell nothing
_REMEDIES = {
    "prediction_set": "export with conformal=0.9 and predict by the export",
    "epistemic": "predict with predictive='moments' or 'sampled'",
    "aleatoric": "predict with predictive='moments' or 'sampled'",
    "weights_std": "predict with predictive='moments' or 'sampled'",
    "noise_std": "end the network in a GaussianOutput, which learns the noise",
}


def reach_of(level: float) -> float:
    """How many deviations from the mean of a normal its central interval of probability `level` goes."""
    return math.sqrt(2) * float(special.erfinv(level))


def pandas_or(otherwise: str) -> Any:
    """The library of data frames.

    Args:
      otherwise: what gives the same without it.

    Raises:
      BpruneError: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise BpruneError(f"to_frame needs pandas: pip install pandas; {otherwise}") from error
    return pandas


class MissingAnswer(BpruneError, AttributeError):
    """Something was asked of a prediction that it does not hold."""


@dataclass(frozen=True, repr=False)
class Prediction:
    """What is said of n examples, as arrays.

    Attributes:
      outputs: everything by name, as an export gives it; of several outputs each name begins with that of its output.
      heads: what each output means, by its name.
      predictive: "mean", "sampled" or "moments".
      samples: draws, where it was sampled.

    Of class outputs there are `probabilities` [n, ..., classes], `entropy` in nats [n, ...] and its two parts, `aleatoric` and
    `epistemic`; of a regression `mean` [n] or [n, targets], `noise_std` and `weights_std`. See `prediction.answers`. Of a
    network with several outputs, `prediction["name"]` has these of one.

    >>> import numpy as np
    >>> said = Prediction({"mean": np.zeros(3), "noise_std": np.ones(3)}, {"inputs": Head("gaussian")}, "mean")
    >>> said.interval(0.95)[1].round(2)
    array([1.96, 1.96, 1.96])
    """

    outputs: dict[str, np.ndarray]
    heads: dict[str, Head]
    predictive: str
    samples: int | None = None

    def __len__(self) -> int:
        return len(next(iter(self.outputs.values())))

    def __getitem__(self, name: str) -> Prediction:
        """What is said of the output `name`.

        Raises:
          DataError: there is none of that name.
        """
        if name not in self.heads:
            raise DataError(f"there is no output {name!r}: expected one of {', '.join(map(repr, self.heads))}")
        if len(self.heads) == 1:
            return self
        prefix = f"{plain_name(name)}_"
        longer = [
            other for one in self.heads if (other := f"{plain_name(one)}_").startswith(prefix) and other != prefix
        ]
        found = {
            key.removeprefix(prefix): value
            for key, value in self.outputs.items()
            if key.startswith(prefix) and not any(key.startswith(other) for other in longer)
        }
        return Prediction(found, {name: self.heads[name]}, self.predictive, self.samples)

    @property
    def probabilities(self) -> np.ndarray:
        """Of classes or labels [n, ..., classes]; of a binary output that of the second class [n, ..., 1]."""
        return self._held("probabilities")

    @property
    def entropy(self) -> np.ndarray:
        """Of the probabilities, in nats [n, ...]: all that is uncertain."""
        return self._held("entropy")

    @property
    def epistemic(self) -> np.ndarray:
        """What draws of the weights disagree about: the mutual information of class and weights, in nats [n, ...]."""
        return self._held("epistemic")

    @property
    def aleatoric(self) -> np.ndarray:
        """What every draw is unsure of: their mean entropy, in nats [n, ...]."""
        return self._held("aleatoric")

    @property
    def prediction_set(self) -> np.ndarray:
        """Which classes together hold the right one with the probability that the export promises [n, classes]."""
        return self._held("prediction_set")

    @property
    def mean(self) -> np.ndarray:
        """Of a regression [n] or [n, targets], in target units, as deviations are."""
        return self._held("mean")

    @property
    def noise_std(self) -> np.ndarray:
        """The deviation of targets from the mean that the network learned [n] or [n, targets]."""
        return self._held("noise_std")

    @property
    def weights_std(self) -> np.ndarray:
        """The deviation of the mean over draws of the weights [n] or [n, targets]."""
        return self._held("weights_std")

    def _held(self, name: str) -> np.ndarray:
        head = self.head  # which refuses several
        if name in self.outputs:
            return self.outputs[name]
        may_have = head.classifies == (name in ("epistemic", "aleatoric", "prediction_set"))
        remedy = f"; {_REMEDIES[name]}" if name in _REMEDIES and may_have else ""
        raise MissingAnswer(
            f"a {head.task} predicted by {self.predictive!r} has no {name}: it has {', '.join(self.outputs)}{remedy}"
        )

    @property
    def head(self) -> Head:
        """What the one output means.

        Raises:
          MissingAnswer: there are several.
        """
        if len(self.heads) > 1:
            names = ", ".join(map(repr, self.heads))
            raise MissingAnswer(
                f"the network has the outputs {names}: ask for one, as in prediction[{next(iter(self.heads))!r}]"
            )
        return next(iter(self.heads.values()))

    @property
    def labels(self) -> np.ndarray:
        """The class with the largest probability [n, ...]; of a binary output 0 or 1, of several labels a 0 or 1 each."""
        if self.head.task == "classification":
            return self.probabilities.argmax(-1)
        second = (self.probabilities > 0.5).astype(np.int64)
        return second[..., 0] if self.head.task == "binary" else second

    @property
    def confidence(self) -> np.ndarray:
        """The probability of the label that is the likelier one [n, ...]."""
        if self.head.task == "classification":
            return self.probabilities.max(-1)
        likelier = np.maximum(self.probabilities, 1 - self.probabilities)
        return likelier[..., 0] if self.head.task == "binary" else likelier

    @property
    def std(self) -> np.ndarray:
        """The deviation of a target from the mean: that of the noise and that over the weights together."""
        mean, parts = self.mean, [self.outputs[key] for key in ("noise_std", "weights_std") if key in self.outputs]
        if not parts:
            raise MissingAnswer(
                f"nothing is said of deviations from the mean: {_REMEDIES['noise_std']}, or {_REMEDIES['weights_std']}"
            )
        return np.broadcast_to(np.sqrt(sum(np.square(part) for part in parts)), mean.shape)

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """The central interval that holds a target with probability `level`, of a normal with `mean` and `std`.

        Of a network that says nothing of noise it is the interval of the mean alone.

        Raises:
          DataError: `level` is not in (0, 1).
          MissingAnswer: it is no regression, or nothing is said of deviations.
        """
        if not 0 < level < 1:
            raise DataError(f"level must be in (0, 1), got {level}")
        reach = reach_of(level) * self.std
        return self.mean - reach, self.mean + reach

    def columns(self, class_names: Any = None) -> dict[str, np.ndarray]:
        """Everything as columns [n] by name, as `to_frame` has it.

        Args:
          class_names: of the classes or labels, in their order; numbers by default.

        Raises:
          DataError: there is not one answer an example, or not a name for each class.
        """
        if len(self.heads) > 1:
            if class_names is not None and not isinstance(class_names, Mapping):
                raise DataError(
                    f"class_names is {class_names!r}: expected a dictionary by output, {', '.join(self.heads)}"
                )
            return {
                f"{plain_name(name)}_{key}": column
                for name in self.heads
                for key, column in self[name].columns((class_names or {}).get(name)).items()
            }
        return _columns_of(self, class_names)

    def to_frame(self, class_names: Any = None) -> Any:
        """A `pandas.DataFrame` of `columns`: the label or mean, its probabilities, what is uncertain; a row an example.

        Raises:
          BpruneError: pandas is not installed.
          DataError: as in `columns`.
        """
        return pandas_or("columns() gives the same as arrays").DataFrame(self.columns(class_names))

    def __repr__(self) -> str:
        way = f"{self.samples} samples" if self.samples else self.predictive
        return f"Prediction({len(self):,} examples, {way}: {'; '.join(map(self._said_of, self.heads))})"

    def _said_of(self, name: str) -> str:
        said = self[name]
        figures = {key: value for key, value in said.outputs.items() if key not in _UNSAID}
        means = [f"{key} {float(np.mean(value)):.4g}" for key, value in figures.items()]
        prefix = f"{name}: " if len(self.heads) > 1 else ""
        return (
            f"{prefix}{said.head.task}, {', '.join(['on average ' + means[0], *means[1:]]) if means else 'means alone'}"
        )


def _columns_of(said: Prediction, class_names: Any) -> dict[str, np.ndarray]:
    main = said.probabilities if said.head.classifies else said.mean
    if main.ndim > 2 or (said.head.classifies and said.labels.ndim > (2 if said.head.task == "multilabel" else 1)):
        raise DataError(
            f"the network answers at each of {main.shape[1:-1]} positions: expected one answer an example, use .outputs"
        )
    columns: dict[str, np.ndarray] = {}
    for key, value in said.outputs.items():
        if key == "probabilities":
            names = _names(said, class_names)
            if said.head.task != "multilabel":
                columns["label"] = np.asarray(names)[said.labels] if class_names is not None else said.labels
                columns["confidence"] = said.confidence
            both = np.concatenate([1 - value, value], 1) if said.head.task == "binary" else value
            columns |= {f"probability_{name}": both[:, i] for i, name in enumerate(names)}
        elif value.ndim == 1:
            columns[key] = value
        elif key == "interval":
            ends = {"lower": value[..., 0], "upper": value[..., 1]}
            columns |= {
                name + (f"_{i}" if end.ndim > 1 else ""): column
                for name, end in ends.items()
                for i, column in enumerate(end.reshape(len(end), -1).T)
            }
        else:
            of_labels = _names(said, class_names) if said.head.classifies else range(value.shape[1])
            columns |= {f"{key}_{name}": value[:, i] for i, name in zip(range(value.shape[1]), of_labels, strict=True)}
    return columns


def _names(said: Prediction, given: Any) -> list[Any]:
    return class_names_of(given, 2 if said.head.task == "binary" else said.probabilities.shape[-1])
