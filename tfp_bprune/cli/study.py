"""`tfp-bprune study`: the published studies again, or as they should have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.common import Parser, add_data, add_json, emit, say
from tfp_bprune.studies import BUDGETS, STUDIES

HELP = "run a published study again: networks trained, pruned, measured; table, text and pictures"
EXAMPLE = f"""studies:
{chr(10).join(f"  {name:12} {text}" for name, text in STUDIES.items())}

example:
  tfp-bprune study compression --budget quick --out runs/quick
  tfp-bprune study compression --dataset mnist --seeds 3 --data-dir DIR --jobs 2 --out docs/studies --networks runs/networks

A study that was ended goes on where it was: the same command again repeats no finished network.
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("study", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--dataset", nargs="+", default=[], metavar="NAME", help="(default: the study's own)")
    parser.add_argument("--seeds", type=int, default=0, help="how many, from 0 on (default: the study's own number)")
    parser.add_argument("--budget", choices=list(BUDGETS), default="full", help="quick takes a minute (default: full)")
    parser.add_argument("--epochs", type=int, help="instead of the study's own number")
    parser.add_argument(
        "--jobs", type=int, default=1, help="networks at once; 0: all in this process (default: 1, with all cores)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where NAME.md, NAME.json and pictures go"
    )
    parser.add_argument(
        "--networks", type=Path, metavar="DIR", help="store of networks, which studies share (default: OUT/networks)"
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
            arguments.seeds,
            arguments.budget,
            arguments.epochs,
            arguments.jobs,
            arguments.data_dir,
            arguments.networks,
        )
    )
    if not emit(result, arguments.json):
        say(f"{len(result['rows'])} rows from {len(result['networks'])} networks: {arguments.out / arguments.study}.md")
    return 0
