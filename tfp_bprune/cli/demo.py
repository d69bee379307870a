"""`tfp-bprune demo`: the whole way in about a minute, on data that needs no download."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfp_bprune.cli import sweep as sweep_command
from tfp_bprune.cli import train as train_command
from tfp_bprune.cli.common import Parser, add_json, emit, say
from tfp_bprune.types import Json

HELP = "train, prune, export and measure on handwritten digits; no download"
EXAMPLE = """example:
  tfp-bprune demo --out runs/demo
"""
# Chosen on the validation split. With 1,294 training images the KL has to act from the first step to have its effect.
_SETTINGS = [
    "--dataset", "digits", "--hidden", "256", "256", "--epochs", "100",
    "--learning-rate", "0.003", "--batch-size", "32", "--kl", "constant",
]  # fmt: skip


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="RUN",
        help="where to write (default: runs/demo); an earlier demo there is replaced",
    )
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    out = arguments.out
    _clear_earlier_demo(out)
    _tell(
        arguments,
        "A Bayesian network learns 8x8 handwritten digits: every weight is a normal distribution, mean and standard deviation.",
    )
    train_command.train(_request(out), out)
    _tell(
        arguments,
        "Weights with little signal, |mean| / standard deviation, are removed; each network is exported, reloaded in a fresh process, tested.",
    )
    result = sweep_command.sweep_run(out, sweep_command._DEFAULT, _arguments_of(sweep_command, [str(out)]))
    if not emit(result, arguments.json):
        _explain(result, out)
    return 0


def _tell(arguments: Any, text: str) -> None:
    if arguments.json != "-":
        say(text)


def _request(out: Path) -> Json:
    return train_command.request_of(_arguments_of(train_command, [*_SETTINGS, "--out", str(out)])) | {"demo": True}


def _arguments_of(command: Any, words: list[str]) -> argparse.Namespace:
    parser = Parser()
    command.add_arguments(parser)
    return parser.parse_args(words)


def _clear_earlier_demo(out: Path) -> None:
    from tfp_bprune.files.aside import beside
    from tfp_bprune.files.runs import Run

    run_directory = Run(out)
    if run_directory.exists:
        with run_directory.locked(), beside(out) as folder:
            if (run_directory.config.get("request") or {}).get("demo"):
                out.rename(folder / out.name)  # whole: of a part nobody could tell what it was


def _explain(result: Json, out: Path) -> None:
    from tfp_bprune.reports import sweep_table

    first = result["rows"][0]
    enough = [row for row in result["rows"] if row["accuracy"] >= first["accuracy"] - 0.01]
    best = max(enough, key=lambda row: row["sparsity"])
    say(sweep_table(result))
    say(
        f"Without {100 * best['sparsity']:.0f} % of its weights the network is right on {100 * best['accuracy']:.1f} % of the test digits"
        f" ({100 * first['accuracy']:.1f} % with all of them), in {best['bytes'] / first['bytes']:.2f} of the bytes."
    )
    say(f"picture: {out / 'sweep.png'}   figures: {out / 'sweep.json'}   exports: {out / 'exports'}")
    say(
        "try next:",
        f"  tfp-bprune inspect {best['exports']['mean']}",
        f"  tfp-bprune bench {first['exports']['mean']} {first['exports']['sampled']} {best['exports']['sampled']}",
        f"  tfp-bprune prune {out} --sparsity {best['requested']:g} --out {out}-pruned",
        "  tfp-bprune train --dataset mnist --data-dir DIR --hidden 500 500 --out runs/mnist",
    )
