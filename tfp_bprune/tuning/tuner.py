"""Hyperparameters of the training on Keras Tuner: prior, initial sigma, learning rate, schedule of the KL, width."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from threadpoolctl import threadpool_limits

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import finite, sealed, unsealed, write_atomically
from tfp_bprune.files.words import begun_as
from tfp_bprune.layers.posterior import rho_of
from tfp_bprune.networks import build, check_policy, usual_layers, usual_policy
from tfp_bprune.networks.build import NETWORKS
from tfp_bprune.searching.samples import fingerprint_of_splits
from tfp_bprune.training import Settings, compile_model
from tfp_bprune.training.callbacks import KLSchedule, StopAtNonFinite
from tfp_bprune.training.schedules import KL_SCHEDULES, kl_schedule
from tfp_bprune.trials._keras_tuner import keras_tuner
from tfp_bprune.trials.log import check_same, read_sealed
from tfp_bprune.tuning.resuming import remove_unfinished, take_up
from tfp_bprune.types import (
    BpruneError,
    Estimator,
    Groups,
    Json,
    Objective,
    Policy,
    PriorName,
    RunError,
    TrainingError,
    TuningMethod,
    suggestion,
)

METHODS = get_args(TuningMethod)
WIDTHS = (0.5, 1.0, 2.0)
_HIDDEN = (500, 500)
_NEVER = 10**9  # a candidate that fails is a candidate that is bad
TUNE_FILE, SETTINGS_FILE = "tune.json", "settings.json"


def hyper_model(
    network: str,
    data: Splits,
    *,
    layers: Estimator | None = None,
    epochs: int = 20,
    hidden: tuple[int, ...] = _HIDDEN,
    seed: int = 0,
    prior: PriorName = "scale_mixture",
    policy: Policy | None = None,
) -> Any:
    """A `keras_tuner.HyperModel` of a Bayesian network's training, for any tuner of `keras_tuner()`.

    Its hyperparameters are `initial_sigma`, `learning_rate`, `kl`, `width` and those of the prior: `prior_pi`, `prior_scale1` and
    `prior_scale2` of the mixture (in the ranges of Blundell et al. 2015, section 5.1), `prior_scale` of the normal, or
    `prior_groups` of a prior over groups. It brings its own data, callbacks and metrics: call `tuner.search(epochs=...)` with
    nothing else.

    Args:
      network: a name that `build` takes.
      data: splits from `load` or `from_arrays`.
      layers: "flipout", "reparameterization" or "local"; by default as in `build`.
      epochs: the most epochs of a trial; the learning rate falls to 0 over them.
      hidden: units of each hidden layer of an mlp at `width` 1.
      seed: seed of the initial weights and the noise.
      prior: name of the prior whose settings are searched.
      policy: numbers that the layers compute in, as in `build`.

    Raises:
      BpruneError: the network, the prior or the policy is unknown; the layers have no prior; there are no validation examples;
        `epochs` or a width is below 1; or Keras Tuner was imported for another Keras.
    """
    _check_network(network, data, layers, epochs, hidden)
    _check_prior(prior)
    check_policy(policy)
    chosen_layers = _usual(network, data, hidden) if layers is None else layers
    rounds = epochs

    class BayesianHyperModel(keras_tuner().HyperModel):  # type: ignore[misc]
        """Builds and trains one candidate."""

        def build(self, hp: Any) -> Any:
            """The compiled network."""
            chosen = _choose(hp, prior)
            settings = _settings(chosen, rounds)
            model = build(
                network, data.info, layers=chosen_layers, options=_width(network, chosen["width"], hidden), seed=seed,
                prior=_prior(prior, chosen), rho_init=float(rho_of(chosen["initial_sigma"])), policy=policy,
            )  # fmt: skip
            return compile_model(model, data, settings=settings)

        def fit(
            self, hp: Any, model: Any, epochs: int = epochs, initial_epoch: int = 0, callbacks: Any = (), **_: Any
        ) -> Any:
            """Trains it from `initial_epoch` to `epochs` and returns the history; schedules are over all of the rounds."""
            settings = _settings(_choose(hp, prior), rounds)
            model.optimizer.iterations.assign(initial_epoch * data.steps)
            schedule = kl_schedule(settings.kl, data.steps, settings.epochs, settings.warmup_part)
            try:
                return model.fit(
                    data.epochs(initial_epoch), epochs=epochs, initial_epoch=initial_epoch, steps_per_epoch=data.steps,
                    validation_data=data.valid, verbose=0,
                    callbacks=[*callbacks, KLSchedule(schedule, data.steps), StopAtNonFinite()],
                )  # fmt: skip
            except TrainingError as error:  # Keras Tuner then goes on with other candidates
                raise keras_tuner().errors.FailedTrialError(str(error)) from error

    return BayesianHyperModel()


def _usual(network: str, data: Splits, hidden: tuple[int, ...]) -> Estimator:
    return usual_layers(network, data.info, _width(network, 1.0, hidden))


def _check_network(network: str, data: Splits, layers: str | None, epochs: int, hidden: tuple[int, ...]) -> None:
    if layers is not None and layers not in get_args(Estimator):
        raise BpruneError(f"layers {layers!r} has no prior to tune: expected one of {', '.join(get_args(Estimator))}")
    if not len(data.examples("valid")):
        raise BpruneError("there is no validation split to tune on: use a validation fraction above 0")
    if epochs < 1:
        raise BpruneError(f"epochs must be at least 1, got {epochs}")
    if min(hidden, default=1) < 1:
        raise BpruneError(f"hidden widths must be at least 1, got {' '.join(map(str, hidden))}")
    if network not in NETWORKS:
        raise BpruneError(
            f"unknown network {network!r}{suggestion(network, NETWORKS)}: expected one of {', '.join(NETWORKS)}"
        )


def _check_objective(objective: str, data: Splits) -> None:
    names = ["loss", "nll", "mse" if data.info.task == "regression" else "accuracy"]
    if objective not in (known := [f"val_{name}" for name in names]):
        raise BpruneError(f"unknown objective {objective!r} of a {data.info.task}: expected one of {', '.join(known)}")


def _choose(hp: Any, prior: str) -> Json:
    return _of_prior(hp, prior) | {
        "initial_sigma": hp.Float("initial_sigma", 1e-3, 0.05, sampling="log", default=0.0067),
        "learning_rate": hp.Float("learning_rate", 3e-4, 1e-2, sampling="log", default=1e-3),
        "kl": hp.Choice("kl", list(KL_SCHEDULES), default="warmup"),
        "width": hp.Choice("width", list(WIDTHS), default=1.0),
    }


def _settings(chosen: Json, epochs: int) -> Settings:
    return Settings(epochs=epochs, learning_rate=chosen["learning_rate"], kl=chosen["kl"])


def _of_prior(hp: Any, prior: str) -> Json:
    """What is searched of a prior: its arguments, with `prior_` before their names."""
    if prior == "scale_mixture":
        return {
            "prior_pi": hp.Choice("prior_pi", [0.25, 0.5, 0.75], default=0.5),
            "prior_scale1": hp.Float("prior_scale1", math.exp(-2), 1.0, sampling="log", default=1.0),
            "prior_scale2": hp.Float("prior_scale2", math.exp(-8), math.exp(-5), sampling="log", default=math.exp(-6)),
        }
    if prior == "normal":
        return {"prior_scale": hp.Float("prior_scale", 0.01, 1.0, sampling="log", default=1.0)}
    return {"prior_groups": hp.Choice("prior_groups", list(get_args(Groups)), default="both")}


def _prior(prior: str, chosen: Json) -> Json:
    of = {key.removeprefix("prior_"): value for key, value in chosen.items() if key.startswith("prior_")}
    return {"kind": prior, **of}


def _check_prior(prior: str) -> None:
    if prior not in get_args(PriorName):
        raise BpruneError(f"unknown prior {prior!r} to tune: expected one of {', '.join(get_args(PriorName))}")


def _width(network: str, width: float, hidden: tuple[int, ...]) -> Json:
    return {"hidden": tuple(max(1, round(width * n)) for n in hidden)} if network == "mlp" else {"width": width}


def tune(
    network: str,
    data: Splits,
    out: str | os.PathLike[str],
    *,
    method: TuningMethod = "bayesian",
    trials: int = 20,
    epochs: int = 20,
    objective: Objective = "val_nll",
    layers: Estimator | None = None,
    hidden: tuple[int, ...] = _HIDDEN,
    seed: int = 0,
    prior: PriorName = "scale_mixture",
    policy: Policy | None = None,
    on_trial: Callable[[Json], None] = lambda row: None,
) -> Json:
    """Searches hyperparameters of the training by their validation score, with Keras Tuner.

    Call it again with the same `out` to resume a search that was stopped.

    Args:
      network, data, layers, hidden, seed, prior, policy: as in `hyper_model`. A resumed search keeps its layers and its policy.
      out: folder for Keras Tuner's trials and `tune.json`.
      method: "random", "hyperband" or "bayesian". Hyperband chooses the number of trials itself, within one of its iterations.
      trials: largest number of trials.
      epochs: epochs of each trial; with "hyperband" the most that a trial gets.
      objective: "val_nll", "val_loss", "val_mse" (for a regression) or "val_accuracy" (for all other tasks); the best epoch of a
        trial counts.
      on_trial: called with the row of each trial when it ends.

    Returns:
      A dictionary: `best`, the best hyperparameters; `score`, their objective; `rows`, all trials; `sha256`, the hash of the file.

    Raises:
      BpruneError: the method, the objective or the network is unknown; a number is out of range; or no trial ended with a finite
        objective.
      RunError: `out` holds another search, or cannot be written.

    Example:
      result = bp.tune("mlp", data, "tuned", trials=20, epochs=20, hidden=(64, 64))
      result["best"]
    """
    if method not in METHODS:
        raise BpruneError(f"unknown method {method!r}: expected one of {', '.join(METHODS)}")
    if method != "hyperband" and trials < 1:
        raise BpruneError(f"trials must be at least 1, got {trials}")
    _check_network(network, data, layers, epochs, hidden)
    _check_objective(objective, data)
    _check_prior(prior)
    check_policy(policy)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    begun = read_sealed(out / SETTINGS_FILE) if os.path.lexists(out / SETTINGS_FILE) else None
    layers = layers or begun_as(begun, "layers", Estimator) or _usual(network, data, hidden)
    policy = policy or begun_as(begun, "policy", Policy)
    asked: Json = {"network": network, "data": fingerprint_of_splits(data), "layers": layers, "method": method}
    asked |= {"epochs": epochs, "objective": objective, "hidden": list(hidden), "seed": seed}
    asked |= {} if prior == "scale_mixture" else {"prior": prior}
    numbers = policy or usual_policy()  # a search that does not say them is of float32
    asked |= {} if numbers == "float32" else {"policy": numbers}
    check_same(out / SETTINGS_FILE, asked)
    kt = keras_tuner()
    direction = "max" if objective.endswith("accuracy") else "min"
    shared: Json = {
        "hypermodel": hyper_model(
            network, data, layers=layers, epochs=epochs, hidden=hidden, seed=seed, prior=prior, policy=policy
        ),
        "objective": kt.Objective(objective, direction),
        "directory": str(out),
        "project_name": method,
        "seed": seed + 1,
        "max_consecutive_failed_trials": _NEVER,
    }
    remove_unfinished(out / method)
    tuner = _begun(kt, method, trials, epochs, shared)
    ended = tuner.on_trial_end

    def on_trial_end(trial: Any) -> None:
        ended(trial)
        on_trial(_row(trial))
        keras.backend.clear_session()

    tuner.on_trial_end = on_trial_end
    with threadpool_limits(1, user_api="blas"):
        try:
            tuner.search(epochs=epochs, verbose=0)  # its own tables would stand in the results
        except kt.errors.FatalError as error:
            raise RunError(str(error)) from error
    trials_done = sorted(tuner.oracle.trials.values(), key=lambda trial: (len(trial.trial_id), trial.trial_id))
    done = [_row(trial) for trial in trials_done if trial.score is not None]
    if not done:
        raise BpruneError(f"no trial in {out} ended with a finite {objective}: widen the ranges or train longer")
    best = min(done, key=lambda row: row["score"] if direction == "min" else -row["score"])
    result = finite({"network": network, "layers": layers, "dataset": data.info.name, "prior": prior, "policy": numbers, "method": method,
                     "objective": objective, "seed": seed, "epochs": epochs,
                     "score": best["score"], "best": best["values"], "rows": done})  # fmt: skip
    content = sealed(result)
    write_atomically(out / TUNE_FILE, content)
    return unsealed(content, TUNE_FILE)


def _begun(kt: Any, method: str, trials: int, epochs: int, shared: Json) -> Any:
    """The tuner, at the beginning or where its files say that it was."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that it goes on, where results are to be
            tuner = _tuner(kt, method, trials, epochs, shared)
            take_up(tuner.oracle)
            return tuner
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        said = next(iter(str(error).splitlines()), "")
        raise RunError(
            f"{shared['directory']} holds trials that are not as Keras Tuner wrote them ({type(error).__name__}: {said}): "
            "delete the folder to search anew"
        ) from error


def _tuner(kt: Any, method: str, trials: int, epochs: int, shared: Json) -> Any:
    if method == "hyperband":
        return kt.Hyperband(max_epochs=epochs, **shared)
    kind = kt.RandomSearch if method == "random" else kt.BayesianOptimization
    return kind(max_trials=trials, **shared)


def _row(trial: Any) -> Json:
    values = {key: value for key, value in trial.hyperparameters.values.items() if not key.startswith("tuner/")}
    return {
        "trial": trial.trial_id,
        "status": trial.status,
        "score": trial.score,
        "step": trial.best_step,
        "values": values,
    }
