"""`tfp-bprune train`: a network into a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfp_bprune.cli.choices import CRITERIA, add_choice
from tfp_bprune.cli.common import Parser, add_data, add_json, add_logger, add_validation_fraction, emit, say
from tfp_bprune.files.words import begun_as, renewed
from tfp_bprune.types import (
    Augmentation,
    BpruneError,
    Compression,
    Counts,
    Distribution,
    Granularity,
    Groups,
    Json,
    KLWeighting,
    Layers,
    Logger,
    Policy,
    PriorName,
    RunError,
    Scaling,
    Task,
)

HELP = "train a network into a run directory"
EXAMPLE = """example:
  tfp-bprune train --dataset digits --hidden 64 64 --out runs/digits
  tfp-bprune train --dataset digits --hidden 64 64 --sparsity 0.9 --out runs/digits-90     # prunes during training
  tfp-bprune train --dataset digits --hidden 64 64 --prior ard --shrink --out runs/small   # removes whole units
  tfp-bprune train --dataset digits --hidden 64 64 --out runs/digits --resume              # continues after a kill
  tfp-bprune train --dataset mnist --data-dir DIR --hidden 500 500 --out runs/mnist
  tfp-bprune train --dataset digits --hidden 64 64 --prior ard --kl-weight 0.1 --sparsity 0.9 --granularity unit \\
    --criterion evidence --counts multiplications --inputs --pruned-over 0.1 0.5 --shrink --out runs/smaller
  horovodrun -np 2 -H localhost:2 tfp-bprune train --dataset digits --out runs/two-workers
  tfp-bprune train --distribute mirrored --dataset digits --out runs/all-gpus
"""


_KEPT = {"layers": Layers, "policy": Policy}  # by a run that is resumed, where nothing is named
_KEPT_BEFORE = {"policy": "float32"}  # what runs have that do not say it
_PRUNING = ("granularity", "criterion", "counts", "inputs")
_PRUNING_BEFORE = {"sparsity": None, "granularity": "weight", "criterion": None, "counts": "weights", "inputs": False}
_PRUNING_BEFORE |= {"pruned_over": None, "shrink": None}  # what runs have that were begun before there was a choice
_SETTINGS = ("epochs", "learning_rate", "kl", "kl_weight", "scaling", "scaling_warmup")
_SETTINGS_BEFORE = {"accumulate": 1}


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    _add_network(parser)
    _add_training(parser)
    _add_distributions(parser)
    _add_examples(parser)
    _add_workers(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of initial weights, noise, and the order of examples")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for the run, new or empty")
    add_logger(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out; start it if there is none")


def _add_network(parser: Parser) -> None:
    add_data(parser)
    add_json(parser)
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help="digits, diabetes, or a prepared dataset of TensorFlow Datasets (default: digits; diabetes for a regression)",
    )
    add_choice(parser, "--task", Task, help="what the targets are (default: the task of the dataset)")
    parser.add_argument(
        "--model", default="mlp", metavar="NAME", help="mlp, lenet300, lenet5, convnet, vgg16 or resnet18"
    )
    parser.add_argument(
        "--width", type=float, help="factor on the number of channels, for networks other than mlp (default: 1)"
    )
    parser.add_argument(
        "--hidden", type=int, nargs="+", metavar="UNITS", help="units of each hidden layer of an mlp (default: 500 500)"
    )
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        metavar="UNITS",
        help="units of each layer of lenet300, lenet5 or vgg16, instead of --width (default: those published)",
    )
    by = "estimator of the gradient; deterministic and dropout have plain weights (default: reparameterization for a network "
    add_choice(
        parser, "--layers", Layers, help=f"{by}with convolutions, flipout for others; a resumed run keeps its own)"
    )


def _add_training(parser: Parser) -> None:
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training split")
    parser.add_argument("--batch-size", type=int, default=100, help="examples in a training step of one worker")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        metavar="BATCHES",
        help="number of batches whose gradients are added up for one optimizer step, as if they were one large batch; workers exchange "
        "gradients once a step",
    )
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="initial learning rate of Adam; it falls to 0 along a cosine"
    )
    numbers = "precision that layers compute in: float32, or 16 bits with weights, KL and likelihood in float32, faster if the "
    add_choice(
        parser,
        "--policy",
        Policy,
        help=f"{numbers}hardware has instructions for it (default: float32; a resumed run keeps its own)",
    )
    rises = "schedule of the KL weight: warmup rises from 0 to the full weight during the first 40 %% of the epochs, constant has it from "
    add_choice(
        parser,
        "--kl",
        KLWeighting,
        "warmup",
        f"{rises}the start, blundell puts most of it on the first batches of each epoch",
    )
    parser.add_argument(
        "--kl-weight",
        type=float,
        default=1.0,
        help="factor on the KL; 1 is the evidence lower bound, less is a cold posterior",
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        help="fraction of the weights to remove gradually during training, in [0, 1)",
    )
    add_choice(parser, "--granularity", Granularity, "weight", "with --sparsity: remove single weights, or whole units")
    by = "with --sparsity: score that weights are ranked by (default: snr; magnitude for a network without distributions)"
    add_choice(parser, "--criterion", CRITERIA, help=by)
    add_choice(parser, "--counts", Counts, "weights", "with --granularity unit: what the sparsity is a fraction of")
    parser.add_argument("--inputs", action="store_true", help="with --granularity unit: also remove input features")
    parser.add_argument(
        "--pruned-over",
        type=float,
        nargs=2,
        metavar=("BEGIN", "END"),
        help="fractions of the training between which --sparsity is reached (default: 0.19 0.75); for units choose an early end, "
        "which leaves time to train the rest",
    )
    parser.add_argument(
        "--shrink",
        nargs="?",
        const="gone",
        metavar="CRITERION",
        help="between epochs take removed units out of the network, which makes training faster; CRITERION, such as evidence, "
        "also removes the units that it finds superfluous",
    )


def _add_distributions(parser: Parser) -> None:
    add_choice(
        parser,
        "--prior",
        PriorName,
        "scale_mixture",
        "prior of the weights; with ard, normal_jeffreys and horseshoe the weights of a unit share a scale, so that training removes whole units",
    )
    add_choice(
        parser,
        "--prior-groups",
        Groups,
        None,
        "with such a prior, the weights that share a scale: those of each input, of each output, or both (default: both)",
    )
    parser.add_argument("--prior-pi", type=float, help="weight of the wide component of the mixture (default: 0.5)")
    parser.add_argument(
        "--prior-scales",
        type=float,
        nargs="+",
        metavar="SCALE",
        help="standard deviations: two of the mixture (default: 1 and exp(-6)), one of the normal (default: 1)",
    )
    parser.add_argument("--rho-init", type=float, default=-5.0, help="initial rho; sigma = softplus(rho)")
    parser.add_argument("--bayesian-bias", action="store_true", help="give biases a distribution too")
    parser.add_argument("--dropout-rate", type=float, default=0.5, help="with --layers dropout")
    parser.add_argument(
        "--noise", type=float, help="fixed standard deviation of the noise of a regression (default: learned)"
    )


def _add_examples(parser: Parser) -> None:
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="leave the examples on disk and read them batch by batch, for datasets of TensorFlow Datasets larger than memory",
    )
    add_validation_fraction(parser)
    add_choice(parser, "--augmentation", Augmentation, "none", "shift training images at random, and mirror them")


def _add_workers(parser: Parser) -> None:
    with_workers = "how the learning rate grows with the number of workers"
    add_choice(parser, "--scaling", Scaling, "root", with_workers)
    parser.add_argument(
        "--scaling-warmup",
        type=int,
        default=5,
        metavar="EPOCHS",
        help="epochs over which the learning rate rises to the scaled one",
    )
    add_choice(
        parser, "--compression", Compression, "none", "compression of the gradients that Horovod's workers exchange"
    )
    by = "train by tf.distribute: on all GPUs of this host, or on all workers that TF_CONFIG names (default: Horovod's workers "
    add_choice(parser, "--distribute", Distribution, help=f"{by}under horovodrun, else one process)")


def run(arguments: Any) -> int:
    """Runs the command."""
    result = train(request_of(arguments), arguments.out, arguments.resume, loggers=arguments.logger or ())
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
    skipped = ("command", "out", "resume", "json", "data_dir", "quiet", "logger")
    request = {key: value for key, value in vars(arguments).items() if key not in skipped}
    request["dataset"] = request["dataset"] or ("diabetes" if request["task"] == "regression" else "digits")
    return request | {"data_dir": str(arguments.data_dir.absolute()) if arguments.data_dir else None}


def train(
    request: Json, out: Path, resume: bool = False, progress: bool = True, loggers: Sequence[Logger] = ()
) -> Json:
    """Trains what `request` describes and returns the history; an empty object on all workers but the first."""
    from tfp_bprune.data.splits import load
    from tfp_bprune.files.runs import Run
    from tfp_bprune.networks import build, usual_layers, usual_policy
    from tfp_bprune.reports import history_figure
    from tfp_bprune.training import Settings, detect, fit

    begun = _begun(out)
    request = request | {name: request.get(name) or begun_as(begun, name, kind) for name, kind in _KEPT.items()}
    _check_begun(out, begun, request)
    settings = Settings(
        **{name: request[name] for name in _SETTINGS},
        **{name: request.get(name, before) for name, before in _SETTINGS_BEFORE.items()},
    )
    distributor = detect(request["compression"], request.get("distribute"))
    ways = ("data_dir", "batch_size", "validation_fraction", "seed", "augmentation")
    streaming = bool(request.get("streaming"))
    data = load(request["dataset"], **{way: request[way] for way in ways}, streaming=streaming)
    if request["task"] not in (None, data.info.task):
        raise BpruneError(
            f"dataset {request['dataset']!r} is a {data.info.task}: it cannot be trained as {request['task']}"
        )
    layers = request["layers"] or usual_layers(request["model"], data.info, _options(request))
    policy = request["policy"]
    request = request | {"layers": layers, "policy": policy or usual_policy()}
    model = build(
        request["model"],
        data.info,
        layers=layers,
        policy=policy,
        noise=request["noise"],
        options=_options(request),
        **_layer_options(request),
    )
    more: Json = {"distributor": distributor, "callbacks": _callbacks(request), "progress": progress}
    if distributor.rank == 0:
        more["callbacks"] += _loggers(loggers, request, out)
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


def _loggers(names: Sequence[Logger], request: Json, out: Path) -> list[Any]:
    from tfp_bprune.files.reading import check_inside
    from tfp_bprune.training.loggers import MLflowLogger, TensorBoardLogger

    settings = {name: value for name, value in request.items() if value is not None and name != "data_dir"}
    makers: dict[str, Callable[[], Any]] = {
        "tensorboard": lambda: TensorBoardLogger(check_inside(out, "tensorboard"), settings=settings),
        "mlflow": lambda: MLflowLogger(settings=settings, name=out.name),
    }
    return [makers[name]() for name in dict.fromkeys(names)]


def _begun(out: Path) -> Json | None:
    """What the run in `out` was asked for; None where there is no run."""
    from tfp_bprune.files.runs import Run

    run = Run(out)
    return renewed(run.config.get("request") or {}) if run.exists else None


def _check_begun(out: Path, begun: Json | None, request: Json) -> None:
    """Refuses to go on with a run of another estimator or policy, or one that was to be pruned otherwise; `fit` checks all else."""
    begun = request if begun is None else begun
    kept = {name: _KEPT_BEFORE.get(name, request[name]) for name in _KEPT if request[name] is not None}
    for name, before in (kept | _PRUNING_BEFORE).items():
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
