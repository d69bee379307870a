"""Exported models in a fresh process, as whoever serves them has them: a runtime, the folder, and nothing of ours."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfp_bprune.data.arrays import Arrays, mapped
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.exports.card import CARD
from tfp_bprune.exports.converting import require
from tfp_bprune.exports.forms import BATCHES, form_of
from tfp_bprune.files.aside import scratch
from tfp_bprune.files.reading import check
from tfp_bprune.files.runs import MANIFEST, Run
from tfp_bprune.files.schemas import EXPORT_SCHEMA
from tfp_bprune.files.writing import write_below
from tfp_bprune.types import DataError, ExportError, Json

SCRIPT = Path(__file__).with_name("reload.py")
_ROUNDS = 30
_ALONE = "inputs"  # an array that goes to the one input, whatever its name
Examples = np.ndarray | Mapping[str, np.ndarray]
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3"}
TOO_LONG = (
    "the exported model took more processor time than one example should: if it is your own, load it with --trust"
)
_MOST_SAID = 300  # characters of an error of a runtime
SECONDS, _BYTES, _SPREAD = 15.0, 2**30, 20


@dataclass(frozen=True)
class Reloaded:
    """The answers and latencies of one export in a fresh process.

    Attributes:
      outputs: arrays [n, ...] by name, for all examples.
      latency_ms: `{"median": ..., "p95": ...}` by batch size.
    """

    outputs: dict[str, np.ndarray]
    latency_ms: dict[str, dict[str, float]]


def reload(
    exports: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    x: Examples,
    *,
    batches: Sequence[int] = (),
    rounds: int = _ROUNDS,
    threads: int | None = None,
    trust: bool = False,
) -> list[Reloaded]:
    """Loads exports of any format in one fresh process, predicts `x` with each, and times them in turns.

    The process has the runtimes and nothing of this package, as on a server.

    Args:
      exports: folders written by `export`, or one.
      x: examples [n, ...]; for exports with several inputs a dictionary, by the names in `inputs` of the manifest.
      batches: batch sizes to time; none by default.
      rounds: rounds of timing; each export is timed once a round.
      threads: threads of each runtime; by default one for each core that this process may use.
      trust: for exports that you wrote yourself: skip the search for harmful operations and the limits. Otherwise a SavedModel
        is searched for operations that do more than compute, and processor time and memory are limited until the first
        example is answered.

    Returns:
      For each export a `Reloaded`: `outputs`, arrays [n, ...] by name, and `latency_ms`, the median and the 95th percentile by
      batch size.

    Raises:
      ExportError: an export is missing, damaged or harmful, or fails to run; or its runtime is not installed.
      DataError: `x` is empty, lacks an input, or has another shape than an export takes.

    Example:
      [found] = bp.reload("served/digits", images, batches=[1, 32])
      found.outputs["probabilities"], found.latency_ms
    """
    exports = [exports] if isinstance(exports, str | os.PathLike) else exports
    manifests = [check_export(path) for path in exports]
    arrays = dict(x) if isinstance(x, Mapping) else {_ALONE: x}
    read = [_inputs_of(path, manifest, arrays) for path, manifest in zip(exports, manifests, strict=True)]
    with scratch() as place:
        np.savez(place / "inputs.npz", **{str(i): array for i, array in enumerate(arrays.values())})
        request: Json = {
            "models": [
                served_by(Path(path), manifest, None if trust else place / f"model-{i}") | {"inputs": inputs}
                for i, (path, manifest, inputs) in enumerate(zip(exports, manifests, read, strict=True))
            ],
            "limits": None if trust else limits_of(manifests),
            "inputs": str(place / "inputs.npz"),
            "outputs": [str(place / f"{i}.npz") for i in range(len(exports))],
            "batches": list(batches),
            "rounds": rounds,
            "threads": threads or len(os.sched_getaffinity(0)),
            "for": os.getpid(),
        }
        (place / "request.json").write_text(json.dumps(request))
        answer = _run(place / "request.json")
        outputs = [dict(np.load(file)) for file in request["outputs"]]
    for path, found in zip(exports, outputs, strict=True):
        check_outputs(path, found, len(next(iter(arrays.values()))))
    return [Reloaded(o, t) for o, t in zip(outputs, answer["latency_ms"], strict=True)]


def inputs_in(manifest: Json) -> Json:
    """`shape` of one example and `dtype` of each input of an export, by name; older manifests have one without a name."""
    return manifest.get("inputs") or {_ALONE: {"shape": manifest["input_shape"], "dtype": "float32"}}


def _inputs_of(path: str | os.PathLike[str], manifest: Json, arrays: Mapping[str, np.ndarray]) -> Json:
    """Which array an export takes for each of its inputs, by number, and of which type.

    Raises:
      DataError: one is missing, empty or of another shape.
    """
    inputs = inputs_in(manifest)
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


def scores_of(outputs: dict[str, np.ndarray], targets: Arrays, path: object) -> dict[str, float]:
    """`metrics.of_outputs` of an export that may give anything.

    Raises:
      ExportError: its outputs are not of these targets.
    """
    try:
        return of_outputs(outputs, targets)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        shapes = {name: values.shape for name, values in outputs.items()}
        sizes = mapped(lambda one: one.shape, targets)
        raise ExportError(f"{path} gives {shapes}, which do not fit targets {sizes} ({error})") from error


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
    check(manifest, run.path / MANIFEST, EXPORT_SCHEMA)
    form = form_of(manifest)
    for name in manifest["files"]:
        if name != CARD and not re.fullmatch(form.files, name):
            raise ExportError(f"{run.path} holds {name!r}, which no export in the format {form.name} has")
    missing = [name for name in form.needed if name not in manifest["files"]]
    if missing:
        raise ExportError(f"the manifest of {run.path} does not name {missing[0]}: expected what export writes")
    run.verify()
    return manifest


def served_by(path: Path, manifest: Json, private: Path | None) -> Json:
    """What `reload.py` needs to know of an export; its files are checked, and copied where nobody else can change them."""
    form = form_of(manifest)
    require(form.name, form.runtime.split(".")[0], extra=form.extra)
    if private is not None:
        run = Run.open(path)
        for name in manifest["files"]:
            write_below(private, name, content := run.read(name))
            if form.check is not None and name != CARD:
                form.check(name, content, path)
    batches = {"batches": str(BATCHES.resolve()), "batch": manifest["batch"]} if "batch" in manifest else {}
    return {
        "loader": str(form.load.resolve()),
        "runtime": form.runtime,
        "path": str((private or path) / form.file),
        **batches,
    }


def limits_of(manifests: Sequence[Json]) -> Json:
    """Processor seconds and bytes, beyond those of the runtime, until all exports have answered one example."""
    stored = sum(entry["bytes"] for manifest in manifests for entry in manifest["files"].values())
    return {"seconds": SECONDS * len(manifests), "bytes": _BYTES * len(manifests) + _SPREAD * stored}


def check_outputs(path: str | os.PathLike[str], outputs: dict[str, np.ndarray], examples: int) -> None:
    """Refuses what is not finite, or not one answer for each example.

    Raises:
      ExportError: naming the output.
    """
    for name, values in outputs.items():
        if values.shape[:1] != (examples,):
            raise ExportError(f"{path} gives {name} of shape {values.shape} for {examples} examples: expected one each")
        if not np.isfinite(values).all():
            raise ExportError(f"{path} gives {name} that is not finite: expected numbers, check its weights")


def complaint(said: str, code: int) -> str:
    """In one line why a process of an export ended: its error, of however many lines, or the signal that ended it."""
    lines = [line for line in said.splitlines() if line.strip()]
    places = [i for i, line in enumerate(lines) if line.startswith("  ")]  # of a traceback, above the error
    error = " ".join(line.strip() for line in lines[places[-1] + 1 if places else -1 :])
    if not error:
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return error if len(error) <= _MOST_SAID else f"{error[:_MOST_SAID]}..."


def _run(request: Path) -> Json:
    # -I: no user site, no current folder on the path; what is measured is the runtime and the export alone.
    result = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(request)],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        check=False,
    )
    if result.returncode == -signal.SIGXCPU:
        raise ExportError(TOO_LONG)
    if result.returncode != 0:
        raise ExportError(
            f"the exported model failed in a fresh process: {complaint(result.stderr, result.returncode)}"
        )
    return json.loads(result.stdout.splitlines()[-1])
