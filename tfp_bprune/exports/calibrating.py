"""Temperatures and conformal sets or intervals, fitted to validation examples while an export is made.

Split conformal prediction (Vovk et al. 2005; Sadinle et al. 2019, arXiv 1609.00451; Lei et al. 2018, arXiv 1604.04173): of n
examples that nothing else was fitted to, the threshold is the k-th smallest score, k = ceil((n + 1) level). A further example
from the same source is covered with probability level at least, and k / (n + 1) where scores do not tie; given the n
examples, its probability is at least that of Beta(k, n + 1 - k).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import count, rows
from tfp_bprune.data.splits import Split
from tfp_bprune.exports.converting import answers
from tfp_bprune.exports.manifest import signature_of
from tfp_bprune.exports.rounding import Examples, apart
from tfp_bprune.graphs.heads import input_names
from tfp_bprune.prediction.calibration import Calibration, check_calibrated, deviation, scores_for
from tfp_bprune.prediction.metrics import of_outputs, of_probabilities
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import ExportError, Json, check_number, if_percent

_COLDEST, _HOTTEST = 0.05, 20.0
_SLACK = 1e-5  # of a score: what runtimes may round otherwise than TensorFlow; sets only grow by it
_ROUNDED = 1e-6  # of a mean: eight steps of float32
_LEAST = float(np.finfo(np.float32).tiny)

Build = Callable[[Calibration | None], Predictor]


@dataclass
class Calibrator:
    """What is to be fitted, and to which examples.

    Attributes:
      temperature: whether one is.
      level: of conformal sets or intervals; None for neither.
      fitted_on: examples for all but the conformal threshold.
      held_back: examples for that alone.
      about: what was found, for the manifest: `calibration` and `conformal`.
    """

    temperature: bool
    level: float | None
    fitted_on: Split
    held_back: Split
    about: Json = field(default_factory=dict)

    def predictor(self, build: Build) -> Predictor:
        """What `build` gives with the calibration that is fitted to its answers."""
        found = Calibration()
        plain = build(None)
        heads, shapes = plain.heads, _shapes(plain)
        if self.temperature:
            check_calibrated(heads, shapes, "calibrate")
            found, self.about["calibration"] = _temperature(build, Examples(self.fitted_on, plain, signature_of(plain)))
        if self.level is not None:
            check_calibrated(heads, shapes, "conformal")
            cooled = build(found)
            examples = Examples(self.held_back, cooled, signature_of(cooled))
            reach, self.about["conformal"] = _reach(cooled, examples, self.level)
            found = replace(found, reach=reach)
        return build(found)


def calibrator(model: Any, calibrate: Any, conformal: float | None, validation: Any, others: bool) -> Calibrator | None:
    """What `export` was asked to fit; None where nothing.

    Args:
      others: whether more than a conformal threshold depends on the examples, as few bits that they choose. Half of them are
        held back for the threshold then, so that it holds what it promises.

    Raises:
      ExportError: it is none that there is, or there are no examples with targets.
    """
    if calibrate is None and conformal is None:
        return None
    if calibrate not in (None, "temperature"):
        raise ExportError(f"unknown calibrate {calibrate!r}: expected 'temperature'")
    if conformal is not None:
        check_number("conformal", conformal, ExportError)
    if conformal is not None and not 0 < conformal < 1:
        raise ExportError(f"conformal must be in (0, 1), got {conformal}{if_percent(conformal)}")
    what = "calibrate" if calibrate else "conformal"
    if validation is None:
        raise ExportError(f"{what} is fitted to validation examples: give validation=, examples with targets")
    x, y = apart(validation, {"inputs": input_names(model)})
    if y is None:
        raise ExportError(f"{what} needs the targets of validation examples: give a Split, or a pair of both")
    number = count(x)
    order = np.random.default_rng(0).permutation(number)
    shares = conformal is not None and (calibrate is not None or others)
    first, second = (order[: number // 2], order[number // 2 :]) if shares else (order, order)
    for part in (first, second):
        if not len(part):
            raise ExportError(f"{what} got {number} validation examples: expected more")
    fitted_on, held_back = (Split("validation", rows(x, part), rows(y, part)) for part in map(np.sort, (first, second)))
    return Calibrator(calibrate is not None, conformal, fitted_on, held_back)


def _shapes(predictor: Predictor) -> dict[str, Any]:
    return {name: tuple(tensor.shape) for name, tensor in zip(predictor.heads, predictor.network.outputs, strict=True)}


def _temperature(build: Build, examples: Examples) -> tuple[Calibration, Json]:
    """The temperature of the least NLL: of the mean network convex in its inverse, and for all predictives one number."""
    from scipy.optimize import minimize_scalar

    variable = tf.Variable(1.0, trainable=False)
    predictor = build(Calibration(variable))

    def scores(log: float) -> dict[str, float]:
        variable.assign(math.exp(log))
        p = _answered(predictor, examples)["probabilities"]
        return of_probabilities(_possible(p), _labels(examples.y, p))

    before = scores(0.0)
    bounds = (math.log(_COLDEST), math.log(_HOTTEST))
    best = minimize_scalar(lambda log: scores(log)["nll"], bounds=bounds, method="bounded", options={"xatol": 1e-3})
    log = float(best.x) if best.fun < before["nll"] else 0.0
    after = scores(log)
    about: Json = {
        "method": "temperature",
        "temperature": math.exp(log),
        "examples": len(next(iter(examples.x.values()))),
    }
    about |= {name: {key: one[key] for key in ("nll", "ece")} for name, one in (("before", before), ("after", after))}
    return Calibration(math.exp(log)), about


def _answered(predictor: Predictor, examples: Examples) -> dict[str, np.ndarray]:
    outputs = examples.answers(partial(answers, predictor))
    for name, values in outputs.items():
        odd = len(values) - int(np.isfinite(values).reshape(len(values), -1).all(-1).sum())
        if odd:
            raise ExportError(
                f"{name!r} is not finite for {odd} of {len(values)} validation examples: drop them, or check the weights"
            )
    return outputs


def _labels(y: Any, p: np.ndarray) -> np.ndarray:
    """Class numbers, also of one-hot rows.

    Raises:
      ExportError: rows say of several classes how probable they are, so that none is the right one.
    """
    y = np.asarray(y)
    if p.shape[-1] == 1 or y.shape != p.shape:
        return y
    if not (np.isin(y, (0, 1)).all() and (y.sum(-1) == 1).all()):
        raise ExportError(f"validation has targets {list(y.shape)} that are not one-hot: expected one right class each")
    return y.argmax(-1)


def _possible(p: np.ndarray) -> np.ndarray:
    """Probabilities of which none is 0 or, of a binary output, 1, so that a wrong answer costs finitely many nats."""
    return np.clip(p, _LEAST, 1 - 2**-24 if p.shape[-1] == 1 else 1.0)


def _reach(predictor: Predictor, examples: Examples, level: float) -> tuple[Any, Json]:
    [head] = predictor.heads.values()
    outputs = _answered(predictor, examples)
    y = _labels(examples.y, outputs["probabilities"]) if head.classifies else np.asarray(examples.y)
    of_outputs(outputs, y)  # which refuses other targets
    scores = scores_for(outputs, y, head)
    odd = np.count_nonzero(~np.isfinite(scores))
    if odd:
        raise ExportError(f"validation has {odd} targets that are not finite of {scores.size}: drop these examples")
    threshold = quantile(scores, level)
    reach = threshold + (_SLACK if head.classifies else _slack_of(outputs, threshold))
    said = "LAC" if head.classifies else "residuals"
    about: Json = {"method": said, "level": level, "examples": len(scores), "reach": np.asarray(reach).tolist()}
    return np.asarray(reach, np.float32), about


def _slack_of(outputs: dict[str, np.ndarray], threshold: np.ndarray) -> np.ndarray:
    """By how much an interval's reach grows: in the units of the targets, whatever these are, or in deviations."""
    mean = outputs["mean"]
    largest = (np.abs(mean) / deviation(outputs, np.ones_like(mean))).max(0)
    return np.maximum(_SLACK * threshold, _ROUNDED * largest)


def quantile(scores: np.ndarray, level: float) -> np.ndarray:
    """The k-th smallest of n scores along the first axis, k = ceil((n + 1) level).

    Raises:
      ExportError: n is too small for any threshold to cover so many.

    >>> quantile(np.arange(1.0, 20.0), 0.9)
    np.float64(18.0)
    """
    number = len(scores)
    k = max(math.ceil(round((number + 1) * level, 9)), 1)
    if k > number:
        needed = math.ceil(round(level / (1 - level), 9))
        raise ExportError(
            f"conformal={level:g} needs at least {needed} examples for its threshold alone, got {number}: give more"
        )
    return np.sort(scores, axis=0)[k - 1]
