"""`evaluate`: how good the answers of a network, or of an export, are, and how sure it is of that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.data.names import plain_name
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.data.targets import targets_like
from tfp_bprune.evaluation.intervals import Interval, Scored, intervals, of_classes, of_labels, of_numbers
from tfp_bprune.evaluation.metrics import EXTRA, of_two
from tfp_bprune.evaluation.predict import BATCH, answered, check_batch_size, gathered, prediction_of
from tfp_bprune.evaluation.prediction import Prediction, pandas_or, reach_of
from tfp_bprune.evaluation.runners import Wish, runner_for
from tfp_bprune.evaluation.session import Outputs
from tfp_bprune.graphs.heads import Said
from tfp_bprune.types import DataError, Json, Predictive, Task


@dataclass(frozen=True, repr=False)
class Evaluation(Mapping[str, float]):
    """Scores by name, as a mapping: `evaluation["accuracy"]`.

    Classes have `accuracy`, `nll` (nats per example), `ece` (expected calibration error), `brier` and `aurc` (area under the
    risk-coverage curve, ranked by entropy); several labels also have `exact_match`. A regression has `rmse` and, if it gives
    standard deviations, `nll` and `coverage`, the fraction of targets inside the central interval of probability `level`. The
    mean of each uncertainty is there too. With several outputs, names are prefixed with that of the output.

    Attributes:
      scores: the same as a dictionary.
      intervals: confidence interval (low, high) of each score at `level`: exact for fractions of examples (Clopper and Pearson),
        by bootstrap for all others.
      level: confidence level of the intervals, and probability of the interval that `coverage` refers to.
      prediction: the `Prediction` that was scored.
      targets: its targets: class numbers, zeros and ones, or numbers; a dictionary if there are several outputs.
    """

    scores: dict[str, float]
    intervals: dict[str, Interval]
    level: float
    prediction: Prediction
    targets: Any

    def __getitem__(self, name: str) -> float:
        if name not in self.scores:
            raise DataError(f"there is no score {name!r}: expected one of {', '.join(self.scores)}")
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def to_json(self) -> Json:
        """Scores and intervals as plain data."""
        return {
            "examples": len(self.prediction),
            "predictive": self.prediction.predictive,
            "level": self.level,
            **self.scores,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
        }

    def to_frame(self) -> Any:
        """A `pandas.DataFrame` with a row for each score and the columns `value`, `low` and `high`.

        Raises:
          BpruneError: pandas is not installed.
        """
        pandas = pandas_or("scores and intervals have the same")
        rows = {name: (value, *self.intervals[name]) for name, value in self.scores.items()}
        return pandas.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def __repr__(self) -> str:
        """A line a score, with its interval."""
        head = f"{len(self.prediction):,} examples, {self.prediction.predictive}, intervals of {100 * self.level:g} %"
        width = max(map(len, self.scores))
        lines = [
            f"  {name:{width}}  {value:.4f}  [{self.intervals[name][0]:.4f}, {self.intervals[name][1]:.4f}]"
            for name, value in self.scores.items()
        ]
        return "\n".join([head, *lines])


def evaluate(
    model: Any,
    data: Any,
    y: Any = None,
    *,
    predictive: Predictive | None = None,
    samples: int | None = None,
    batch_size: int = BATCH,
    seed: int | None = None,
    task: Said = None,
    from_logits: bool | None = None,
    level: float = 0.95,
    trust: bool = False,
    progress: bool = True,
) -> Evaluation:
    """Scores a network, or an export of it, on examples with their targets; each score has a confidence interval.

    Args:
      model: as in `predict`, as are `predictive`, `samples`, `batch_size`, `seed`, `task`, `from_logits`, `trust`, `progress`.
      data: all splits (the test split is scored), one split, a pair (x, y), or batches of pairs, such as a tf.data dataset; or
        the examples alone, with the targets in `y`.
      y: targets: class numbers or one-hot rows, zeros and ones, or numbers; for several outputs a list, or a dictionary by name.
      level: confidence level of the intervals.

    Returns:
      An `Evaluation`, a mapping from names to scores.

    Raises:
      DataError: there are no targets, or they do not suit the outputs.
      ExportError, BpruneError: as in `predict`.

    Example:
      scores = bp.evaluate(pruned, data, predictive="moments")
      scores["accuracy"], scores.intervals["accuracy"]
    """
    if not 0 < level < 1:
        raise DataError(f"level must be in (0, 1), got {level}")
    check_batch_size(batch_size)
    wish = Wish(predictive, samples, seed, task, from_logits, trust)
    with runner_for(model, wish, "evaluate") as runner:
        parts: list[Any] = []
        pairs = answered(runner, _pairs(data, y), batch_size, progress)
        prediction = prediction_of(runner, gathered(_keeping(parts, pairs)))
    return evaluated(prediction, _joined(parts), level)


def evaluated(prediction: Prediction, targets: Any, level: float = 0.95) -> Evaluation:
    """Scores of a prediction that was made already, against targets as `evaluate` takes them.

    Raises:
      DataError: the targets do not suit it.
    """
    scores: dict[str, float] = {}
    found: dict[str, Interval] = {}
    read = _by_output(prediction, targets)
    for name, one in read.items():
        prefix = f"{plain_name(name)}_" if len(read) > 1 else ""
        values, held = intervals(_scored(prediction[name], one, level), level)
        scores |= {prefix + key: value for key, value in values.items()}
        found |= {prefix + key: interval for key, interval in held.items()}
    return Evaluation(scores, found, level, prediction, read if len(read) > 1 else next(iter(read.values())))


def _keeping(kept: list[Any], pairs: Iterable[tuple[Outputs, Any]]) -> Iterator[Outputs]:
    """The outputs, whose targets go into `kept`."""
    for outputs, targets in pairs:
        if targets is None:
            raise DataError("evaluate got examples without targets: expected (x, y), batches of (x, y), or a split")
        kept.append(targets)
        yield outputs


def _pairs(data: Any, y: Any) -> Any:
    if isinstance(data, Splits):
        data = data.examples("test")
    if y is None:
        return data
    if isinstance(data, Split):
        raise DataError("evaluate got a split and targets: a split has its own, leave y out")
    return (data, y)


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts]) for key in first}
    if isinstance(first, tuple):
        return tuple(_joined([part[i] for part in parts]) for i in range(len(first)))
    return np.concatenate(parts)


def _by_output(prediction: Prediction, targets: Any) -> dict[str, np.ndarray]:
    """The targets of each output, in the one form that its task has."""
    names = list(prediction.heads)
    given: dict[str, Any]
    if isinstance(targets, dict):
        plain = {plain_name(str(key)): one for key, one in targets.items()}
        given = {name: plain[plain_name(name)] for name in names if plain_name(name) in plain}
    else:
        given = dict(zip(names, targets if isinstance(targets, tuple) else (targets,), strict=False))
    if set(given) != set(names) or (isinstance(targets, dict | tuple) and len(targets) != len(names)):
        had = ", ".join(map(repr, targets)) if isinstance(targets, dict) else f"{len(given)}"
        raise DataError(f"evaluate got targets {had}: expected some for {', '.join(map(repr, names))}")
    return {name: targets_for(prediction[name], one, name if len(names) > 1 else "") for name, one in given.items()}


def targets_for(prediction: Prediction, y: Any, name: str = "") -> np.ndarray:
    """Targets as the task of the one output has them.

    Raises:
      DataError: they do not suit its answers.
    """
    head = prediction.head
    task: Task = "regression" if head.task == "gaussian" else head.task
    shape = (prediction.probabilities if head.classifies else prediction.mean).shape
    return targets_like(np.asarray(y), task, shape, f"evaluate, target {name!r}," if name else "evaluate")


def _scored(said: Prediction, targets: np.ndarray, level: float) -> Scored:
    uncertain = {key: value for key, value in said.outputs.items() if key in EXTRA}
    if said.head.task == "multilabel":
        width = said.probabilities.shape[-1]
        return of_labels(said.probabilities.reshape(-1, width), targets.reshape(-1, width), uncertain)
    if said.head.classifies:
        both = of_two(said.probabilities[..., 0]) if said.head.task == "binary" else said.probabilities
        return of_classes(both, targets, uncertain)
    std = said.std if "noise_std" in said.outputs else None
    return of_numbers(said.mean, std, targets, uncertain, reach_of(level))
