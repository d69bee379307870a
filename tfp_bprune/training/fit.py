"""Training through `model.fit`, into a run directory from which a killed run continues to the same bits."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, get_args

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.data.stream import Stream
from tfp_bprune.data.targets import SaidTask
from tfp_bprune.files.runs import CONFIG, Run, finite
from tfp_bprune.files.words import without_homes
from tfp_bprune.graphs.heads import heads_for, note_heads
from tfp_bprune.graphs.match import check_shapes, is_alone, matched
from tfp_bprune.graphs.names import targets_of
from tfp_bprune.graphs.rebuild import check_known
from tfp_bprune.graphs.renaming import unnumbered
from tfp_bprune.graphs.slots import check_unused
from tfp_bprune.layers import set_train_size
from tfp_bprune.storage import compress, store
from tfp_bprune.storage.saved import heads_config, present_architecture, take_names
from tfp_bprune.training.accumulate import accumulating
from tfp_bprune.training.callbacks import (
    STOPPED,
    History,
    KLSchedule,
    Rows,
    RunWriter,
    StopAtNonFinite,
    check_state,
    checkpoint,
    checkpoint_name,
    optimizer_variables,
    restore,
)
from tfp_bprune.training.distribute import Begun, Committed, Distributor, OneProcess
from tfp_bprune.training.loss import loss_of, metrics_of
from tfp_bprune.training.noise import NoiseByEpoch
from tfp_bprune.training.progress import ProgressBar
from tfp_bprune.training.rate import SettableAdam, for_precision
from tfp_bprune.training.schedules import WARMUP_PART, ScaledCosine, kl_schedule, scale_for
from tfp_bprune.training.states import PREFIX, SetStates, states_of
from tfp_bprune.training.strategy import check_scope, distributor_of, scope_of
from tfp_bprune.training.taken import Given, splits_of
from tfp_bprune.training.watched import checked_callbacks, own_optimizer, warn_of_divergence
from tfp_bprune.types import Json, KLWeighting, RunError, Scaling, TrainingError, check_number

_BEFORE = {"accumulate": 1}  # what settings were before there was a choice
_SHOWN = 3  # of what differs in a network
_SET_RATE = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
      epochs: passes over the training split.
      learning_rate: initial learning rate of Adam; it falls to 0 along a cosine.
      kl: schedule of the KL weight over the steps: "warmup" (rises linearly to 1/M per batch, M being the number of batches, during
        the first `warmup_part` of the epochs), "constant" (1/M throughout) or "blundell" (Blundell et al. 2015, section 3.4).
      warmup_part: fraction of the epochs, in [0, 1], for "warmup".
      kl_weight: a further factor on the KL. 1 is the evidence lower bound; below 1 the posterior is "cold" (Wenzel et al. 2020,
        arXiv 2002.02405), which large convolutional networks need to fit small datasets.
      scaling: factor on the learning rate with W workers: W ("linear", Goyal et al. 2017, arXiv 1706.02677, found for SGD), its
        square root ("root", Malladi et al. 2022, arXiv 2205.10287, derived for Adam) or 1 ("none").
      scaling_warmup: epochs over which that factor rises from 1.
      accumulate: number of batches in an optimizer step, whose gradients are added up as if they were one batch. Workers exchange
        gradients once a step.

    Example:
      settings = bp.Settings(epochs=50, learning_rate=3e-3, kl_weight=0.1)
    """

    epochs: int = 20
    learning_rate: float = 1e-3
    kl: KLWeighting = "warmup"
    warmup_part: float = WARMUP_PART
    kl_weight: float = 1.0
    scaling: Scaling = "root"
    scaling_warmup: int = 5
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name in ("learning_rate", "warmup_part", "kl_weight"):
            check_number(name, getattr(self, name), TrainingError)
        for name in ("epochs", "scaling_warmup", "accumulate"):
            check_number(name, getattr(self, name), TrainingError, whole=True)
        for name, known in (("kl", get_args(KLWeighting)), ("scaling", get_args(Scaling))):
            if (given := getattr(self, name)) not in known:
                raise TrainingError(f"{name} must be one of {', '.join(map(repr, known))}, got {given!r}")
        if self.epochs < 1 or not 0 < self.learning_rate < float("inf"):
            raise TrainingError(
                f"epochs and learning_rate must be positive, got {self.epochs} and {self.learning_rate}"
            )
        if not 0 <= self.warmup_part <= 1:
            raise TrainingError(f"warmup_part must be in [0, 1], got {self.warmup_part}")
        if not 0 <= self.kl_weight < float("inf"):
            raise TrainingError(f"kl_weight must be at least 0, got {self.kl_weight}")
        if self.scaling_warmup < 0:
            raise TrainingError(f"scaling_warmup must be at least 0, got {self.scaling_warmup}")
        if self.accumulate < 1:
            raise TrainingError(f"accumulate must be a whole number of batches, at least 1, got {self.accumulate}")


def compile_model(
    model: Any,
    data: Splits,
    *,
    settings: Settings,
    distributor: Distributor | None = None,
    from_logits: bool | None = None,
    optimizer: Any = None,
) -> Any:
    """Compiles `model` for your own `model.fit`: negative evidence lower bound, metrics, and Adam with a cosine schedule.

    It sets N, the number of training examples by which the KL is divided, and records on the model what its outputs mean, for
    `export`. The losses of several outputs are added up. In Keras's logs, `loss` and `val_loss` contain the KL; `nll` and
    `val_nll` do not.

    Args:
      model, data, settings, distributor, from_logits, optimizer: as in `fit`; `data` are splits.

    Returns:
      `model`.

    Raises:
      DataError: the outputs do not suit the data.
      BpruneError: it is unknown whether outputs are logits or probabilities, and `from_logits` is not given.
    """
    heads, targets = heads_for(model, data.info, from_logits), targets_of(model, data.info)
    set_train_size(model, data.train_size)
    distributor = distributor or OneProcess()
    if optimizer is None:
        optimizer = _adam(settings, data, distributor)
    else:
        check_unused(optimizer := own_optimizer(optimizer), model)
    optimizer = distributor.wrap(optimizer)
    optimizer = for_precision(optimizer, model)
    half = any(tensor.dtype.size < 4 for tensor in model.outputs)
    losses = {name: loss_of(head, targets[name], half) for name, head in heads.items()}
    metrics = {name: metrics_of(head, targets[name]) for name, head in heads.items()}
    if is_alone(model):
        model.compile(optimizer, *losses.values(), metrics=[one for several in metrics.values() for one in several])
    else:
        model.compile(optimizer, losses, metrics=metrics)
    return note_heads(model, heads)


def _adam(settings: Settings, data: Splits, distributor: Distributor) -> Any:
    rate = ScaledCosine(
        settings.learning_rate,
        settings.epochs * data.steps,
        scale_for(settings.scaling, distributor.size),
        settings.scaling_warmup * data.steps,
    )
    # The older Adam does the same in less than half the time on a CPU.
    return SettableAdam(rate)


def fit(
    model: Any,
    data: Any,
    y: Any = None,
    *,
    settings: Settings | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    validation_data: Any = None,
    validation_split: float | None = None,
    optimizer: Any = None,
    task: SaidTask = None,
    seed: int = 0,
    out: Any = None,
    resume: bool = False,
    request: Json | None = None,
    callbacks: Any = (),
    distributor: Any = None,
    progress: bool = True,
    from_logits: bool | None = None,
) -> Rows:
    """Trains `model` on `data` with Keras's `model.fit`; with `out`, into a run directory.

    `loss` and `val_loss` are the negative evidence lower bound: the negative log-likelihood plus the KL, per example. To see how
    well the network predicts, and in `EarlyStopping`, `ReduceLROnPlateau` and `ModelCheckpoint`, use `val_nll`, which is
    without the KL.

    Args:
      model: from `build` or `bayesianize`, or any functional or sequential Keras model whose outputs suit the targets: logits or
        probabilities of classes or labels (one output for two classes); numbers, or means followed by standard deviations, for
        a regression.
      data: splits from `load` or `from_arrays`. Or, as in `model.fit`: examples [n, ...] as an array, or a list or dictionary of
        arrays for several inputs, with the targets in `y`; or a tf.data dataset or Keras Sequence of batches (x, y), which is
        read once before training.
      y: targets, if `data` holds arrays: class numbers or one-hot rows, zeros and ones, or numbers.
      settings: how to train; `Settings()` by default.
      epochs: overrides `settings.epochs`.
      batch_size: for arrays; 32 by default.
      validation_data: (x, y), or a dataset if `data` is one.
      validation_split: for arrays: fraction of the examples, in [0, 1), taken from their end and held out.
      optimizer: a Keras optimizer or its name, instead of Adam with a cosine schedule; `settings.learning_rate` is then ignored.
      task: what the targets are, if neither they nor the model determine it; see `from_arrays`.
      seed: seed of the order of arrays; splits have their own.
      out: the run's folder, which must be new or empty unless `resume` is set.
      resume: continue the run in `out` after its last epoch, or start it if there is none. The weights at the end are bit-identical
        to those of a run without interruption. Layers whose automatic Keras names have other numbers than in the run take
        the run's names.
      request: further entries of the run's `config.json`; by default how to load the data again, which commands such as
        `tfp-bprune evaluate` and `sweep` need.
      callbacks: Keras callbacks, one or several. They may change weights, masks and the learning rate, or stop the training. A
        callback that sets the learning rate replaces the cosine; with `LearningRateScheduler` or `ReduceLROnPlateau` there is
        no cosine from the start. Checkpoints hold the state of Keras's `EarlyStopping`, `ReduceLROnPlateau` and
        `ModelCheckpoint`, but of no other callback. A run that a callback stopped counts as finished and is not resumed.
      distributor: `Horovod()` under `horovodrun`, or `Strategy(...)` or a `tf.distribute` strategy. With a strategy, callbacks see
        a copy of the model, and `model` gets the trained weights at the end.
      progress: show a progress bar on standard error (rank 0 only).
      from_logits: whether class outputs are logits. By default the last layer decides: with a softmax or sigmoid they are
        probabilities, with a linear layer logits.

    Returns:
      The history, a list with one dictionary per epoch: loss, nll, accuracy or mse, the same on the validation split with the
      prefix `val_`, and the KL of each layer. With several outputs their names are prefixes. The list is also Keras's
      `History`: `history.history["val_nll"]`.

    Raises:
      RunError: `out` is not empty, is damaged, or is being written by another process.
      TrainingError: the loss is not finite, or a setting is invalid.
      DataError: the examples do not have the shape that the model takes, or its outputs do not suit the targets.
      BpruneError: it is unknown whether outputs are logits or probabilities, and `from_logits` is not given; or the optimizer
        was used for another model.

    Example:
      rows = bp.fit(model, data, settings=bp.Settings(epochs=60), out="runs/mine")
      rows[-1]["val_accuracy"]
    """
    settings, distributor = _settings(settings, epochs), distributor_of(distributor)
    callbacks = checked_callbacks(callbacks)
    if from_logits not in (None, True, False):
        raise TrainingError(f"from_logits must be True or False, got {from_logits!r}")
    check_known(model)
    check_scope(model, distributor)
    if resume and out is not None and Run(out).exists:
        take_names(model, Run(out))
    data = splits_of(model, data, Given(y, batch_size, validation_data, validation_split, task, seed))
    check_shapes(model, data)
    data = matched(model, data).merged(settings.accumulate)
    if resume and isinstance(data, Stream):
        raise TrainingError("a run on a dataset of batches cannot be resumed: give arrays or splits")
    warn_of_divergence(model, callbacks)
    begun_as: Json = {}  # which a network that shrinks is no longer at a second attempt

    def attempt(committed: Committed) -> list[Json]:
        mine = distributor.shard(data)
        compiled = partial(
            compile_model,
            data=mine,
            settings=settings,
            distributor=distributor,
            from_logits=from_logits,
            optimizer=optimizer,
        )
        with scope_of(model):
            compiled(model)
        going_on = committed.arrays is not None
        # Without a run the network need not be storable.
        config = {} if out is None else _config(model, mine, settings, data.request if request is None else request)
        config |= {"architecture": begun_as.setdefault("architecture", config["architecture"])} if config else {}
        ordered = sorted(callbacks, key=lambda one: getattr(one, "runs_last", False))
        if optimizer is None and any(isinstance(one, _SET_RATE) for one in ordered):
            model.optimizer.leave_schedule()
        if progress and (distributor.size > 1 or distributor.attempts_again):
            _announce(distributor, mine)
        with _open(out if distributor.rank == 0 else None, resume or going_on, config, mine) as run:
            begun = distributor.start(model, _restart(model, mine, run, committed))
            rows = begun.rows
            further = [*distributor.callbacks(mine), History(rows, ordered), *ordered, SetStates(ordered, begun.states)]
            writers: list[Any] = [_Commit(committed, rows, ordered)] if distributor.attempts_again else []
            writers += [RunWriter(run, rows, ordered)] if run is not None else []
            epochs = len(rows) if STOPPED in begun.states else settings.epochs
            called = [*further, *_always(settings, mine), *writers]
            with (
                distributor.training(model, compiled) as trained,
                accumulating(trained, settings.accumulate),
                _bar(settings, len(rows), progress and distributor.rank == 0) as shown,
            ):
                noise = [NoiseByEpoch(mine.seed, distributor.rank)] if trained is model else []
                _run_epochs(trained, mine, (len(rows), epochs), [*noise, *called, *shown], distributor)
            return rows

    return Rows(distributor.launch(attempt), model, data.steps)


def _settings(settings: Settings | None, epochs: int | None) -> Settings:
    settings = Settings() if settings is None else settings
    if not isinstance(settings, Settings):
        raise TrainingError(f"settings is a {type(settings).__name__}: expected Settings(epochs=..., ...)")
    return settings if epochs is None else replace(settings, epochs=epochs)


class _Commit(keras.callbacks.Callback):
    def __init__(self, committed: Committed, rows: list[Json], callbacks: Sequence[Any]) -> None:
        super().__init__()
        self._committed, self._rows, self._callbacks = committed, rows, callbacks

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        changes = any(getattr(one, "changes_sizes", False) for one in self._callbacks)
        architecture = store.architecture(self.model) if changes else None
        self._committed.commit(checkpoint(self.model) | states_of(self._callbacks), self._rows, architecture)


def _announce(distributor: Distributor, data: Splits) -> None:
    """A line on standard error from each worker, so that what a log holds can be told apart."""
    who = f"rank {distributor.rank} of {distributor.size} workers on {socket.gethostname()}"
    seen = sum(replica.seen("train") for replica in data.replicas(distributor.replicas))
    share = f"{seen:,} of {data.train_size:,} training examples an epoch"
    print(f"{who}: {share}", file=sys.stderr, flush=True)


def _always(settings: Settings, data: Splits) -> list[Any]:
    """Callbacks of every training, between those that change something and those that write."""
    stop = StopAtNonFinite()
    if settings.kl == "constant" and settings.kl_weight == 1:
        return [stop]
    schedule = kl_schedule(settings.kl, data.steps, settings.epochs, settings.warmup_part)
    return [KLSchedule(lambda step: settings.kl_weight * schedule(step), data.steps), stop]


@contextlib.contextmanager
def _bar(settings: Settings, start: int, shown: bool) -> Iterator[list[Any]]:
    """The bar, if it is to be shown, taken away also after an error."""
    bar = ProgressBar(settings.epochs, start) if shown else None
    try:
        yield [bar] if bar else []
    finally:
        if bar:
            bar.close()


def _run_epochs(
    model: Any, data: Splits, span: tuple[int, int], callbacks: list[Any], distributor: Distributor
) -> None:
    """Trains from the first to the last epoch of `span`."""
    start, epochs = span
    optimizer_variables(model)  # which, created in the first step, would have it traced twice
    valid = distributor.spread(data, lambda mine: mine.valid) if data.seen("valid") else None
    # Of batches that replicas take in turn nobody can tell the number.
    batches = None if valid is None or isinstance(valid, tf.data.Dataset) else int(data.valid.cardinality())
    model.fit(
        _readable(distributor.spread(data, lambda mine: mine.epochs(start)), data.steps),
        epochs=epochs,
        initial_epoch=start,
        steps_per_epoch=data.steps,
        validation_data=valid,
        validation_steps=batches,
        callbacks=callbacks,
        verbose=0,
    )


def _readable(batches: Any, steps: int) -> Any:
    """Endless batches of which one epoch is read by what reads all of a dataset before it is trained on.

    MLflow's autolog does so, for a hash, and would never end. Keras itself reads by `iter`.
    """
    if isinstance(batches, tf.data.Dataset):  # batches of tf.distribute cannot be read so
        batches.as_numpy_iterator = batches.take(steps).as_numpy_iterator
    return batches


def _config(model: Any, data: Splits, settings: Settings, request: Json) -> Json:
    config = heads_config(model) | {
        "request": request,
        "data": data.info.to_json()
        | {key: getattr(data, key) for key in ("seed", "train_size", "augmentation")}
        | {"batch_size": data.batch_size // settings.accumulate},
    }
    return finite(json.loads(json.dumps(config | {"settings": asdict(settings), "architecture": _architecture(model)})))


def _architecture(model: Any) -> Json:
    """That of `model`.

    Raises:
      RunError: naming the layer that cannot be stored.
    """
    try:
        return store.architecture(model)
    except RunError as error:
        for layer in model._flatten_layers(include_self=False):
            try:
                store.check_harmless(json.loads(json.dumps(keras.layers.serialize(layer), default=str)))
            except (RunError, NotImplementedError) as cause:
                raise RunError(
                    f"layer {layer.name!r} cannot be kept in a run: {cause}; or train without out"
                ) from error
        raise


@contextlib.contextmanager
def _open(out: Any, resume: bool, config: Json, data: Splits) -> Iterator[Run | None]:
    if out is None:
        yield None
        return
    run = Run(out) if resume and Run(out).exists else Run.create(out)
    with run.locked() if run.exists else run.begun():
        if run.exists:
            _check_same(run, config)
        else:
            content = (json.dumps(config, indent=2) + "\n").encode()
            run.commit(
                {CONFIG: content}, kind="run", seed=data.seed, data=data.info.fingerprint, epoch=0, checkpoint=None
            )
        yield run


def _check_same(run: Run, config: Json) -> None:
    if config["architecture"] == present_architecture(run):  # a model that shrank in this run
        config = config | {"architecture": run.config.get("architecture")}
    stored, config = without_homes(run.config), without_homes(config)
    stored["settings"] = _BEFORE | (stored.get("settings") or {})
    for part in ("data", "settings", "architecture"):
        if stored.get(part) != config[part]:
            differing = sorted(k for k in config[part] if (stored.get(part) or {}).get(k) != config[part][k])
            if part == "architecture":
                differing = _other_classes(stored.get(part), config[part]) or _differences(
                    stored.get(part), config[part]
                )
            raise RunError(
                f"{run.path} was started with {'an' * (part == 'architecture')}other {part} ({', '.join(differing)}): resume it as it was "
                "started, or choose another folder"
            )


def _differences(stored: Any, given: Any) -> list[str]:
    """What one architecture has in the place of another's; numbers in names only where there is nothing else."""
    found = list(dict.fromkeys(_different(stored, given, "")))
    told = [text for text, number in found if not number] or [text for text, _ in found]
    return told[:_SHOWN]


def _different(stored: Any, given: Any, place: str) -> Iterator[tuple[str, bool]]:
    """Each with the layer where it is, and whether it is but a number in a name."""
    if stored == given:
        return
    if isinstance(stored, dict) and isinstance(given, dict):
        name = given.get("name")
        place = f"layer {name!r}" if isinstance(name, str) and "layers" not in given else place
        for key in [*given, *(key for key in stored if key not in given)]:
            inner = place if isinstance(given.get(key), dict | list) else f"{place} {key}".strip()
            yield from _different(stored.get(key), given.get(key), inner)
    elif isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        for one, other in zip(stored, given, strict=True):
            yield from _different(one, other, place)
    else:
        had, has = (f"{len(one)} entries" if isinstance(one, dict | list) else repr(one) for one in (stored, given))
        number = isinstance(stored, str) and isinstance(given, str) and unnumbered(stored) == unnumbered(given)
        yield f"{place}: {had} instead of {has}".removeprefix(": "), number


def _other_classes(stored: Any, given: Any) -> list[str]:
    """Which classes of layers one architecture has in the place of the other's, such as those of another estimator."""
    had, has = (dict.fromkeys(_classes(one)) for one in (stored, given))
    gone, new = (", ".join(name for name in one if name not in other) for one, other in ((had, has), (has, had)))
    return [f"{gone} instead of {new}"] if gone and new else []


def _classes(config: Any) -> list[str]:
    """The classes that a Keras config names, as they are met."""
    if isinstance(config, list):
        return [name for one in config for name in _classes(one)]
    if not isinstance(config, dict):
        return []
    own = [str(config["class_name"]).rpartition(">")[2]] if "class_name" in config else []
    return own + [name for one in config.values() for name in _classes(one)]


def _restart(model: Any, data: Splits, run: Run | None, committed: Committed) -> Begun:
    """Puts the model where the last commit, or else the run's last checkpoint, left it; where that is."""
    stored, rows, architecture = committed.arrays, list(committed.rows), committed.architecture
    if stored is None and run is not None and run.manifest.get("checkpoint") is not None:
        stored, rows = run.read_tensors(run.manifest["checkpoint"]), run.read_rows()
        architecture = present_architecture(run)
        _check_rows(run, rows)
    arrays: dict[str, np.ndarray] = {}
    if stored is not None:
        declared = compress.declared(stored)
        store.become(model, architecture, sum(array.nbytes for array in declared.values()))
        store.check_weights(model, declared)  # before anything is unpacked
        check_state(model, declared)
        arrays = compress.decode(stored)
        store.set_weights(model, {name: array for name, array in arrays.items() if not name.startswith(PREFIX)})
        restore(model, arrays)
        # The learning rate follows the part of the training that is done, also where other workers took other steps.
        model.optimizer.iterations.assign(len(rows) * data.steps)
    states = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    return Begun(rows, states, architecture)


def _check_rows(run: Run, rows: list[Json]) -> None:
    """Refuses a history that is not of the checkpoint's epoch: training would go on from the wrong one."""
    epoch, name = run.manifest.get("epoch", 0), run.manifest["checkpoint"]
    if [row.get("epoch") for row in rows] != list(range(1, epoch + 1)) or name not in (
        checkpoint_name(epoch),
        checkpoint_name(epoch, end=True),
    ):
        raise RunError(
            f"{run.path} has a history of {len(rows)} epochs and the checkpoint {name} of epoch {epoch}: "
            "expected a row for each epoch; restore the run from a copy"
        )
