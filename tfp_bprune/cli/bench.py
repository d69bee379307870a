"""`tfp-bprune bench`: speed and scores of exports side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.common import Parser, add_held_out, add_json, add_trust, data_if_there, emit, say
from tfp_bprune.types import BpruneError, Json

if TYPE_CHECKING:
    import numpy as np

    from tfp_bprune.data.splits import Split
    from tfp_bprune.evaluation.fresh import Reloaded

HELP = "time and score exports side by side"
EXAMPLE = """example:
  tfp-bprune bench runs/demo/exports-unit/0-mean runs/demo/exports-unit/0.9-mean --batch 1 32 256 --figure bench.png
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "exports", type=Path, nargs="+", metavar="EXPORT", help="folders written by `tfp-bprune export`"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 256], metavar="N", help="batch sizes")
    parser.add_argument("--rounds", type=int, default=50, help="number of rounds; every export is timed once a round")
    parser.add_argument("--threads", type=int, help="threads of each runtime (default: one for each core)")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="write a picture of the latencies")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random inputs that are used if the test split is not available"
    )
    add_trust(parser)
    add_held_out(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.evaluation.fresh import check_export, reload
    from tfp_bprune.evaluation.sweep import machine
    from tfp_bprune.files.runs import write_atomically
    from tfp_bprune.reports import bench_figure, bench_table

    _check(arguments)
    manifests = [check_export(path) for path in arguments.exports]
    split = _test_split(manifests, arguments)
    x = _random(manifests[0]["input_shape"], arguments) if split is None else split.x
    threads = arguments.threads or len(os.sched_getaffinity(0))
    measured = reload(
        arguments.exports, x, batches=arguments.batch, rounds=arguments.rounds, threads=threads, trust=arguments.trust
    )
    labels = labels_of(arguments.exports)
    rows = []
    for path, label, manifest, found in zip(arguments.exports, labels, manifests, measured, strict=True):
        rows += _rows({"export": str(path), "label": label}, manifest, found, split)
    inputs = "random" if split is None else f"test split of {manifests[0]['data']['name']}"
    result = {"machine": machine(), "threads": threads, "rounds": arguments.rounds, "inputs": inputs, "rows": rows}
    if arguments.figure:
        write_atomically(arguments.figure, bench_figure(result))
    if not emit(result, arguments.json):
        said = f"{threads} threads; {arguments.rounds} rounds, all exports in turn, after a warm-up; inputs: {inputs}"
        say(bench_table(result), said, *([f"picture: {arguments.figure}"] if arguments.figure else []))
    return 0


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Short names, no two alike where the paths are not: as many last parts of the paths as it takes."""
    most = max(len(path.parts) for path in paths)
    for count in range(1, most):
        labels = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(labels)) == len(set(paths)):
            return labels
    return [str(path) for path in paths]


def _check(arguments: Any) -> None:
    if min(arguments.batch) < 1 or arguments.rounds < 1:
        raise BpruneError(f"--batch and --rounds must be positive, got {arguments.batch} and {arguments.rounds}")
    if arguments.threads is not None and arguments.threads < 1:
        raise BpruneError(f"--threads must be positive, got {arguments.threads}")
    if arguments.figure is not None and arguments.figure.suffix != ".png":
        raise BpruneError(f"--figure writes a PNG: expected a name that ends in .png, got {arguments.figure}")


def _test_split(manifests: list[Json], arguments: Any) -> Split | None:
    """The test split that all exports were made for; None where there is none at hand."""
    without = "inputs are random, nothing is scored"
    prints = {(manifest.get("data") or {}).get("fingerprint") for manifest in manifests}
    if len(prints) > 1:
        raise BpruneError(
            f"the exports were trained on {len(prints)} different datasets: expected one; run bench once for each"
        )
    splits = data_if_there(manifests[0], arguments, without)
    return None if splits is None else splits.examples("test")


def _precision(manifest: Json) -> str:
    """Of all layers' weights, or "mixed"; exports of before do not say it."""
    found = {layer.get("precision", "float32") for layer in manifest["layers"].values()}
    return "mixed" if len(found) > 1 else next(iter(found), "float32")


def _random(shape: list[int], arguments: Any) -> np.ndarray:
    import numpy as np

    return np.random.default_rng(arguments.seed).uniform(0, 255, (max(arguments.batch), *shape)).astype(np.float32)


def _rows(name: Json, manifest: Json, found: Reloaded, split: Split | None) -> list[Json]:
    """A row for each batch size of one export."""
    from tfp_bprune.evaluation.fresh import scores_of
    from tfp_bprune.exports.forms import form_of

    about = (
        name
        | {"format": form_of(manifest).name, "precision": _precision(manifest)}
        | {key: manifest[key] for key in ("predictive", "sparsity", "bytes", "payload_bytes") if key in manifest}
    )
    scores = {} if split is None else scores_of(found.outputs, split.y, name["export"])
    return [
        about
        | scores
        | {
            "batch": int(batch),
            "latency_ms": times["median"],
            "p95_ms": times["p95"],
            "throughput": 1e3 * int(batch) / times["median"],
        }
        for batch, times in found.latency_ms.items()
    ]
