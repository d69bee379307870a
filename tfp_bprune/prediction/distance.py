"""How far moments are from draws: the answers of both on examples, and their difference in a few numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import as_arrays, count, leaves, rows
from tfp_bprune.data.names import input_name, plain_name
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import DataError, ExportError, Json, Predictive

EXAMPLES = 500
DRAWS = 200
_AT_ONCE = 100  # examples; what is followed back through convolutions takes memory
_LEAST = 1e-6  # nats, or target units: an uncertainty below it is rounding


def check_validation(validation: Any, predictive: Predictive) -> None:
    """Refuses examples that nothing is compared on.

    Raises:
      ExportError: the predictive is another than "moments".
    """
    if validation is not None and predictive != "moments":
        raise ExportError(
            f"validation examples are for comparing 'moments' with draws, got them for {predictive!r}: leave them out"
        )


def distance_to_draws(moments: Predictor, sampled: Predictor, validation: Any, draws: int = DRAWS) -> Json:
    """How the answers of moments differ from the mean over draws of the same network.

    Args:
      moments, sampled: predictors of one model.
      validation: examples, an array or several by name or in the order of the inputs; at most 500 of them are taken, spread
        over all.
      draws: how many `sampled` makes.

    Returns:
      `examples`, `draws`, and of class outputs `probability`, the mean absolute difference of a probability; of regressions
      `mean`, that of a mean in units of the total standard deviation. `epistemic_ratio` or `weights_std_ratio`: the mean
      uncertainty by moments over that by draws, None where there is none; `rank_correlation` of the two over examples
      (Spearman), None where one does not differ between examples. Of several outputs each under its name.

    Raises:
      DataError: the examples are not what the network takes, or there are none.
      ExportError: an answer to them is not finite.
    """
    inputs = _chosen(ordered(moments, validation))
    ours, theirs = _answers(moments, inputs), _answers(sampled, inputs)
    found: Json = {"examples": len(inputs[0]), "draws": draws}
    if len(moments.heads) == 1:
        return found | compared(ours, theirs)
    for name in moments.heads:
        prefix = f"{plain_name(name)}_"
        found[name] = compared(_of_output(ours, prefix), _of_output(theirs, prefix))
    return found


def compared(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> Json:
    """The differences of two answers of one output, the second of which is right; names as in `distance_to_draws`."""
    name = "epistemic" if "probabilities" in ours else "weights_std"
    if name == "epistemic":
        found: Json = {"probability": float(np.abs(ours["probabilities"] - theirs["probabilities"]).mean())}
    else:
        total = np.sqrt(np.square(theirs[name]) + np.square(theirs.get("noise_std", 0.0)))
        found = {"mean": float((np.abs(ours["mean"] - theirs["mean"]) / np.maximum(total, _LEAST)).mean())}
    one, other = ours[name].astype(np.float64), theirs[name].astype(np.float64)
    found[f"{name}_ratio"] = float(one.mean() / other.mean()) if other.mean() > _LEAST else None
    return found | {"rank_correlation": rank_correlation(one.ravel(), other.ravel())}


def ordered(predictor: Predictor, examples: Any, called: str = "validation") -> list[np.ndarray]:
    """An array for each input of the network; `called` as errors say."""
    given, names = as_arrays(examples, called, "examples"), list(predictor.inputs)
    if isinstance(given, dict) and len(names) > 1:
        by_name = {input_name(name): one for name, one in given.items()}
        if set(by_name) != set(names):
            raise DataError(f"{called} has {', '.join(given)}: the network takes {', '.join(names)}")
        given = {name: by_name[name] for name in names}
    arrays, specs = leaves(given), list(predictor.inputs.values())
    if len(arrays) != len(names):
        raise DataError(f"{called} has {len(arrays)} arrays: the network takes {', '.join(names)}")
    for name, array, spec in zip(names, arrays, specs, strict=True):
        if not spec.shape.is_compatible_with(array.shape) or len(array) == 0 or len(array) != count(given):
            sizes = tuple(spec.shape[1:])
            raise DataError(f"{called} has {name!r} of shape {array.shape}: expected examples of shape {sizes}")
    return arrays


def _chosen(arrays: list[np.ndarray]) -> list[np.ndarray]:
    number = len(arrays[0])
    chosen = np.linspace(0, number - 1, min(number, EXAMPLES)).round().astype(int)
    return list(rows(tuple(arrays), chosen))


def _answers(predictor: Predictor, inputs: list[np.ndarray]) -> dict[str, np.ndarray]:
    dtypes = [spec.dtype for spec in predictor.inputs.values()]
    parts = []
    for start in range(0, len(inputs[0]), _AT_ONCE):
        batch = [_as_input(one[start : start + _AT_ONCE], dtype) for one, dtype in zip(inputs, dtypes, strict=True)]
        parts.append(predictor.predict(*batch))
    answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for name, values in answers.items():
        if not np.isfinite(values).all():
            raise ExportError(
                f"the predictive {predictor.predictive!r} gives {name} that is not finite on the validation examples: "
                "expected numbers, check these and the weights"
            )
    return answers


def _as_input(array: np.ndarray, dtype: Any) -> Any:
    return tf.constant(array) if dtype == tf.string else tf.constant(array.astype(dtype.as_numpy_dtype))


def _of_output(answers: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    known = ("probabilities", "epistemic", "mean", "weights_std", "noise_std")
    return {name: answers[prefix + name] for name in known if prefix + name in answers}


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's, with the mean rank for equal numbers."""
    if np.ptp(one) < _LEAST or np.ptp(other) < _LEAST:
        return None
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places.ravel()]
