"""`tfp-bprune prune`: a run without the weights that carry no signal, as a new run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import Parser, add_held_out, add_json, add_pruning, data_of, emit, pruning_of, say
from tfp_bprune.types import Calibrated, Json

HELP = "remove weights of low signal-to-noise ratio"
EXAMPLE = """example:
  tfp-bprune prune runs/demo --sparsity 0.9 --out runs/demo-90
  tfp-bprune prune runs/demo --granularity unit --out runs/demo-small      # removes what the evidence finds superfluous
  tfp-bprune prune runs/demo --sparsity 0.5 --granularity unit --inputs --out runs/demo-units
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument(
        "--sparsity",
        type=float,
        help="fraction of the weights to remove, in [0, 1) (default: all weights whose removal raises the log evidence)",
    )
    parser.add_argument("--threshold", type=float, help="instead of --sparsity: remove weights with a score below it")
    parser.add_argument("--include-bias", action="store_true", help="also remove Bayesian biases")
    measured = "recompute the statistics of batch normalization on training data, for predicting with the posterior mean or with draws"
    add_choice(parser, "--recalibrate", Calibrated, help=measured)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="RUN", help="folder for the pruned run, new or empty"
    )
    add_pruning(parser)
    add_held_out(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.files.runs import Run
    from tfp_bprune.pruning import prune
    from tfp_bprune.storage import load_model, save_model
    from tfp_bprune.training import recalibrate

    Run.create(arguments.out)  # refuse early
    saved = load_model(arguments.run)
    pruned, report = prune(
        saved.model,
        sparsity=arguments.sparsity,
        threshold=arguments.threshold,
        include_bias=arguments.include_bias,
        **pruning_of(arguments),
    )
    if arguments.recalibrate:
        train = data_of(saved.config, arguments).examples("train")
        pruned = recalibrate(pruned, train.batches(100), predictive=arguments.recalibrate)
    config: Json = {key: saved.config[key] for key in ("request", "data", "settings") if key in saved.config}
    save_model(
        pruned,
        arguments.out,
        config=config,
        **{key: saved.manifest[key] for key in ("seed", "data") if key in saved.manifest},
        **_before(arguments.run, saved.manifest),
        pruning=report.to_json(),
    )
    if not emit({"run": str(arguments.out), **report.to_json()}, arguments.json):
        say(
            f"removed {report.pruned} of {report.prunable} weights ({100 * report.sparsity:.2f} %) into {arguments.out}"
        )
        if report.multiplications is not None and report.granularity == "unit":
            left, whole = report.multiplications
            say(f"  multiplications of an example: {left} of {whole} ({100 * left / whole:.3g} %)")
        for layer in report.layers:
            say(f"  {layer.name}: {100 * layer.sparsity:.2f} % of {layer.prunable}")
        for name, use in report.inputs.items():
            if not use.whole:
                say(f"  input {name}: {len(use.which)} of {use.of} {use.by}s are read")
        if report.missed:
            say(f"  {report.missed}")
        if report.ties:
            say(f"  {report.ties} kept weights tie with removed ones; among equals the first in order went")
        say(f"next: tfp-bprune export {arguments.out} --out {arguments.out}-export")
    return 0


def _before(path: Path, manifest: Json) -> Json:
    """`before`: what training said of the network on its validation split at its last epoch, kept when pruned again.

    Those figures are of one draw of the weights. Empty for a network that was not trained in a run.
    """
    from tfp_bprune.files.runs import Run

    if "before" in manifest or "pruning" in manifest:
        return {"before": manifest["before"]} if "before" in manifest else {}
    rows = Run.open(path).read_rows()
    last = rows[-1] if rows else {}
    scores = {key: last[f"val_{key}"] for key in ("accuracy", "nll") if f"val_{key}" in last}
    return {"before": {"split": "valid", "epoch": last.get("epoch"), **scores}} if scores else {}
