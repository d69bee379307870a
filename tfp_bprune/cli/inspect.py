"""`tfp-bprune inspect`: what a folder is, every file checked against its SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.common import Parser, add_json, emit, say

HELP = "say what a run or export is, and verify its files"
EXAMPLE = """example:
  tfp-bprune inspect runs/demo/exports/0.95-mean
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
