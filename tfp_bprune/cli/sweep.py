"""`tfp-bprune sweep`: accuracy, size and speed of a run at several sparsities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import (
    Parser,
    add_held_out,
    add_json,
    add_precision,
    add_pruning,
    data_of,
    emit,
    facts_of,
    fewer_bits,
    precision_of,
    pruning_of,
    say,
)
from tfp_bprune.types import HeldOut, Json

HELP = "prune, export and measure a run at several sparsities"
EXAMPLE = """example:
  tfp-bprune sweep runs/demo --sparsity 0 0.9 0.95
  tfp-bprune sweep runs/demo --sparsity 0.5 --granularity unit --scope layer
  tfp-bprune sweep runs/demo --json - > sweep.json
"""
_DEFAULT = [0.0, 0.5, 0.75, 0.9, 0.95, 0.98]


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="a run directory; sweep.json, sweep.png and exports/ are written into it (sweep-unit.json for units)",
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        default=_DEFAULT,
        metavar="S",
        help="fractions of the weights to remove",
    )
    parser.add_argument("--samples", type=int, default=30, help="number of draws of the sampled prediction")
    add_choice(parser, "--split", HeldOut, "test", "split to score on")
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="recompute the statistics of batch normalization on training data before each export",
    )
    add_precision(parser)
    add_pruning(parser)
    add_held_out(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    result = sweep_run(arguments.run, arguments.sparsity, arguments)
    if not emit(result, arguments.json):
        from tfp_bprune.reports import sweep_table

        name = name_of(arguments)
        say(
            sweep_table(result),
            f"table: {arguments.run / name}.json   picture: {arguments.run / name}.png",
        )
    return 0


def name_of(arguments: Any) -> str:
    """Name of the sweep's files, one for each way of pruning and rounding: `sweep`, `sweep-unit`, `sweep-auto-0.5`."""
    parts = ["unit"] * (arguments.granularity == "unit") + ["recalibrated"] * arguments.recalibrate
    if fewer_bits(arguments):
        precision = precision_of(arguments)
        parts.append(precision if isinstance(precision, str) else "mixed")
    if arguments.rounding_loss is not None:
        parts.append(f"{arguments.rounding_loss:g}")
    return "-".join(["sweep", *parts])


def sweep_run(path: Path, sparsities: list[float], arguments: Any) -> Json:
    """Sweeps the run at `path` and adds `sweep.json` and `sweep.png` to it."""
    from tfp_bprune._progress import Bar
    from tfp_bprune.evaluation import sweep
    from tfp_bprune.files.reading import check_inside
    from tfp_bprune.files.runs import Run, finite
    from tfp_bprune.reports import sweep_figure
    from tfp_bprune.storage import load_model

    saved = load_model(path)
    data = data_of(saved.config, arguments)
    split, name = data.examples(arguments.split), name_of(arguments)
    facts = facts_of(saved.config)
    place = check_inside(path, name.replace("sweep", "exports"))
    run_directory, files = Run.open(path), (f"{name}.json", f"{name}.png")
    with run_directory.locked(), Bar("sweep", len(sparsities)) as bar:
        started = iter(range(len(sparsities)))
        result = finite(
            sweep(
                saved.model, split, place, sparsities=sparsities, samples=arguments.samples, **pruning_of(arguments),
                facts=facts | {"data": saved.config.get("data"), "request": saved.config.get("request")},
                on_step=lambda what: bar.to(next(started), what),
                on_replace=lambda: run_directory.commit({}, drop=tuple(files)),  # it must not name exports that are gone
                precision=precision_of(arguments), rounding_loss=arguments.rounding_loss,
                validation=data.examples("valid") if fewer_bits(arguments) else None,
                calibration=data.examples("train").batches(100) if arguments.recalibrate else None,
            )
        )  # fmt: skip
        bar.to(len(sparsities), "")
        title = f"{facts.get('network', 'network')} ({facts.get('inference', '')}) on {facts.get('dataset', 'data')}, {arguments.split} split"
        contents = ((json.dumps(result, indent=2) + "\n").encode(), sweep_figure(result, title))
        run_directory.commit(dict(zip(files, contents, strict=True)))
    return result
