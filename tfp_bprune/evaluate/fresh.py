"""Exported models in a fresh process, as whoever serves them has them: a runtime, the folder, and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfp_bprune.export.formats import RUNTIMES, require
from tfp_bprune.export.savedmodel import FILES, format_of
from tfp_bprune.runs import Run
from tfp_bprune.types import DataError, ExportError, Json

_SCRIPT = Path(__file__).with_name("reload.py")
_ROUNDS = 30


@dataclass(frozen=True)
class Reloaded:
    """What one exported model did in a fresh process.

    Attributes:
      outputs: named outputs for all inputs.
      latency_ms: `{"median": ..., "p95": ...}` by batch size.
    """

    outputs: dict[str, np.ndarray]
    latency_ms: dict[str, dict[str, float]]


def reload(
    exports: Sequence[str | os.PathLike[str]],
    x: np.ndarray,
    batches: Sequence[int] = (),
    rounds: int = _ROUNDS,
    threads: int | None = None,
) -> list[Reloaded]:
    """Loads exports of any format together in one fresh process, predicts `x` [n, ...] and times them interleaved.

    Args:
      exports: folders written by `export`.
      x: examples.
      batches: sizes to time.
      rounds: of timing, in which every export has its turn.
      threads: of each runtime; by default one a core that this process may use.

    Raises:
      ExportError: an export is missing, damaged, or fails to run, or its runtime is not installed.
      DataError: `x` is empty or of another shape than an export takes.
    """
    manifests = [check_export(path) for path in exports]
    for path, manifest in zip(exports, manifests, strict=True):
        if len(x) == 0 or list(x.shape[1:]) != manifest["input_shape"]:
            raise DataError(
                f"{path} takes examples of shape {tuple(manifest['input_shape'])}: got {len(x)} of shape {x.shape[1:]}"
            )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.save(place / "inputs.npy", x.astype(np.float32))
        request: Json = {
            "models": [_served(Path(path), manifest) for path, manifest in zip(exports, manifests, strict=True)],
            "inputs": str(place / "inputs.npy"),
            "outputs": [str(place / f"{i}.npz") for i in range(len(exports))],
            "batches": list(batches),
            "rounds": rounds,
            "threads": threads or len(os.sched_getaffinity(0)),
        }
        (place / "request.json").write_text(json.dumps(request))
        answer = _run(place / "request.json")
        outputs = [dict(np.load(file)) for file in request["outputs"]]
    return [Reloaded(o, t) for o, t in zip(outputs, answer["latency_ms"], strict=True)]


def check_export(path: str | os.PathLike[str]) -> Json:
    """The manifest of an export, after every file was checked against it.

    Raises:
      RunError: a file is missing or changed.
      ExportError: the folder is something else.
    """
    run = Run.open(path)
    manifest = run.manifest
    if manifest.get("kind") != "export":
        raise ExportError(f"{run.path} is a {manifest.get('kind')}: expected a folder written by `tfp-bprune export`")
    run.verify()
    return manifest


def _served(path: Path, manifest: Json) -> Json:
    """What `reload.py` needs to know of an export."""
    file_format = format_of(manifest)
    require(file_format, RUNTIMES[file_format])
    return {"format": file_format, "path": str(path / FILES[file_format])}


def _run(request: Path) -> Json:
    # -I: no user site, no current folder on the path; what is measured is the runtime and the export alone.
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(
        [sys.executable, "-I", str(_SCRIPT), str(request)], capture_output=True, text=True, env=environment, check=False
    )
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise ExportError(
            f"the exported model failed in a fresh process: {lines[-1] if lines else f'exit code {result.returncode}'}"
        )
    return json.loads(result.stdout.splitlines()[-1])
