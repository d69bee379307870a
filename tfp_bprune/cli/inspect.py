"""`tfp-bprune inspect`: what a folder is, every file checked against its SHA-256."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.common import Parser, add_json, emit, facts_of, say
from tfp_bprune.files.runs import CONFIG, METRICS

if TYPE_CHECKING:
    from tfp_bprune.files.runs import Run

HELP = "describe a run or an export, and verify its files"
_SHOWN = ("val_accuracy", "val_nll", "val_mse")
EXAMPLE = """example:
  tfp-bprune inspect runs/demo
  tfp-bprune inspect runs/demo/exports-unit/0.9-mean
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="a run directory or an export")
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.files.runs import Run
    from tfp_bprune.reports.tables import scores_line

    directory = Run.open(arguments.path)
    manifest, verified = directory.manifest, directory.verify()
    if not emit({"path": str(arguments.path), "verified": len(verified), **manifest}, arguments.json):
        say(f"{arguments.path}: {manifest.get('kind', 'unknown kind')}, {len(verified)} files, all match their SHA-256")
        for line in _described(directory):
            say(f"  {line}")
        for name, value in manifest.items():
            if name not in ("files", "format", "kind") and not isinstance(value, dict | list):
                say(f"  {name}: {value}")
        if "scores" in manifest:
            say(f"  scores on the {manifest['scores']['split']} split: {scores_line(manifest['scores'])}")
        for name, layer in manifest.get("layers", {}).items():
            bits = f", {layer['precision']}" if "precision" in layer else ""
            left = f"{layer['nonzeros']} of {layer['prunable']} weights left"
            say(f"  {name}: {left} ({100 * layer['sparsity']:.1f} % removed{bits})")
    return 0


def _described(directory: Run) -> Iterator[str]:
    """What a run was trained on, how, and how it ended; nothing of an export, whose manifest says all."""
    if CONFIG not in directory.manifest["files"]:
        return
    config, rows = directory.config, directory.read_rows() if METRICS in directory.manifest["files"] else []
    facts, data = facts_of(config), config.get("data") or {}
    if facts:
        named = [
            facts.get("network", "a model built in Python"),
            f"({facts['inference']})" if "inference" in facts else "",
        ]
        yield " ".join(["network:", *filter(None, named)])
    if data:
        yield f"data: {data.get('name')}, {data.get('task')}, {data.get('train_size', 0):,} training examples"
    shown = [f"{key} {rows[-1][key]:.4f}" for key in _SHOWN if rows and rows[-1].get(key) is not None]
    if rows:
        yield f"epochs: {len(rows)}; last one: {', '.join(shown) or 'no validation split'}"
