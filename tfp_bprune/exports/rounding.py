"""What fewer bits cost: the answers of an export on validation examples beside those of the same network in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import as_arrays, leaves, mapped
from tfp_bprune.data.splits import Split
from tfp_bprune.exports.forms import Outputs
from tfp_bprune.prediction.distance import ordered, rank_correlation
from tfp_bprune.prediction.metrics import as_served, of_outputs
from tfp_bprune.types import DataError, ExportError, Json

EXAMPLES = 2000
_AT_ONCE = 100  # examples; what is followed back through convolutions takes memory
_UNCERTAINTIES = ("epistemic", "weights_std")
# What a plan that is left open may cost, beyond which it gets more bits.
MOST: dict[str, float] = {"accuracy": 0.003, "ece": 0.01, "nll": 0.01, "disagreement": 0.005}
LEAST_CORRELATION = 0.98
# By what part the mean entropy of validation examples, or what weights add to it, may change.
MOST_OF_UNCERTAINTY = 0.05
_NOTHING = 1e-6  # nats, or units of a target: what is below is rounding

Run = Callable[[Outputs], Outputs]


class Examples:
    """Validation examples, with targets or without, as a network takes them; at most `EXAMPLES`, spread over all.

    Args:
      given: a `Split`, inputs, or a pair of inputs and targets where it cannot be two inputs.
      predictor: of the network.
      about: what `signature_of` says of it.

    Attributes:
      x: arrays [n, ...] by the input's name.
      y: targets, by output where there are several; None where none are given.

    Raises:
      DataError: the network takes others, or there are none.
    """

    def __init__(self, given: Any, predictor: Any, about: Json) -> None:
        x, y = apart(given, about)
        arrays = ordered(predictor, x)
        number = len(arrays[0])
        chosen = np.linspace(0, number - 1, min(number, EXAMPLES)).round().astype(int)
        self.x: Outputs = typed(predictor, [one[chosen] for one in arrays])
        self.y = None
        if y is not None:
            targets = as_served(Split("validation", arrays[0], y), {"outputs": about["outputs"]}).y
            self.y = mapped(lambda one: one[chosen], targets)

    def answers(self, run: Run) -> Outputs:
        """Those of a network for all."""
        number = len(next(iter(self.x.values())))
        parts = [run({name: one[i : i + _AT_ONCE] for name, one in self.x.items()}) for i in range(0, number, _AT_ONCE)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def inputs_of(given: Any, predictor: Any, pairs: bool) -> Any:
    """The inputs alone of validation examples that may have targets, as a `Split` or, with `pairs`, as one of these."""
    if isinstance(given, Split):
        return given.x
    return apart(given, {"inputs": predictor.inputs})[0] if pairs else given


def typed(predictor: Any, arrays: Sequence[np.ndarray]) -> Outputs:
    """Arrays in the order of a network's inputs, by name and of the types that it takes."""
    kinds = {name: spec.dtype for name, spec in predictor.inputs.items()}
    pairs = zip(kinds.items(), arrays, strict=True)
    return {name: one if kind == tf.string else one.astype(kind.as_numpy_dtype) for (name, kind), one in pairs}


def measured(examples: Examples, expected: Outputs, found: Outputs) -> Json:
    """What it costs to give `found` in the place of `expected`.

    Returns:
      `examples`; `float32` and `rounded`: the scores of both, where there are targets, with mean uncertainties; `disagreement`,
      the part of classes that differ; `difference`, the largest of a probability or, in units of the largest target, of a mean;
      `rank_correlation` of what weights add to the uncertainty, and `uncertainty_ratio`, by the answer's name the mean of this, and
      of the entropy, over that in float32, where a predictive tells it.
    """
    cost: Json = {"examples": len(next(iter(expected.values())))}
    for name, outputs in (("float32", expected), ("rounded", found)):
        cost[name] = _means(outputs) if examples.y is None else of_outputs(outputs, examples.y)
    pairs = {name: (value, found[name]) for name, value in expected.items()}
    classes = [_classes(*pair) for name, pair in pairs.items() if name.endswith("probabilities")]
    if classes:
        cost["disagreement"] = float(np.mean([np.mean(one != other) for one, other in classes]))
    answers = [pair for name, pair in pairs.items() if name.endswith(("probabilities", "mean"))]
    cost["difference"] = max(float(np.abs(one - other).max() / max(1.0, np.abs(one).max())) for one, other in answers)
    ranks = [
        rank_correlation(*(v.ravel().astype(np.float64) for v in p))
        for n, p in pairs.items()
        if n.endswith(_UNCERTAINTIES)
    ]
    known = [rank for rank in ranks if rank is not None]
    cost |= {"rank_correlation": min(known)} if known else {}
    return cost | ({"uncertainty_ratio": _ratios(expected, found)} if ranks else {})


def is_little(cost: Json) -> bool:
    """Whether a plan that was left open may cost that."""
    before, after = cost["float32"], cost["rounded"]
    worse = {
        key: (before[key] - after[key] if key == "accuracy" else after[key] - before[key])
        for key in MOST
        if key in before
    }
    worse |= {key: cost[key] for key in MOST if key in cost and "accuracy" not in before}
    if any(abs(ratio - 1) > MOST_OF_UNCERTAINTY for ratio in cost.get("uncertainty_ratio", {}).values()):
        return False
    return all(worse[key] <= MOST[key] for key in worse) and cost.get("rank_correlation", 1.0) >= LEAST_CORRELATION


def check_finite(outputs: Outputs, title: str) -> None:
    """Refuses answers that are no numbers.

    Raises:
      ExportError: naming one.
    """
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ExportError(f"{name!r} of the {title} file is not finite on validation examples: choose more bits")


def apart(given: Any, about: Json) -> tuple[Any, Any]:
    """Inputs and targets of what `Examples` takes; targets None where there are none.

    Raises:
      DataError: there are more of the one than of the other.
    """
    x, y = _halves(given, about)
    counts = [one.shape[0] for one in (*leaves(x), *(() if y is None else leaves(y))) if one.shape]
    if len(set(counts)) > 1:
        raise DataError(f"validation has {min(counts)} and {max(counts)} examples or targets: expected as many of each")
    return x, y


def _halves(given: Any, about: Json) -> tuple[Any, Any]:
    if isinstance(given, Split):
        return given.x, given.y
    is_pair = isinstance(given, tuple | list) and len(given) == 2 and not np.isscalar(given[0])
    nested = is_pair and isinstance(given[0], Mapping | tuple)
    if nested or (is_pair and len(about["inputs"]) == 1 and all(hasattr(one, "shape") for one in given)):
        return as_arrays(given[0], "validation", "examples"), as_arrays(given[1], "validation", "targets")
    return as_arrays(given, "validation", "examples"), None


def _means(outputs: Outputs) -> dict[str, float]:
    wanted = ("entropy", "aleatoric", *_UNCERTAINTIES, "noise_std")
    return {name: float(value.mean()) for name, value in outputs.items() if name.endswith(wanted)}


def _ratios(expected: Outputs, found: Outputs) -> dict[str, float]:
    means = {name: float(v.mean()) for name, v in expected.items() if name.endswith(("entropy", *_UNCERTAINTIES))}
    return {name: float(found[name].mean()) / mean for name, mean in means.items() if mean > _NOTHING}


def _classes(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if one.shape[-1] == 1:
        return one > 0.5, other > 0.5
    return one.argmax(-1), other.argmax(-1)
