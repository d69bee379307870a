"""What conversions share: the packages that they need, refusals, and a check of what they compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.exports.forms import TOLERANCE, Outputs
from tfp_bprune.exports.warmup import fixed
from tfp_bprune.graphs.rebuild import calls_of
from tfp_bprune.layers.rules import activation_name
from tfp_bprune.types import ExportError, Predictive

EXTRA = "tfp-bprune[formats]"
_ROUNDING = 1e-6  # relative: what float32 leaves of an input after a sum or two
_MARGIN = 3.0
_BATCHES = (1, 3)  # a second size, so that a batch that was fixed while converting is noticed
_OF_MOMENTS = ", which following moments back through this network takes"
_SAID = 200  # characters of what others say
_REMEDY = "use the format 'savedmodel'"
REMEDY_FEW = "choose precision 'float32', leave out representative examples, or use the format 'savedmodel'"


def require(file_format: str, *packages: str, extra: str = EXTRA) -> None:
    """Refuses a format whose packages are not installed.

    Args:
      file_format: its name.
      packages: names to import them by.
      extra: what to install for them.

    Raises:
      ExportError: one of `packages` is missing.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        remedy = f": pip install '{extra}'" if extra else ""
        raise ExportError(f"the format {file_format!r} needs {', '.join(missing)}, not installed here{remedy}")


def refusal(title: str, operations: Sequence[str], predictor: Any) -> ExportError:
    """The error for a `Predictor` with operations that the format does not have."""
    layers = _layers_with(predictor, operations)
    taken = f", which layer {layers[0]!r} takes" if layers else ""
    remedy = _REMEDY
    if predictor.predictive == "moments":
        taken, remedy = _OF_MOMENTS, f"use the predictive 'mean', or {_REMEDY.removeprefix('use ')}"
    elif predictor.predictive == "sampled" or any("Sparse" in operation for operation in operations):
        dense = " with kernels 'dense'" if predictor.predictive == "mean" else ""
        remedy = f"use the predictive 'mean' or 'moments'{dense}, or {_REMEDY.removeprefix('use ')}"
    return ExportError(f"{title} has no {', '.join(sorted(set(operations)))}{taken}: {remedy}")


def _layers_with(predictor: Any, operations: Sequence[str]) -> list[str]:
    """The layers with such operations, by the scope of their call or by their activation."""
    graph = predictor.predict.get_concrete_function().graph
    found = [operation.name for operation in graph.get_operations() if operation.type in operations]
    kinds = {kind.lower() for kind in operations}
    layers = {id(layer): layer for layer in calls_of(predictor.network)}.values()
    return [
        layer.name
        for layer in layers
        if any(f"/{layer.name}/" in name for name in found) or activation_name(layer).replace("_", "") in kinds
    ]


def failure(who: str, error: Exception, predictive: Predictive = "mean", remedy: str = _REMEDY) -> ExportError:
    """The error for a converter or runtime that failed; they raise errors of many types, none of them documented."""
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if predictive == "moments":
        who, remedy = (
            f"{who} failed at following moments back through this network",
            f"use the predictive 'mean', or {_REMEDY.removeprefix('use ')}",
        )
    else:
        who = f"{who} failed"
    return ExportError(f"{who}: {first[:_SAID]}; {remedy}")


def check_agreement(title: str, predictor: Any, run: Callable[[Any], Outputs], tolerance: float = TOLERANCE) -> float:
    """Compares a converted network with TensorFlow on small batches.

    Args:
      title: of what it was converted to.
      predictor: whose `predict` was converted.
      run: the converted network, named inputs [batch, ...] to named outputs.
      tolerance: largest difference allowed, absolute for outputs up to 1 and relative to the largest above; and beyond it as
        much as rounding of the inputs moves TensorFlow's own outputs, for networks that make much of little.

    Returns:
      The largest difference.

    Raises:
      ExportError: outputs are missing or differ by more.
    """
    specs, largest = fixed(predictor.predict, list(predictor.inputs.values())), 0.0
    for batch in _BATCHES:
        x = _probe(specs, batch)
        expected, found = answers(predictor, x), run(x)
        if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in expected.items()}:
            raise ExportError(
                f"the {title} file gives {sorted(found)} for {batch} inputs, in other names or shapes than "
                f"TensorFlow's {sorted(expected)}: use the format 'savedmodel'"
            )
        expected = {
            name: value for name, value in expected.items() if value.dtype != bool
        }  # sets follow from the others
        moved = answers(predictor, _rounded(x, min(tolerance / TOLERANCE, 1e3) * _ROUNDING))
        for name, value in expected.items():
            moves = float(np.abs(moved[name] - value).max())
            largest = max(largest, _check_output(title, name, value, found[name], tolerance, moves))
    return largest


@contextmanager
def hushed() -> Iterator[None]:
    """Without what converters and runtimes write to standard error; their failures are raised and said in one line."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def answers(predictor: Any, x: Outputs) -> Outputs:
    """Those of a `Predictor` for arrays by the input's name."""
    return {name: value.numpy() for name, value in predictor.predict(*map(tf.constant, x.values())).items()}


def _probe(specs: Sequence[Any], batch: int) -> Outputs:
    """Inputs [batch, ...] by name, in [0, 2), 0 and 1 for whole numbers, which any table of embeddings holds."""
    rng = np.random.default_rng(0)
    sizes = {spec.name: [batch, *spec.shape[1:]] for spec in specs}
    return {s.name: rng.uniform(0, 2, sizes[s.name]).astype(s.dtype.as_numpy_dtype) for s in specs}


def _rounded(x: Outputs, error: float) -> Outputs:
    """Inputs that are off by a relative `error`, some up and some down; whole numbers as they are."""
    rng = np.random.default_rng(1)

    def off(one: np.ndarray) -> np.ndarray:
        return (one * (1 + error * rng.choice([-1.0, 1.0], one.shape))).astype(one.dtype)

    return {name: off(one) if np.issubdtype(one.dtype, np.floating) else one for name, one in x.items()}


def _check_output(
    title: str, name: str, expected: np.ndarray, found: np.ndarray, tolerance: float, moved: float
) -> float:
    scale = max(1.0, float(np.max(np.abs(expected))))
    difference = float(np.max(np.abs(expected - found))) / scale
    allowed = tolerance + _MARGIN * float(moved) / scale
    if not difference <= allowed:  # so that NaN is refused too
        raise ExportError(
            f"{name!r} of the {title} file differs from TensorFlow's by {difference:.2g}, "
            f"expected at most {allowed:.0e}: use the format 'savedmodel'"
        )
    return difference
