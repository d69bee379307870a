"""`tfp-bprune study`: the published studies again, or as they should have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.common import Parser, add_data, add_json, emit, say
from tfp_bprune.studies import BUDGETS, STUDIES

HELP = "repeat a published study: trains, prunes and measures networks; writes text, a table and pictures"
EXAMPLE = f"""studies:
{chr(10).join(f"  {name:12} {text}" for name, text in STUDIES.items())}

example:
  tfp-bprune study compression --budget quick --out runs/quick
  tfp-bprune study compression --dataset mnist --seeds 3 --data-dir DIR --jobs 2 --out docs/studies --networks runs/networks

Rerun the command to resume a study that was stopped: finished networks are not trained again.
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("study", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument(
        "--dataset", nargs="+", default=[], metavar="NAME", help="datasets (default: those of the study)"
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="NAME",
        help="networks, in scale and units (default: all of the study)",
    )
    parser.add_argument("--seeds", type=int, help="number of seeds, counted from 0 (default: that of the study)")
    parser.add_argument("--budget", choices=list(BUDGETS), default="full", help="quick takes about a minute")
    parser.add_argument("--epochs", type=int, help="epochs of each training (default: those of the study)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="networks to train at once, each in a process of its own; 0 trains in this process",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for NAME.md, NAME.json and pictures"
    )
    parser.add_argument(
        "--networks",
        type=Path,
        metavar="DIR",
        help="folder of trained networks, which studies share (default: OUT/networks)",
    )
    add_data(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.studies.study import Settings, run_study

    result = run_study(
        Settings(
            arguments.study,
            arguments.out,
            tuple(dict.fromkeys(arguments.dataset)),
            arguments.seeds or 0,
            arguments.budget,
            arguments.epochs,
            arguments.jobs,
            arguments.data_dir,
            arguments.networks,
            tuple(dict.fromkeys(arguments.model)),
        )
    )
    if not emit(result, arguments.json):
        say(f"{len(result['rows'])} rows from {len(result['networks'])} networks: {arguments.out / arguments.study}.md")
    return 0
