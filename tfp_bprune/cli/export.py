"""`tfp-bprune export`: a run as a SavedModel, an ONNX or a LiteRT file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.choices import FORMATS, add_choice
from tfp_bprune.cli.common import (
    Parser,
    add_held_out,
    add_json,
    add_precision,
    data_if_there,
    data_of,
    emit,
    facts_of,
    fewer_bits,
    note,
    precision_of,
    say,
)
from tfp_bprune.types import ExportError, Json, Kernels, Predictive

if TYPE_CHECKING:
    from tfp_bprune.data.splits import Split
    from tfp_bprune.prediction.cost import Costs

_REPRESENTATIVE = 500
HELP = "write a run as a SavedModel that needs TensorFlow alone, or as an ONNX or LiteRT file"
EXAMPLE = """example:
  tfp-bprune export runs/demo --out served/demo
  tfp-bprune export runs/demo --predictive moments --out served/demo-moments
  tfp-bprune export runs/demo --predictive sampled --samples 100 --error-rate 0.01 --out served/demo-sampled
  tfp-bprune export runs/demo --calibrate --costs served/costs.json --out served/demo-here
  tfp-bprune export runs/demo --calibrate temperature --conformal 0.9 --out served/demo-sets
  tfp-bprune export runs/demo --precision auto --out served/demo-small
  tfp-bprune export runs/demo --format litert --precision int8 --out served/demo-litert      # needs the extra `formats`
  tfp-bprune export runs/demo --format litert --batch 1 --out served/demo-browser            # for LiteRT.js
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, required=True, metavar="EXPORT", help="a folder that does not exist yet")
    passes = "the posterior mean, the mean of draws, or means and variances in one pass"
    add_choice(parser, "--predictive", Predictive, "mean", passes)
    parser.add_argument("--samples", type=int, default=30, help="number of draws, for --predictive sampled")
    parser.add_argument(
        "--error-rate",
        type=float,
        metavar="P",
        help="for sampled classification: stop sampling once the predicted class is statistically certain; P bounds the chance "
        "that all draws would predict another class",
    )
    add_choice(
        parser,
        "--format",
        FORMATS,
        "savedmodel",
        "file format; onnx and litert need the extra `formats`, openvino the extra `openvino`",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="fixed batch size of an onnx or litert file (default: any)",
    )
    parser.add_argument("--float16", action="store_true", help="the same as --precision float16")
    add_precision(parser)
    parser.add_argument(
        "--all-int8",
        action="store_true",
        help="calibrate the ranges of activations on training examples, and compute in integers throughout (litert, onnx; "
        "--precision int8 unless another is given)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draws")
    _add_kernels(parser)
    parser.add_argument(
        "--no-score",
        action="store_true",
        help="do not measure scores on the validation split nor latency for the manifest",
    )
    add_held_out(parser)
    add_json(parser)


def _add_kernels(parser: Parser) -> None:
    faster = "storage of the matrices of dense layers: dense, a list of the nonzero weights (sparse), or compressed sparse rows "
    faster += "(csr); auto takes the fastest at each batch size"
    add_choice(parser, "--kernels", Kernels, "auto", faster)
    parser.add_argument(
        "--calibrate",
        nargs="?",
        action="append",
        const="products",
        choices=["products", "temperature"],
        help="temperature: scale the logits by the temperature that minimizes the NLL on the validation split. Without a value, or "
        "products: time dense and sparse products on this machine, for --kernels auto; takes some seconds",
    )
    parser.add_argument(
        "--conformal",
        type=float,
        metavar="P",
        help="add conformal prediction sets, or intervals for a regression, that contain the true answer with probability P; fitted "
        "to the validation split",
    )
    parser.add_argument(
        "--costs",
        type=Path,
        metavar="FILE",
        help="file of measured timings for --kernels auto, which --calibrate writes (default: built-in timings of a server)",
    )


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.exports import export
    from tfp_bprune.exports.writing import check_new
    from tfp_bprune.storage import load_model

    _check(arguments)
    check_new(arguments.out)  # before anything that takes time
    saved = load_model(arguments.run)
    # Before the export too: a folder without the data is an error of the user, and nothing should be left behind then.
    split = None if arguments.no_score else _validation(saved.config, arguments)
    facts = {**facts_of(saved.config), "data": saved.config.get("data"), "request": saved.config.get("request")}
    if "before" in saved.manifest:
        facts["before"] = saved.manifest["before"]
    manifest = export(
        saved.model,
        arguments.out,
        predictive=arguments.predictive,
        samples=arguments.samples,
        seed=arguments.seed,
        kernels=arguments.kernels,
        format=arguments.format,
        batch=arguments.batch,
        float16=arguments.float16,
        precision=precision_of(arguments),
        rounding_loss=arguments.rounding_loss,
        representative=_representative(saved.config, arguments),
        calibrate="temperature" if _fits_temperature(arguments) else None,
        conformal=arguments.conformal,
        error_rate=arguments.error_rate,
        costs=_costs(arguments),
        validation=_compared_on(arguments, split),
        facts=facts,
        finish=lambda folder: _score(folder, split),
    )
    if not emit({"export": str(arguments.out), **manifest}, arguments.json):
        _explain(arguments, manifest)
    return 0


def _check(arguments: Any) -> None:
    """Refuses what contradicts itself: data that nothing is scored on, costs that nothing is chosen by."""
    for flag, given in (("--data-dir", arguments.data_dir), ("--data", arguments.data)):
        if arguments.no_score and given is not None:
            raise ExportError(f"{flag} is the data to score on, got --no-score too: leave one of them out")
    if arguments.no_score and (_fits_temperature(arguments) or arguments.conformal is not None):
        given = "--calibrate temperature" if _fits_temperature(arguments) else "--conformal"
        raise ExportError(f"{given} takes the validation split, got --no-score too: leave one of them out")
    if arguments.all_int8:
        if arguments.format == "savedmodel":
            raise ExportError("--all-int8 is for --format litert or onnx, got savedmodel: leave it out")
        if not fewer_bits(arguments):
            arguments.precision = ["int8"]
    if not (_times_products(arguments) or arguments.costs):
        return
    given = "--calibrate" if _times_products(arguments) else "--costs"
    if arguments.format != "savedmodel":
        raise ExportError(f"{given} is for --format savedmodel, got {arguments.format}: leave it out")
    if arguments.kernels != "auto":
        raise ExportError(
            f"{given} is for --kernels auto, got {arguments.kernels}, which chooses nothing: leave it out"
        )


def _times_products(arguments: Any) -> bool:
    return "products" in (arguments.calibrate or [])


def _fits_temperature(arguments: Any) -> bool:
    return "temperature" in (arguments.calibrate or [])


def _validation(config: Json, arguments: Any) -> Split | None:
    """The validation split of the run's data; None, and a note, where there is none at hand."""
    splits = data_if_there(config, arguments, "the export is not scored")
    if splits is None:
        return None
    split = splits.examples("valid")
    if len(split) == 0:
        note("the export is not scored: the run held out no examples for validation")
        return None
    return split


def _compared_on(arguments: Any, split: Split | None) -> Any:
    """The examples on which moments are held against draws, and few bits against float32; None where there are none or
    nothing is to be compared."""
    if split is None:
        return None
    if fewer_bits(arguments) or _fits_temperature(arguments) or arguments.conformal is not None:
        return split
    if arguments.predictive != "moments" or arguments.error_rate is not None:  # the last is refused
        return None
    note("comparing moments with draws on validation examples; --no-score leaves this out ...")
    return split.x


def _representative(config: Json, arguments: Any) -> Any:
    """Examples of the training split, by which ranges of activations are settled; None where nobody asked for it."""
    if not arguments.all_int8:
        return None
    split = data_of(config, arguments).examples("train")
    return split.rows(slice(0, _REPRESENTATIVE)).x


def _score(path: Path, split: Split | None) -> None:
    """Adds its scores to the manifest of the export at `path`, where there are examples to score it on."""
    from tfp_bprune.evaluation.score import record_scores

    if split is not None:
        note(f"scoring it on {len(split)} validation examples in a fresh process; --no-score leaves this out ...")
        record_scores(path, split)


def _costs(arguments: Any) -> Costs | None:
    """The costs of products to choose by; None for those shipped."""
    from tfp_bprune.prediction import cost

    if not _times_products(arguments):
        return None if arguments.costs is None else cost.read(arguments.costs)
    note("measuring dense and sparse products on this machine, some seconds ...")
    costs = cost.measure()
    if arguments.costs is not None:
        cost.save(costs, arguments.costs)
    return costs


def _explain(arguments: Any, manifest: Json) -> None:
    from tfp_bprune.reports.tables import (
        calibration_lines,
        human_bytes,
        moments_line,
        precision_line,
        products_table,
        scores_line,
    )

    say(f"exported {arguments.predictive} of {arguments.run} to {arguments.out}: {human_bytes(manifest['bytes'])}")
    for title, scores in (("at the end of training", manifest.get("before")), ("as exported", manifest.get("scores"))):
        if scores:
            say(f"{title}, validation split: {scores_line(scores)}")
    if not isinstance(manifest["precision"], str) or manifest["precision"] != "float32":
        say(precision_line(manifest))
    for line in calibration_lines(manifest):
        say(line)
    if "moments_vs_draws" in manifest:
        say(moments_line(manifest["moments_vs_draws"]))
    products = {name: layer for name, layer in manifest["layers"].items() if "form" in layer}
    if products:
        say(products_table(products))
    say(f"next: tfp-bprune evaluate {arguments.out}")
