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
    """The predictions for n examples, as arrays.

    Class outputs have `probabilities` [n, ..., classes], their `entropy` [n, ...] in nats and its two parts, `aleatoric` and
    `epistemic`. A regression has `mean`, `noise_std` and `weights_std` [n] or [n, targets] in target units. If a network has
    several outputs, `prediction["name"]` has these for one of them.

    Attributes:
      outputs: all arrays by name, as an export gives them; with several outputs, names are prefixed with that of the output.
      heads: what each output means, by its name.
      predictive: "mean", "sampled" or "moments".
      samples: number of draws, if it is "sampled".

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
        """Probabilities of classes or labels [n, ..., classes]; for a binary output, of the second class [n, ..., 1]."""
        return self._held("probabilities")

    @property
    def entropy(self) -> np.ndarray:
        """Total uncertainty: the entropy of the probabilities, in nats [n, ...]."""
        return self._held("entropy")

    @property
    def epistemic(self) -> np.ndarray:
        """Uncertainty about the weights: the mutual information of class and weights, in nats [n, ...]."""
        return self._held("epistemic")

    @property
    def aleatoric(self) -> np.ndarray:
        """Uncertainty that remains with known weights: the mean entropy over draws of the weights, in nats [n, ...]."""
        return self._held("aleatoric")

    @property
    def prediction_set(self) -> np.ndarray:
        """Conformal sets [n, classes]: true for the classes of a set that contains the right one with the promised probability."""
        return self._held("prediction_set")

    @property
    def mean(self) -> np.ndarray:
        """Mean of a regression [n] or [n, targets], in target units."""
        return self._held("mean")

    @property
    def noise_std(self) -> np.ndarray:
        """Standard deviation of the targets around the mean, as the network learned it [n] or [n, targets], in target units."""
        return self._held("noise_std")

    @property
    def weights_std(self) -> np.ndarray:
        """Standard deviation of the mean over draws of the weights [n] or [n, targets], in target units."""
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
        """What the output means.

        Raises:
          MissingAnswer: there are several outputs.
        """
        if len(self.heads) > 1:
            names = ", ".join(map(repr, self.heads))
            raise MissingAnswer(
                f"the network has the outputs {names}: ask for one, as in prediction[{next(iter(self.heads))!r}]"
            )
        return next(iter(self.heads.values()))

    @property
    def labels(self) -> np.ndarray:
        """The class with the largest probability [n, ...]; 0 or 1 for a binary output and for each of several labels."""
        if self.head.task == "classification":
            return self.probabilities.argmax(-1)
        second = (self.probabilities > 0.5).astype(np.int64)
        return second[..., 0] if self.head.task == "binary" else second

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted label [n, ...]."""
        if self.head.task == "classification":
            return self.probabilities.max(-1)
        likelier = np.maximum(self.probabilities, 1 - self.probabilities)
        return likelier[..., 0] if self.head.task == "binary" else likelier

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of a target [n] or [n, targets]: `noise_std` and `weights_std` combined."""
        mean, parts = self.mean, [self.outputs[key] for key in ("noise_std", "weights_std") if key in self.outputs]
        if not parts:
            raise MissingAnswer(
                f"the prediction has no standard deviations: {_REMEDIES['noise_std']}, or {_REMEDIES['weights_std']}"
            )
        return np.broadcast_to(np.sqrt(sum(np.square(part) for part in parts)), mean.shape)

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the central interval that contains a target with probability `level`, for a normal distribution.

        If the network gives no noise, it is the interval of the mean alone.

        Raises:
          DataError: `level` is not in (0, 1).
          MissingAnswer: this is no regression, or there are no standard deviations.
        """
        if not 0 < level < 1:
            raise DataError(f"level must be in (0, 1), got {level}")
        reach = reach_of(level) * self.std
        return self.mean - reach, self.mean + reach

    def columns(self, class_names: Any = None) -> dict[str, np.ndarray]:
        """Everything as columns [n] by name: label or mean, probabilities, uncertainties.

        Args:
          class_names: names of the classes or labels, in their order; numbers by default.

        Raises:
          DataError: an example has several answers, or the number of names is not the number of classes.
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
        """A `pandas.DataFrame` of `columns`, with a row for each example.

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
            f"the network answers at each of {main.shape[1:-1]} positions: expected one answer per example; use .outputs"
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
