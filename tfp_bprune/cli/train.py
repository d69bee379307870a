"""`tfp-bprune train`: a network into a run directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune.cli.choices import CRITERIA, add_choice
from tfp_bprune.cli.common import Parser, add_data, add_json, emit, say
from tfp_bprune.types import (
    Augmentation,
    BpruneError,
    Compression,
    Counts,
    Granularity,
    Groups,
    Json,
    KLWeighting,
    Layers,
    PriorName,
    RunError,
    Scaling,
    Task,
)

HELP = "train a network into a run directory"
EXAMPLE = """example:
  tfp-bprune train --dataset mnist --data-dir ~/tensorflow_datasets --hidden 500 500 --epochs 20 --out runs/mnist
  tfp-bprune train ... --sparsity 0.98 --out runs/small # prunes while it trains
  tfp-bprune train ... --sparsity 0.9 --granularity unit --shrink --out runs/small # and gets smaller and faster
  tfp-bprune train ... --prior ard --sparsity 0.9 --granularity unit --criterion evidence --counts multiplications --inputs \
    --pruned-over 0.1 0.5 --kl-weight 0.1 --shrink --out runs/small
  tfp-bprune train ... --out runs/mnist --resume      # after it was killed: ends in the same bits
  horovodrun -np 2 -H localhost:2 tfp-bprune train ...
"""


_PRUNING = ("granularity", "criterion", "counts", "inputs")
_PRUNING_BEFORE = {"sparsity": None, "granularity": "weight", "criterion": None, "counts": "weights", "inputs": False}
_PRUNING_BEFORE |= {"pruned_over": None, "shrink": None}  # what runs have that were begun before there was a choice
_SETTINGS = ("epochs", "learning_rate", "kl", "kl_weight", "scaling", "scaling_warmup")


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    _add_network(parser)
    _add_training(parser)
    _add_distributions(parser)
    _add_examples(parser)
    _add_workers(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run directory, new or empty")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, or start it")


def _add_network(parser: Parser) -> None:
    add_data(parser)
    add_json(parser)
    parser.add_argument(
        "--dataset", help="digits, diabetes, or a prepared TensorFlow Datasets name (default: digits, or diabetes)"
    )
    add_choice(parser, "--task", Task, help="chooses the default dataset; checked against a given one")
    parser.add_argument(
        "--model", default="mlp", help="mlp, lenet300, lenet5, convnet, vgg16 or resnet18 (default: mlp)"
    )
    parser.add_argument(
        "--width", type=float, help="factor on the channels of the networks other than mlp (default: 1)"
    )
    parser.add_argument(
        "--hidden", type=int, nargs="+", metavar="UNITS", help="widths of an mlp's hidden layers (default: 500 500)"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="UNITS",
        help="units of each layer of lenet300, lenet5 or vgg16, instead of --width",
    )
    add_choice(parser, "--layers", Layers, "flipout", "how weights are inferred; the last two have no distributions")


def _add_training(parser: Parser) -> None:
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=100, help="of one worker (default: 100)")
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="Adam's at the start; a cosine takes it to 0 (default: 0.001)"
    )
    rises = "weight of the KL over time (default: warmup to 1/M a batch over the first 40 %% of the epochs)"
    add_choice(parser, "--kl", KLWeighting, "warmup", rises)
    parser.add_argument(
        "--kl-weight",
        type=float,
        default=1.0,
        help="a further factor on the KL; below 1 a cold posterior, not the evidence lower bound (default: 1)",
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        help="part of the weights to remove little by little while training, in [0, 1) (default: none)",
    )
    add_choice(parser, "--granularity", Granularity, "weight", "with --sparsity: single weights, or whole units")
    by = "with --sparsity: what to rank by (default: snr, or magnitude for a network without distributions)"
    add_choice(parser, "--criterion", CRITERIA, help=by)
    add_choice(parser, "--counts", Counts, "weights", "with --granularity unit, what the sparsity is a part of")
    parser.add_argument(
        "--inputs", action="store_true", help="with --granularity unit, inputs that are no units can go too"
    )
    parser.add_argument(
        "--pruned-over",
        type=float,
        nargs=2,
        metavar=("BEGIN", "END"),
        help="parts of the training between which --sparsity is reached (default: 0.19 0.75); units want an early end, after which "
        "what is left is trained on",
    )
    parser.add_argument(
        "--shrink",
        nargs="?",
        const="gone",
        metavar="CRITERION",
        help="take units that are gone out of the network while it trains; with a criterion that has an end of its own, as "
        "evidence has, also those that are better gone by it",
    )


def _add_distributions(parser: Parser) -> None:
    add_choice(
        parser,
        "--prior",
        PriorName,
        "scale_mixture",
        "ard, normal_jeffreys and horseshoe make units leave, whose weights share a scale",
    )
    add_choice(
        parser,
        "--prior-groups",
        Groups,
        None,
        "whose weights share a scale, with a prior over groups: those of each (default: both)",
    )
    parser.add_argument("--prior-pi", type=float, help="probability of the wide part of the mixture (default: 0.5)")
    parser.add_argument(
        "--prior-scales",
        type=float,
        nargs="+",
        metavar="SCALE",
        help="two for the mixture (default: 1 and exp(-6)), one for the normal",
    )
    parser.add_argument(
        "--rho-init", type=float, default=-5.0, help="start of rho; sigma = softplus(rho) (default: -5)"
    )
    parser.add_argument("--bayesian-bias", action="store_true", help="biases get a distribution too")
    parser.add_argument("--dropout-rate", type=float, default=0.5, help="with --layers dropout (default: 0.5)")
    parser.add_argument("--noise", type=float, help="fixed noise standard deviation of a regression (default: learned)")


def _add_examples(parser: Parser) -> None:
    parser.add_argument(
        "--validation-fraction", type=float, default=0.1, help="part of the training split (default: 0.1)"
    )
    add_choice(parser, "--augmentation", Augmentation, "none", "move training images at random, and mirror them")


def _add_workers(parser: Parser) -> None:
    with_workers = "of the learning rate with the number of workers (default: root, its square root)"
    add_choice(parser, "--scaling", Scaling, "root", with_workers)
    parser.add_argument(
        "--scaling-warmup",
        type=int,
        default=5,
        metavar="EPOCHS",
        help="over which that factor rises from 1 (default: 5)",
    )
    add_choice(parser, "--compression", Compression, "none", "of the gradients that workers send each other")


def run(arguments: Any) -> int:
    """Runs the command."""
    result = train(request_of(arguments), arguments.out, arguments.resume)
    if result and not emit(result, arguments.json):
        last = result["history"][-1]
        shown = ", ".join(f"{key} {last[key]:.4f}" for key in ("val_nll", "val_accuracy", "val_mse") if key in last)
        say(f"trained {result['epochs']} epochs into {arguments.out} ({shown or 'no validation split'})")
        if arguments.shrink:
            say(_shrunk(result["history"]))
        say(f"next: tfp-bprune sweep {arguments.out}")
    return 0


def _shrunk(rows: list[Json]) -> str:
    """What became of the network, epoch by epoch, in a line."""
    first, last = rows[0], rows[-1]
    units = " ".join(f"{key[6:]} {first[key]:.0f}->{last[key]:.0f}" for key in first if key.startswith("units/"))
    part = last["multiplications"] / max(first["multiplications"], 1)
    return f"shrunk to {100 * part:.3g} % of the multiplications ({units}); an epoch took {first['seconds']:.3g} s, at last {last['seconds']:.3g}"


def request_of(arguments: Any) -> Json:
    """What was asked for, as it goes into the run's config."""
    skipped = ("command", "out", "resume", "json", "data_dir")
    request = {key: value for key, value in vars(arguments).items() if key not in skipped}
    request["dataset"] = request["dataset"] or ("diabetes" if request["task"] == "regression" else "digits")
    return request | {"data_dir": str(arguments.data_dir.absolute()) if arguments.data_dir else None}


def train(request: Json, out: Path, resume: bool = False, progress: bool = True) -> Json:
    """Trains what `request` describes and returns the history; an empty object on all workers but the first."""
    from tfp_bprune.data.splits import load
    from tfp_bprune.files.runs import Run
    from tfp_bprune.networks import build
    from tfp_bprune.reports import history_figure
    from tfp_bprune.training import Settings, fit
    from tfp_bprune.training.distribute import detect

    _check_pruning(out, request)
    settings = Settings(**{name: request[name] for name in _SETTINGS})
    distributor = detect(request["compression"])
    ways = ("data_dir", "batch_size", "validation_fraction", "seed", "augmentation")
    data = load(request["dataset"], **{way: request[way] for way in ways})
    if request["task"] not in (None, data.info.task):
        raise BpruneError(
            f"dataset {request['dataset']!r} is a {data.info.task}: it cannot be trained as {request['task']}"
        )
    model = build(
        request["model"],
        data.info,
        layers=request["layers"],
        noise=request["noise"],
        options=_options(request),
        **_layer_options(request),
    )
    more: Json = {"distributor": distributor, "callbacks": _callbacks(request), "progress": progress}
    rows = fit(model, data, settings=settings, out=out, resume=resume, request=request, **more)
    if distributor.rank != 0:
        return {}
    run_directory = Run.open(out)
    with run_directory.locked():
        run_directory.commit(
            {"history.png": history_figure(rows, f"{request['model']} ({request['layers']}) on {request['dataset']}")}
        )
    return {"run": str(out), "epochs": len(rows), "history": rows}


def _callbacks(request: Json) -> list[Any]:
    from tfp_bprune.pruning import GradualPruning, Shrink

    pruning, by = request["sparsity"], request.get("shrink")
    found: list[Any] = []
    if pruning is not None:
        given = {name: request[name] for name in _PRUNING if request.get(name) is not None}
        over = request.get("pruned_over")
        found.append(GradualPruning(pruning, over=tuple(over) if over else None, **given))
    if by is not None:
        found.append(Shrink(criterion=None if by == "gone" else by))
    return found


def _check_pruning(out: Path, request: Json) -> None:
    """Refuses to go on with a run that was to be pruned otherwise; `fit` checks all else."""
    from tfp_bprune.files.runs import Run

    run = Run(out)
    begun = (run.config.get("request") or {}) if run.exists else request
    for name, before in _PRUNING_BEFORE.items():
        started, asked = begun.get(name, before), request.get(name, before)
        if started != asked:
            raise RunError(
                f"{out} was started with --{name.replace('_', '-')} {started}, got {asked}: resume it as it was started, or choose another folder"
            )


def _options(request: Json) -> Json:
    options = {"hidden": tuple(request["hidden"])} if request["hidden"] else {}
    options |= {"sizes": tuple(request["sizes"])} if request.get("sizes") else {}
    return options | ({"width": request["width"]} if request["width"] is not None else {})


def _layer_options(request: Json) -> Json:
    options = {key: request[key] for key in ("rho_init", "bayesian_bias", "dropout_rate", "seed")}
    return options | {"prior": _prior(request)}


def _prior(request: Json) -> Json:
    prior, scales = {"kind": request["prior"]}, request["prior_scales"]
    names = {"scale_mixture": ("scale1", "scale2"), "normal": ("scale",)}.get(request["prior"], ())
    if scales and len(scales) != len(names):
        raise BpruneError(f"--prior {request['prior']} takes {len(names)} --prior-scales, got {len(scales)}")
    for name, option in (("pi", "prior_pi"), ("groups", "prior_groups")):
        if request.get(option) is not None:
            prior[name] = request[option]
    return prior | dict(zip(names, scales or (), strict=False))
