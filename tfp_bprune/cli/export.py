"""`tfp-bprune export`: a run as a SavedModel, an ONNX or a LiteRT file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.common import Parser, add_json, emit, facts_of, say

HELP = "write a run as a SavedModel that needs TensorFlow alone, or as an ONNX or LiteRT file"
EXAMPLE = """example:
  tfp-bprune export runs/mnist-95 --out served/mnist
  tfp-bprune export runs/mnist-95 --predictive sampled --samples 30 --out served/mnist-sampled
  tfp-bprune export runs/mnist-95 --format litert --out served/mnist-litert
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, required=True, metavar="EXPORT", help="a folder that does not exist yet")
    parser.add_argument(
        "--predictive",
        choices=["mean", "sampled"],
        default="mean",
        help="the posterior mean, or the mean over draws (default: mean)",
    )
    parser.add_argument("--samples", type=int, default=30, help="draws, when sampled (default: 30)")
    parser.add_argument(
        "--kernels",
        choices=["auto", "dense", "sparse"],
        default="auto",
        help="how dense layers are stored (default: auto)",
    )
    parser.add_argument(
        "--format",
        choices=["savedmodel", "onnx", "litert"],
        default="savedmodel",
        help="what to write; onnx and litert need the extra `formats` (default: savedmodel)",
    )
    parser.add_argument("--float16", action="store_true", help="weights in half the bytes (litert)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.export import export
    from tfp_bprune.models import load_model
    from tfp_bprune.report.tables import human_bytes

    saved = load_model(arguments.run)
    facts = {**facts_of(saved.config), "data": saved.config.get("data"), "request": saved.config.get("request")}
    manifest = export(
        saved.model,
        arguments.out,
        arguments.predictive,
        arguments.samples,
        seed=arguments.seed,
        kernels=arguments.kernels,
        format=arguments.format,
        float16=arguments.float16,
        facts=facts,
    )
    if not emit({"export": str(arguments.out), **manifest}, arguments.json):
        say(f"exported {arguments.predictive} of {arguments.run} to {arguments.out}: {human_bytes(manifest['bytes'])}")
        say(f"next: tfp-bprune evaluate {arguments.out}")
    return 0
