"""`tfp-bprune evaluate`: scores of a run or an export on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import Parser, add_data, add_json, add_trust, data_of, emit, say
from tfp_bprune.types import HeldOut, Json, Predictive, RunError

HELP = "score a run or an export on held-out data"
EXAMPLE = """example:
  tfp-bprune evaluate served/mnist --json -
  tfp-bprune evaluate runs/mnist --split valid
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="a run directory or an export")
    add_choice(parser, "--split", HeldOut, "test", "what to score on")
    add_choice(parser, "--predictive", Predictive, "mean", "for a run")
    parser.add_argument("--samples", type=int, default=30, help="draws, when sampled (default: 30)")
    add_trust(parser)
    add_data(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.files.runs import Run

    kind = Run.open(arguments.path).manifest.get("kind")
    result = (
        _evaluate_export(arguments, arguments.path, arguments.trust) if kind == "export" else _evaluate_run(arguments)
    )
    if not emit(result, arguments.json):
        for name, value in result.items():
            say(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return 0


def _evaluate_run(arguments: Any) -> Json:
    from tfp_bprune.exports import export
    from tfp_bprune.files.aside import scratch
    from tfp_bprune.storage import load_model

    saved = load_model(arguments.path)
    facts = {"data": saved.config.get("data"), "request": saved.config.get("request")}
    with scratch() as folder:
        export(
            saved.model,
            folder / "export",
            predictive=arguments.predictive,
            samples=arguments.samples,
            facts=facts,
        )
        return _evaluate_export(arguments, folder / "export", trust=True)


def _evaluate_export(arguments: Any, path: Path, trust: bool) -> Json:
    from tfp_bprune.evaluation import reload
    from tfp_bprune.evaluation.fresh import check_export, scores_of
    from tfp_bprune.evaluation.metrics import as_served

    manifest = check_export(path)
    if not manifest.get("request"):
        raise RunError(f"{path} does not say what it was trained on: expected an export written by `tfp-bprune export`")
    split = as_served(data_of(manifest, arguments.data_dir).examples(arguments.split), manifest)
    scores = scores_of(reload([path], split.x, trust=trust)[0].outputs, split.y, path)
    about = {
        "path": str(arguments.path),
        "dataset": manifest["data"]["name"],
        "split": arguments.split,
        "predictive": manifest["predictive"],
    }
    return {
        **about,
        **scores,
        "sparsity": manifest["sparsity"],
        "nonzeros": manifest["nonzeros"],
        "bytes": manifest["bytes"],
    }
