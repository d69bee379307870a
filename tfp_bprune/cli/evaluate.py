"""`tfp-bprune evaluate`: scores of a run or an export on held-out data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import Parser, add_held_out, add_json, add_trust, data_of, emit, say
from tfp_bprune.types import HeldOut, Json, Predictive, RunError

if TYPE_CHECKING:
    from tfp_bprune.data.splits import Splits

HELP = "score a run or an export on held-out data"
EXAMPLE = """example:
  tfp-bprune evaluate runs/demo --split valid
  tfp-bprune evaluate runs/demo --predictive sampled --samples 100
  tfp-bprune evaluate runs/demo/exports-unit/0.9-mean --json -
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("path", type=Path, metavar="PATH", help="a run directory or an export")
    add_choice(parser, "--split", HeldOut, "test", "split to score on")
    add_choice(
        parser,
        "--predictive",
        Predictive,
        "mean",
        "for a run: the posterior mean, the mean of draws, or means and variances in one pass",
    )
    parser.add_argument("--samples", type=int, default=30, help="number of draws, for --predictive sampled")
    add_trust(parser)
    add_held_out(parser)
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
    splits = data_of(saved.config, arguments)  # before anything that takes time
    facts = {"data": saved.config.get("data"), "request": saved.config.get("request")}
    with scratch() as folder:
        export(
            saved.model,
            folder / "export",
            predictive=arguments.predictive,
            samples=arguments.samples,
            facts=facts,
        )
        return _evaluate_export(arguments, folder / "export", trust=True, splits=splits)


def _evaluate_export(arguments: Any, path: Path, trust: bool, splits: Splits | None = None) -> Json:
    from tfp_bprune.evaluation import reload
    from tfp_bprune.evaluation.fresh import check_export, scores_of
    from tfp_bprune.evaluation.metrics import as_served

    manifest = check_export(path)
    if not manifest.get("data"):
        raise RunError(f"{path} does not say what it was trained on: expected an export written by `tfp-bprune export`")
    split = as_served((splits or data_of(manifest, arguments)).examples(arguments.split), manifest)
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
        **{key: manifest[key] for key in ("bytes", "payload_bytes") if key in manifest},
    }
