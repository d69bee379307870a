"""What the formats beside SavedModel share: the extra that they need, refusals, and a check of what they compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.types import ExportError, Format

EXTRA = "tfp-bprune[formats]"
TITLES: dict[Format, str] = {"savedmodel": "SavedModel", "onnx": "ONNX", "litert": "LiteRT"}
RUNTIMES: dict[Format, str] = {"savedmodel": "tensorflow", "onnx": "onnxruntime", "litert": "ai_edge_litert"}
TOLERANCE = 1e-4
_BATCHES = (1, 3)  # a second size, so that a batch that was fixed while converting is noticed
Outputs = dict[str, np.ndarray]


def require(file_format: Format, *modules: str) -> None:
    """Refuses a format whose packages are not installed.

    Raises:
      ExportError: one of `modules` is missing.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ExportError(
            f"the format {file_format!r} needs {', '.join(missing)}, not installed here: pip install '{EXTRA}'"
        )


def refusal(file_format: Format, operations: Sequence[str]) -> ExportError:
    """The error for a graph with operations that the format does not have."""
    return ExportError(
        f"{TITLES[file_format]} has no {', '.join(sorted(set(operations)))}: "
        "use the predictive 'mean' or 'moments' with kernels 'dense', or the format 'savedmodel'"
    )


def check_agreement(
    file_format: Format, predictor: Any, run: Callable[[np.ndarray], Outputs], tolerance: float = TOLERANCE
) -> None:
    """Compares a converted network with TensorFlow on small batches.

    Args:
      file_format: what it was converted to.
      predictor: whose `predict` was converted.
      run: the converted network, inputs [batch, ...] to named outputs.
      tolerance: largest difference allowed, absolute for outputs up to 1 and relative to the largest above.

    Raises:
      ExportError: outputs are missing or differ by more.
    """
    for batch in _BATCHES:
        x = _probe(predictor, batch)
        expected = {name: value.numpy() for name, value in predictor.predict(tf.constant(x)).items()}
        found = run(x)
        if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in expected.items()}:
            raise ExportError(
                f"the {TITLES[file_format]} file gives {sorted(found)} for {batch} inputs, in other names or shapes than "
                f"TensorFlow's {sorted(expected)}: use the format 'savedmodel'"
            )
        for name, value in expected.items():
            _check_output(file_format, name, value, found[name], tolerance)


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


def _probe(predictor: Any, batch: int) -> np.ndarray:
    """Inputs [batch, ...] in [0, 2), 0 and 1 for whole numbers, which any table of embeddings holds."""
    (spec,) = predictor.predict.input_signature
    shape = [batch, *(1 if size is None else size for size in spec.shape[1:])]
    return np.random.default_rng(0).uniform(0, 2, shape).astype(spec.dtype.as_numpy_dtype)


def _check_output(file_format: Format, name: str, expected: np.ndarray, found: np.ndarray, tolerance: float) -> None:
    scale = max(1.0, float(np.max(np.abs(expected))))
    difference = float(np.max(np.abs(expected - found))) / scale
    if not difference <= tolerance:  # so that NaN is refused too
        raise ExportError(
            f"{name!r} of the {TITLES[file_format]} file differs from TensorFlow's by {difference:.2g}, "
            f"expected at most {tolerance:.0e}: use the format 'savedmodel'"
        )
