"""Exported models in a fresh process, as whoever serves them has them: a runtime, the folder, and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfp_bprune.export.formats import RUNTIMES, require
from tfp_bprune.export.savedmodel import FILES, format_of
from tfp_bprune.runs import Run
from tfp_bprune.types import DataError, ExportError, Json

_SCRIPT = Path(__file__).with_name("reload.py")
_ROUNDS = 30
_ALONE = "inputs"  # an array that goes to the one input, whatever its name
Examples = np.ndarray | Mapping[str, np.ndarray]


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
    x: Examples,
    batches: Sequence[int] = (),
    rounds: int = _ROUNDS,
    threads: int | None = None,
) -> list[Reloaded]:
    """Loads exports of any format together in one fresh process, predicts `x` and times them interleaved.

    Args:
      exports: folders written by `export`.
      x: examples [n, ...]; for exports with several inputs a dictionary of them, by the names in `inputs` of the manifest.
      batches: sizes to time.
      rounds: of timing, in which every export has its turn.
      threads: of each runtime; by default one a core that this process may use.

    Raises:
      ExportError: an export is missing, damaged, or fails to run, or its runtime is not installed.
      DataError: `x` is empty, lacks an input, or is of another shape than an export takes.
    """
    manifests = [check_export(path) for path in exports]
    arrays = dict(x) if isinstance(x, Mapping) else {_ALONE: x}
    read = [_inputs_of(path, manifest, arrays) for path, manifest in zip(exports, manifests, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        np.savez(place / "inputs.npz", **{str(i): array for i, array in enumerate(arrays.values())})
        request: Json = {
            "models": [
                _served(Path(path), manifest) | {"inputs": inputs}
                for path, manifest, inputs in zip(exports, manifests, read, strict=True)
            ],
            "inputs": str(place / "inputs.npz"),
            "outputs": [str(place / f"{i}.npz") for i in range(len(exports))],
            "batches": list(batches),
            "rounds": rounds,
            "threads": threads or len(os.sched_getaffinity(0)),
        }
        (place / "request.json").write_text(json.dumps(request))
        answer = _run(place / "request.json")
        outputs = [dict(np.load(file)) for file in request["outputs"]]
    return [Reloaded(o, t) for o, t in zip(outputs, answer["latency_ms"], strict=True)]


def _inputs_of(path: str | os.PathLike[str], manifest: Json, arrays: Mapping[str, np.ndarray]) -> Json:
    """Which array an export takes for each of its inputs, by number, and of which type.

    Raises:
      DataError: one is missing, empty or of another shape.
    """
    inputs = manifest.get("inputs") or {_ALONE: {"shape": manifest["input_shape"], "dtype": "float32"}}
    keys = [_ALONE] if list(arrays) == [_ALONE] and len(inputs) == 1 else list(inputs)
    missing = sorted(set(keys) - set(arrays))
    if missing:
        raise DataError(
            f"{path} takes the inputs {', '.join(map(repr, inputs))}: got none for {', '.join(map(repr, missing))}"
        )
    for key, about in zip(keys, inputs.values(), strict=True):
        _check_shape(path, "" if len(inputs) == 1 else f" {key!r}", about["shape"], arrays[key], arrays)
    places = {key: place for place, key in enumerate(arrays)}
    return {name: [str(places[key]), about["dtype"]] for key, (name, about) in zip(keys, inputs.items(), strict=True)}


def _check_shape(
    path: str | os.PathLike[str], name: str, shape: list[int | None], x: np.ndarray, arrays: Mapping[str, np.ndarray]
) -> None:
    sizes = x.shape[1:]
    fits = len(sizes) == len(shape) and all(given in (size, None) for given, size in zip(shape, sizes, strict=True))
    if len(x) == 0 or not fits or len({len(array) for array in arrays.values()}) > 1:
        raise DataError(f"{path} takes examples{name} of shape {tuple(shape)}: got {len(x)} of shape {sizes}")


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
