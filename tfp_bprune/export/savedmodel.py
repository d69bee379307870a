"""`export`: a SavedModel that any process with TensorFlow alone can load and any TensorFlow Serving can serve.

PATH/
  1/               the SavedModel, in a numbered version folder
  manifest.json    what it is, and size and SHA-256 of every file
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.export.lower import Kernels
from tfp_bprune.export.manifest import describe
from tfp_bprune.export.predict import DEFAULT_SAMPLES, Predictor
from tfp_bprune.models.convert import adopt
from tfp_bprune.runs import Run
from tfp_bprune.types import ExportError, Json, Predictive

VERSION = "1"


def export(
    model: Any,
    path: str | os.PathLike[str],
    predictive: Predictive = "mean",
    samples: int = DEFAULT_SAMPLES,
    *,
    seed: int = 0,
    kernels: Kernels = "auto",
    facts: Json | None = None,
) -> Json:
    """Writes `model` as a SavedModel with no TFP object and no Python of this package in it.

    Its `serving_default` signature takes `inputs` [batch, ...] and gives the outputs that `export.predict` lists.
    Units that pruning left dead are removed; outputs stay equal to within float32 rounding.

    Args:
      model: pruned or not; functional or sequential, one input and one output.
      path: a folder that does not exist yet.
      predictive: "mean" or "sampled".
      samples: draws, when sampled.
      seed: of the draws.
      kernels: "auto", "dense" or "sparse" dense layers.
      facts: further entries of the manifest, such as the data's fingerprint.

    Returns:
      The manifest.

    Raises:
      ExportError: `path` exists or cannot be written, or the model cannot be exported as asked.
    """
    path = Path(path)
    if path.exists():
        raise ExportError(f"{path} already exists: choose another folder, an export never overwrites")
    predictor = Predictor(model, predictive, samples, seed, kernels)
    about = {"kind": "export", "network": model.name, "task": predictor.task, "predictive": predictive}
    if predictive == "sampled":
        about |= {"samples": samples, "draw_seed": seed}  # `seed` is the training's
    about |= {"input_shape": list(model.input_shape[1:]), **describe(adopt(model)), **(facts or {})}
    with _aside(path) as folder:
        with _quiet():
            tf.saved_model.save(predictor, str(folder / VERSION), signatures={"serving_default": predictor.predict})
        run = Run(folder)
        run.record(bytes=bytes_of(folder / VERSION), **about)
        return run.manifest


def bytes_of(folder: Path) -> int:
    """Size on disk of all files below `folder`, in bytes."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when all went well and vanishes when it did not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TensorFlow's notes on what it saves."""
    loggers = [tf.get_logger(), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
