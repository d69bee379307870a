"""`tfp-bprune predict`: what an export says of the examples in a file, as a table."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

from tfp_bprune.cli.common import Parser, add_json, add_trust, emit, say
from tfp_bprune.types import ExportError, Json

HELP = "predict the examples of a file: class or value, and how uncertain it is, as a table"
EXAMPLE = """example:
  tfp-bprune predict runs/demo/exports-unit/0.9-sampled runs/demo/examples.npy
  tfp-bprune predict runs/demo/exports-unit/0.9-sampled runs/demo/examples.npy --out predictions.csv
  tfp-bprune predict served/faces photos --out faces.csv      # a folder of .png
"""
_DIGITS = 6  # as many as float32 has


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("path", type=Path, metavar="EXPORT", help="folder of an export, or of a run")
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="examples in their raw units: .npy [n, ...]; .npz, an array for each input; .csv, a row for each example; or a "
        "folder of .png",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="write the table to a file (default: standard output)"
    )
    add_trust(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.data.from_files import read_examples
    from tfp_bprune.evaluation.predict import predict
    from tfp_bprune.files.writing import write_atomically

    x, names = read_examples(arguments.file, _inputs_of(arguments.path))
    columns = predict(arguments.path, x, trust=arguments.trust).columns()
    table = {"example": names} | {name: column.tolist() for name, column in columns.items()}
    result: Json = {"path": str(arguments.path), "examples": len(names), "columns": table}
    if arguments.out is not None:
        write_atomically(arguments.out, _csv_of(table).encode())
    if emit(result, arguments.json):
        return 0
    if arguments.out is None:
        sys.stdout.write(_csv_of(table))
    else:
        say(f"predicted {len(names):,} examples: {arguments.out}")
    return 0


def _inputs_of(path: Path) -> Json:
    """Shape and type of each input."""
    from tfp_bprune.data.info import Info
    from tfp_bprune.evaluation.fresh import check_export, inputs_in
    from tfp_bprune.files.runs import Run

    run_directory = Run.open(path)
    if run_directory.manifest.get("kind") == "export":
        return inputs_in(check_export(path))
    data = run_directory.config.get("data")
    if data is None:
        raise ExportError(f"{path} does not say what examples it takes: export it, and name the export")
    info = Info.from_json(data)
    shapes = info.inputs or {"inputs": info.input_shape}
    return {name: {"shape": list(shape), "dtype": "float32"} for name, shape in shapes.items()}


def _csv_of(table: Json) -> str:
    """A header, and a line for each example."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    for row in zip(*table.values(), strict=True):
        writer.writerow(f"{cell:.{_DIGITS}g}" if isinstance(cell, float) else cell for cell in row)
    return text.getvalue()
