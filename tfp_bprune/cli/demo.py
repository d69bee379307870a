"""`tfp-bprune demo`: the whole way in about a minute, on data that needs no download."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from tfp_bprune.cli import sweep as sweep_command
from tfp_bprune.cli import train as train_command
from tfp_bprune.cli.common import Parser, add_json, emit, program, say
from tfp_bprune.types import Json

HELP = "train, prune, export and measure on handwritten digits; no download"
EXAMPLE = """example:
  tfp-bprune demo --out runs/demo
"""
# Chosen on the validation split. The whole KL leaves the posterior of 1,294 images so wide that draws are too cautious, however
# long the training (expected calibration error of draws .06 after 100 epochs, .08 after 200); with a tenth of it it is .02.
_SETTINGS = [
    "--dataset", "digits", "--hidden", "256", "256", "--epochs", "100", "--learning-rate", "0.003", "--batch-size", "32",
    "--prior", "ard", "--kl-weight", "0.1",
]  # fmt: skip
_SWEEP = ["--granularity", "unit"]
_EXAMPLES = 20  # test images that are kept for `predict`


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="RUN",
        help="folder for the run; an earlier demo in it is replaced",
    )
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    out = arguments.out
    _clear_earlier_demo(out)
    _tell(
        arguments,
        "A Bayesian network learns 8x8 handwritten digits. Every weight is a normal distribution; weights of a neuron share a prior.",
    )
    train_command.train(_request(out), out)
    _tell(
        arguments,
        "Neurons with a low signal-to-noise ratio, |mean| / standard deviation, are removed; each network is exported, reloaded in a "
        "fresh process, tested and timed.",
    )
    _keep_examples(out)
    result = sweep_command.sweep_run(out, sweep_command._DEFAULT, _arguments_of(sweep_command, [str(out), *_SWEEP]))
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


def _keep_examples(out: Path) -> None:
    """Some test images in a file of the run."""
    import numpy as np

    from tfp_bprune.data.splits import load
    from tfp_bprune.files.runs import Run

    content, run_directory = io.BytesIO(), Run.open(out)
    np.save(content, load("digits").examples("test").x[:_EXAMPLES])
    with run_directory.locked():
        run_directory.commit({"examples.npy": content.getvalue()})


def _explain(result: Json, out: Path) -> None:
    from tfp_bprune.reports import sweep_table

    first = result["rows"][0]
    enough = [row for row in result["rows"] if row["accuracy"] >= first["accuracy"] - 0.01]
    best, name = max(enough, key=lambda row: row["sparsity"]), program()
    faster = first["latency_ms"]["256"] / best["latency_ms"]["256"]
    say(sweep_table(result))
    say(
        f"Without {100 * best['sparsity']:.0f} % of its weights, whole neurons at a time, the network is right on "
        f"{100 * best['accuracy']:.1f} % of the test digits ({100 * first['accuracy']:.1f} % with all of them), takes "
        f"{100 * best['bytes'] / first['bytes']:.0f} % of the bytes and answers a batch of 256 {faster:.1f} times as fast."
    )
    say(f"picture: {out / 'sweep-unit.png'}   figures: {out / 'sweep-unit.json'}   exports: {out / 'exports-unit'}")
    say(
        "try next:",
        f"  {name} predict {best['exports']['sampled']} {out / 'examples.npy'}",
        f"  {name} inspect {best['exports']['mean']}",
        f"  {name} bench {first['exports']['mean']} {first['exports']['sampled']} {best['exports']['sampled']}",
        f"  {name} sweep {out} --sparsity 0 0.9 0.95      # single weights",
        f"  {name} train --dataset mnist --data-dir DIR --hidden 500 500 --out runs/mnist",
    )
