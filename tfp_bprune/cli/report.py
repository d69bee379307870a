"""`tfp-bprune report`: what a run and its exports are worth, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import Parser, add_held_out, add_json, add_trust, data_if_there, emit, facts_of, note, say
from tfp_bprune.types import ExportError, HeldOut, Json

if TYPE_CHECKING:
    from tfp_bprune.data.splits import Split
    from tfp_bprune.files.runs import Run

HELP = "write a page of HTML about a run and its exports: curves, calibration, cost, what was pruned"
EXAMPLE = """example:
  tfp-bprune report runs/demo runs/demo/exports-unit/0.9-sampled runs/demo/exports-unit/0.9-mean --out demo.html
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("exports", type=Path, nargs="*", metavar="EXPORT", help="exports of it, to stand beside it")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page (default: RUN-report.html)")
    add_choice(parser, "--split", HeldOut, "test", "split to score on")
    add_trust(parser)
    add_held_out(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.files.runs import Run, write_atomically
    from tfp_bprune.reports.report import report_page

    opened = Run.open(arguments.run)
    if opened.manifest.get("kind") == "export":
        raise ExportError(f"{arguments.run} is an export: expected the run first, then its exports")
    out = arguments.out or arguments.run.with_name(f"{arguments.run.resolve().name}-report.html")
    report = report_of(arguments, opened)
    write_atomically(out, report_page(report).encode())
    if not emit({"page": str(out), **report}, arguments.json):
        say(f"page: {out}")
    return 0


def report_of(arguments: Any, opened: Run) -> Json:
    """Everything that the page shows, as plain data."""
    from tfp_bprune.files.runs import CONFIG, METRICS, finite

    files = opened.manifest["files"]
    config = opened.config if CONFIG in files else {}
    splits = data_if_there(config, arguments, "nothing is scored")
    split = None if splits is None else splits.examples(arguments.split)
    networks = [_run_of(opened, split), *(_export_of(path, arguments, split) for path in arguments.exports)]
    about: Json = {"path": str(arguments.run), "facts": facts_of(config)}
    about |= {key: config.get(key) for key in ("data", "settings")} | {"versions": opened.manifest.get("versions")}
    return finite(
        {
            "run": about,
            "history": opened.read_rows() if METRICS in files else [],
            "networks": networks,
            "split": arguments.split,
            "files": {str(path): _checked(path) for path in (arguments.run, *arguments.exports)},
        }
    )


def _checked(path: Path) -> Json:
    from tfp_bprune.files.runs import Run

    found = Run.open(path)
    found.verify()
    return found.manifest["files"]


def _run_of(opened: Run, split: Split | None) -> Json:
    """The run's network as it was trained, or pruned."""
    from tfp_bprune.exports.manifest import describe
    from tfp_bprune.graphs import adopt
    from tfp_bprune.pruning.scoring import default_criterion
    from tfp_bprune.storage import load_model

    model = load_model(opened.path).model
    predictive = "sampled" if default_criterion(model) == "snr" else "mean"
    return {
        "name": "run", "predictive": predictive, **describe(adopt(model)), "summary": _summary(model, split, predictive=predictive),
    }  # fmt: skip


def _export_of(path: Path, arguments: Any, split: Split | None) -> Json:
    from tfp_bprune.evaluation.fresh import check_export

    manifest = check_export(path)
    kept = (
        "predictive",
        "layers",
        "prunable",
        "nonzeros",
        "sparsity",
        "bytes",
        "payload_bytes",
        "latency_ms",
        "machine",
    )
    summary = _summary(path, split, trust=arguments.trust)
    shown = {key: manifest[key] for key in kept if key in manifest}
    return {"name": path.name, "format": manifest.get("export_format", "savedmodel"), **shown, "summary": summary}


def _summary(model: Any, split: Split | None, **how: Any) -> Json | None:
    from tfp_bprune.evaluation.evaluate import evaluate
    from tfp_bprune.evaluation.summary import summary_of

    if split is None:
        return None
    note(f"scoring {model if isinstance(model, Path) else 'the run'} on {len(split)} examples ...")
    return summary_of(evaluate(model, split, progress=False, **how))
