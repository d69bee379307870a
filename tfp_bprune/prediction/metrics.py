"""How good a prediction is: arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfp_bprune.data.arrays import Arrays, count, leaves
from tfp_bprune.data.names import input_name, plain_name
from tfp_bprune.data.splits import Split
from tfp_bprune.types import DataError, Json

BINS = 15
_SLACK = 2e-3  # which float16 leaves of a sum of ten
Z_95 = 1.959963984540054
EXTRA = ("entropy", "epistemic", "aleatoric", "noise_std", "weights_std")
_ANSWERS = ("probabilities", "mean", *EXTRA)


def classification(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of predicted class probabilities [n, classes] against labels [n].

    Returns:
      `accuracy`; `nll`, nats per example; `ece`, expected calibration error; `brier`, the sum of squares over classes.

    Raises:
      DataError: these are no probabilities, such as logits, or no labels of them.
    """
    _check(probabilities, labels)
    check_probabilities(probabilities, sums=True)
    labels = _class_numbers(labels, probabilities.shape[-1])
    true = probabilities[np.arange(len(labels)), labels]
    with np.errstate(divide="ignore"):
        nll = -np.log(true)
    one_hot = np.eye(probabilities.shape[1])[labels]
    return {
        "accuracy": float(np.mean(probabilities.argmax(1) == labels)),
        "nll": float(nll.mean()),
        "ece": expected_calibration_error(probabilities, labels),
        "brier": float(np.square(probabilities - one_hot).sum(1).mean()),
    }


def multilabel(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of the probabilities of several labels [n, labels], each by itself, against zeros and ones [n, labels].

    Returns:
      `accuracy`, the part of all labels that are right; `exact_match`, of the examples with all of theirs right; `nll`, nats per
      example, summed over its labels; `ece` and `brier`, means over labels, each taken as a classification of two classes.
    """
    _check(probabilities, labels)
    check_probabilities(probabilities, sums=False)
    each = [classification(of_two(probabilities[:, i]), labels[:, i]) for i in range(labels.shape[1])]
    right = (probabilities > 0.5) == (labels > 0.5)
    return {
        "accuracy": float(right.mean()),
        "exact_match": float(right.all(1).mean()),
        "nll": float(sum(one["nll"] for one in each)),
        "ece": float(np.mean([one["ece"] for one in each])),
        "brier": float(np.mean([one["brier"] for one in each])),
    }


def check_probabilities(probabilities: np.ndarray, sums: bool) -> None:
    """Refuses what are no probabilities [n, classes] of classes, whose sum is 1, or [n, labels] of labels.

    Raises:
      DataError: they are of another shape, or are logits, or are not finite.
    """
    shape = np.shape(probabilities)
    if len(shape) != 2:
        raise DataError(f"probabilities must have the shape [n, classes], got {shape}")
    least, most = float(np.min(probabilities)), float(np.max(probabilities))
    off = float(np.abs(np.sum(probabilities, -1, dtype=np.float64) - 1).max()) if sums else 0.0
    if not (least >= -_SLACK and most <= 1 + _SLACK and off <= shape[1] * _SLACK):
        found = (
            f"rows whose sum is off 1 by {off:.3g}"
            if least >= 0 and most <= 1
            else f"numbers from {least:.3g} to {most:.3g}"
        )
        raise DataError(
            f"expected probabilities, got {found}: of logits take scipy.special.softmax(logits, -1), or ask `predict` for probabilities"
        )


def _class_numbers(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels [n] as whole numbers.

    Raises:
      DataError: they are none, or not of these classes.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "biuf" or (labels != np.floor(labels)).any():
        raise DataError(f"labels must be class numbers [n], got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"labels go from {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
    return labels.astype(np.int64)


def of_two(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of the second of two classes [...] as those of both [..., 2]."""
    second = np.asarray(probabilities, np.float64)
    return np.stack([1 - second, second], -1)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over `bins` equal bins of confidence (Guo et al. 2017, arXiv 1706.04599, eq. 3)."""
    right = probabilities.argmax(1) == labels
    gaps = np.bincount(bin_of(probabilities, bins), right.astype(float) - probabilities.max(1), bins)
    return float(np.abs(gaps).sum() / len(labels))


def bin_of(probabilities: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of confidence of each example [n], of `bins` equal ones over [0, 1]."""
    return np.minimum((probabilities.max(1) * bins).astype(int), bins - 1)


def regression(mean: np.ndarray, std: np.ndarray | None, targets: np.ndarray) -> dict[str, float]:
    """Scores of normal predictions (mean, std) [n], or [n, ...] for several numbers an example, against targets.

    Args:
      std: None where nothing is said of the noise; then `rmse` is all that can be told.

    Returns:
      `rmse`, target units; `nll`, nats per example, summed over its numbers; `coverage`: how often the central 95 % interval
      holds the target.
    """
    _check(mean, targets)
    if std is not None and not np.min(std) > 0:
        raise DataError(f"deviations must be positive, got {np.min(std):.3g}")
    error = targets - mean
    scores = {"rmse": float(np.sqrt(np.square(error).mean()))}
    if std is None:
        return scores
    z = error / std
    nats = 0.5 * np.square(z) + np.log(std)
    numbers = max(1, nats.size // len(nats))
    return scores | {
        "nll": float(numbers * (nats.mean() + 0.5 * math.log(2 * math.pi))),
        "coverage": float((np.abs(z) <= Z_95).mean()),
    }


def of_outputs(outputs: Mapping[str, np.ndarray], targets: Arrays) -> dict[str, float]:
    """Scores of an exported model's named outputs, with the mean uncertainties where there are any.

    Of sets of classes `set_coverage`, how often they hold the right one, and `set_size`, of how many they are; of conformal
    intervals `interval_coverage` and `interval_width`.

    Binary is a classification of two classes. Labels of each pixel or step count each, so that all but the `nll` of a
    regression are means over them. Of a regression without `noise_std`, `nll` and `coverage` are left out: how far weights
    differ is not how far targets do.

    Args:
      targets: of one output; or of several by name, whose scores then begin with that name.

    Raises:
      DataError: nothing to score, targets of another shape, or of an output that there is not.
    """
    if isinstance(targets, dict):
        return {
            f"{name}_{key}": score
            for name, one in targets.items()
            for key, score in of_outputs(_part(outputs, name), one).items()
        }
    if "probabilities" in outputs:
        scores = of_probabilities(outputs["probabilities"], targets)
    else:
        noise, std = outputs.get("noise_std"), None
        mean = outputs["mean"]
        if noise is not None:
            std = np.sqrt(np.square(noise) + np.square(outputs.get("weights_std", 0.0)))
        scores = regression(mean, std, _shaped(targets, mean, mean.shape))
    uncertain = {name: float(outputs[name].mean()) for name in EXTRA if name in outputs}
    return scores | uncertain | _of_conformal(outputs, targets)


def _of_conformal(outputs: Mapping[str, np.ndarray], targets: np.ndarray) -> dict[str, float]:
    if "prediction_set" in outputs and targets.size == len(outputs["prediction_set"]):
        sets = outputs["prediction_set"]
        held = sets[np.arange(len(sets)), _class_numbers(targets.reshape(-1), sets.shape[-1])]
        return {"set_coverage": float(held.mean()), "set_size": float(sets.sum(-1).mean())}
    if "interval" in outputs:
        low, high = np.moveaxis(outputs["interval"], -1, 0)
        within = (targets.reshape(low.shape) >= low) & (targets.reshape(low.shape) <= high)
        return {"interval_coverage": float(within.mean()), "interval_width": float((high - low).mean())}
    return {}


def of_probabilities(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Scores of probabilities by the shape of the targets: a class each [..., classes], the second of two classes [..., 1], or,
    where targets are of the same shape, several labels."""
    width = probabilities.shape[-1]
    if width > 1 and targets.shape == probabilities.shape:
        return multilabel(probabilities.reshape(-1, width), targets.reshape(-1, width))
    labels = _shaped(targets, probabilities, probabilities.shape[:-1])
    both = of_two(probabilities[..., 0]) if width == 1 else probabilities
    return classification(both.reshape(-1, both.shape[-1]), labels.reshape(-1))


def as_served(split: Split, manifest: Json) -> Split:
    """The split with inputs and outputs under the names that an export has for them, those of one alone as plain arrays."""
    inputs, outputs = manifest.get("inputs") or {"inputs": None}, manifest.get("outputs") or {"": None}
    return Split(split.name, _named(split.x, list(inputs), split.name), _named(split.y, list(outputs), split.name))


def _named(arrays: Arrays, names: list[str], name: str) -> Arrays:
    if len(names) == 1 == len(leaves(arrays)):
        return leaves(arrays)[0]
    given = {input_name(key): one for key, one in arrays.items()} if isinstance(arrays, dict) else {}
    if isinstance(arrays, tuple) and len(arrays) == len(names):
        return dict(zip(names, arrays, strict=True))
    if set(given) != set(map(input_name, names)):
        had = ", ".join(map(repr, arrays)) if isinstance(arrays, dict) else f"{len(leaves(arrays))} without names"
        raise DataError(f"{name} has {had}: the export expects {', '.join(map(repr, names))}")
    return {one: given[input_name(one)] for one in names}


def _part(outputs: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """What is said of the output `name`."""
    prefix = f"{plain_name(name)}_"
    found = {key: outputs[prefix + key] for key in _ANSWERS if prefix + key in outputs}
    if not {"probabilities", "mean"} & set(found):
        raise DataError(f"there is no output {name!r} to score: got {', '.join(outputs)}")
    return found


def _shaped(targets: np.ndarray, predictions: np.ndarray, shape: Any) -> np.ndarray:
    _check(predictions, targets)
    if targets.size != math.prod(shape):
        raise DataError(
            f"predictions {predictions.shape} cannot be scored against targets {targets.shape}: expected targets {tuple(shape)}"
        )
    return targets.reshape(shape)


def _check(predictions: np.ndarray, targets: np.ndarray) -> None:
    if len(targets) == 0:
        raise DataError("nothing to score: the split is empty, expected at least one example")
    if len(predictions) != count(targets):
        raise DataError(
            f"{len(predictions)} predictions cannot be scored against {len(targets)} targets: expected one of each"
        )
