"""`tfp-bprune bench`: speed of exports side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.common import Parser, add_json, emit, say

HELP = "time exports side by side"
EXAMPLE = """example:
  tfp-bprune bench runs/demo/exports/0-mean runs/demo/exports/0.95-mean --batch 1 32 256
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "exports", type=Path, nargs="+", metavar="EXPORT", help="folders written by `tfp-bprune export`"
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 32, 256], metavar="N", help="batch sizes (default: 1 32 256)"
    )
    parser.add_argument(
        "--rounds", type=int, default=50, help="rounds in which every export has its turn (default: 50)"
    )
    parser.add_argument("--threads", type=int, help="of each runtime (default: one a core)")
    parser.add_argument("--seed", type=int, default=0, help="of the random inputs")
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    import numpy as np
    from rich.table import Table

    from tfp_bprune.evaluate.fresh import check_export, reload
    from tfp_bprune.evaluate.sweep import machine
    from tfp_bprune.export.savedmodel import format_of
    from tfp_bprune.report.tables import human_bytes
    from tfp_bprune.types import BpruneError

    if min(arguments.batch) < 1 or arguments.rounds < 1:
        raise BpruneError(f"--batch and --rounds must be positive, got {arguments.batch} and {arguments.rounds}")
    if arguments.threads is not None and arguments.threads < 1:
        raise BpruneError(f"--threads must be positive, got {arguments.threads}")
    manifests = [check_export(path) for path in arguments.exports]
    shape = manifests[0]["input_shape"]
    x = np.random.default_rng(arguments.seed).uniform(0, 255, (max(arguments.batch), *shape)).astype(np.float32)
    measured = reload(arguments.exports, x, arguments.batch, arguments.rounds, arguments.threads)
    rows = []
    for path, manifest, result in zip(arguments.exports, manifests, measured, strict=True):
        for batch, times in result.latency_ms.items():
            row = {
                "export": str(path),
                "format": format_of(manifest),
                "predictive": manifest["predictive"],
                "sparsity": manifest["sparsity"],
                "bytes": manifest["bytes"],
            }
            speed = {
                "batch": int(batch),
                "latency_ms": times["median"],
                "p95_ms": times["p95"],
                "throughput": 1e3 * int(batch) / times["median"],
            }
            rows.append(row | speed)
    if not emit({"machine": machine(), "rows": rows}, arguments.json):
        table = Table("export", "format", "predictive", "bytes", "batch", "median ms", "p95 ms", "examples / s")
        for row in rows:
            cells = (row["export"], row["format"], row["predictive"], human_bytes(row["bytes"]), str(row["batch"]))
            table.add_row(*cells, f"{row['latency_ms']:.3f}", f"{row['p95_ms']:.3f}", f"{row['throughput']:.0f}")
        say(table)
    return 0
