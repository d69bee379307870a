"""`tfp-bprune tune`: priors, initial sigma, learning rate, KL schedule and width by their scores on the validation split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfp_bprune._progress import Bar
from tfp_bprune.cli.choices import add_choice
from tfp_bprune.cli.common import Parser, add_data, add_json, add_logger, add_validation_fraction, emit, say
from tfp_bprune.types import Estimator, Json, Objective, Policy, PriorName, TuningMethod

HELP = "search priors and other hyperparameters of the training with Keras Tuner"
EXAMPLE = """example:
  tfp-bprune tune --dataset digits --hidden 32 --trials 4 --epochs 4 --out tuned/digits
  tfp-bprune tune --dataset mnist --hidden 500 500 --method hyperband --epochs 9 --out tuned/mnist
"""


def add_arguments(parser: Parser) -> None:
    """The arguments of this command."""
    parser.add_argument("--dataset", default="digits", help="as for train")
    parser.add_argument("--model", default="mlp", help="as for train")
    parser.add_argument(
        "--hidden",
        type=int,
        nargs="+",
        default=[500, 500],
        metavar="UNITS",
        help="units of each hidden layer of an mlp; the search multiplies them by a width",
    )
    by = "estimator of the gradient (default: reparameterization for a network with convolutions, flipout for others; a search "
    add_choice(parser, "--layers", Estimator, help=f"{by}that is resumed keeps its own)")
    numbers = (
        "precision that layers compute in, as for train (default: float32; a search that is resumed keeps its own)"
    )
    add_choice(parser, "--policy", Policy, help=numbers)
    add_choice(parser, "--prior", PriorName, "scale_mixture", "prior whose settings are searched")
    add_choice(parser, "--method", TuningMethod, "bayesian", "search method of Keras Tuner")
    parser.add_argument("--trials", type=int, default=20, help="maximum number of trials; hyperband chooses its own")
    parser.add_argument(
        "--epochs", type=int, default=20, help="epochs of a trial; with hyperband the most that a trial gets"
    )
    add_choice(
        parser,
        "--objective",
        Objective,
        "val_nll",
        "score to optimize; val_mse for a regression, val_accuracy for all other tasks",
    )
    parser.add_argument("--batch-size", type=int, default=100, help="examples in a training step")
    add_validation_fraction(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of the search, the data and every network")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for trials and the result; rerun the command to resume",
    )
    add_logger(parser)
    add_data(parser)
    add_json(parser)


def run(arguments: Any) -> int:
    """Runs the command."""
    from tfp_bprune.data.splits import load
    from tfp_bprune.files.reading import check_no_links
    from tfp_bprune.files.runs import Run
    from tfp_bprune.tuning.tuner import tune

    data = load(
        arguments.dataset,
        arguments.data_dir,
        batch_size=arguments.batch_size,
        validation_fraction=arguments.validation_fraction,
        seed=arguments.seed,
    )
    check_no_links(arguments.out)
    total = None if arguments.method == "hyperband" else arguments.trials
    with Run(arguments.out).locked(), Bar("tune", total) as bar:
        result = tune(
            arguments.model, data, arguments.out, method=arguments.method, trials=arguments.trials, epochs=arguments.epochs,
            objective=arguments.objective, layers=arguments.layers, hidden=tuple(arguments.hidden), seed=arguments.seed,
            prior=arguments.prior, policy=arguments.policy,
            on_trial=_told(arguments, bar),
        )  # fmt: skip
    if not emit(result, arguments.json):
        best = f"{result['objective']} {result['score']:.4f} in the best of its epochs"
        say(f"best of {len(result['rows'])} trials, {best}:")
        for name, value in result["best"].items():
            say(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
        say(f"next: {_command(arguments, result)}")
    return 0


def _told(arguments: Any, bar: Bar) -> Any:
    """Shows each trial that ends, and hands it to the loggers."""
    from tfp_bprune.tuning.loggers import trial_logger

    loggers = [trial_logger(name, arguments.out, arguments.objective) for name in arguments.logger or ()]
    ended: list[Any] = []

    def on_trial(row: Json) -> None:
        ended.append(row)
        score = "failed" if row["score"] is None else f"{arguments.objective} {row['score']:.4f}"
        bar.to(len(ended), f"trial {row['trial']}: {score}")
        for log in loggers:
            log(row)

    return on_trial


def _command(arguments: Any, result: Json) -> str:
    """How to train with what was found."""
    best = result["best"]
    width = [f"--width {best['width']:g}"]
    if arguments.model == "mlp":
        width = ["--hidden", *(str(max(1, round(best["width"] * n))) for n in arguments.hidden)]
    from tfp_bprune.layers.posterior import rho_of

    rho = float(rho_of(best["initial_sigma"]))
    policy = [] if result["policy"] == "float32" else [f"--policy {result['policy']}"]
    where = [f"--data-dir {arguments.data_dir}"] if arguments.data_dir else []
    words = [
        f"tfp-bprune train --dataset {arguments.dataset} --model {arguments.model} --layers {result['layers']}", *where, *width,
        f"--batch-size {arguments.batch_size} --validation-fraction {arguments.validation_fraction:g} --seed {arguments.seed}",
        f"--epochs {arguments.epochs} --learning-rate {best['learning_rate']:.4g} --kl {best['kl']}",
        *_words_of_prior(arguments.prior, best), *policy,
        f"--rho-init {rho:.4g} --out runs/tuned",
    ]  # fmt: skip
    return " ".join(words)


def _words_of_prior(prior: str, best: Json) -> list[str]:
    if prior == "scale_mixture":
        return [f"--prior-pi {best['prior_pi']:g} --prior-scales {best['prior_scale1']:.4g} {best['prior_scale2']:.4g}"]
    setting = (
        f"--prior-scales {best['prior_scale']:.4g}" if prior == "normal" else f"--prior-groups {best['prior_groups']}"
    )
    return [f"--prior {prior} {setting}"]
