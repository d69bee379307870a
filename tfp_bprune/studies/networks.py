"""One trained network: all that determines it, and its run in a store from which no study trains it twice."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits, load
from tfp_bprune.files.runs import Run, rows_to_bytes, sha256
from tfp_bprune.files.words import renewed
from tfp_bprune.networks import build
from tfp_bprune.pruning import GradualPruning, KeepPruned, Shrink, polynomial, prune
from tfp_bprune.storage import load_model
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import Augmentation, Criterion, DataError, Json, KLWeighting, Layers

VALIDATION_FRACTION = 0.1
TIMES = "times.jsonl"


@dataclass(frozen=True)
class Spec:
    """All that determines a trained network, apart from versions and data, which its run's manifest names.

    Attributes:
      dataset, network, layers, seed: as in `load` and `build`.
      hidden, width, sizes: options of the architecture; None where it has none.
      epochs, batch_size, learning_rate, kl, warmup_part, kl_weight: as in `training.Settings`.
      dropout_rate: at which units are dropped, for "dropout" alone.
      prior: config of the prior; None for the default scale mixture.
      rho_init: where rho starts.
      augmentation: of training images.
      validation_fraction: part of the training split that is kept for validation; None for `VALIDATION_FRACTION`.
      parent: the trained network that this one starts from, if not from the beginning.
      sparsity: pruned to this before training (with a parent), or while training (without); by SNR where weights have
        a distribution, else by magnitude.
      gradual: with a parent too, pruned while training: from the parent's sparsity, over the first half.
      units: what is pruned while training are whole units, and inputs that are none, by this criterion, until a part
        `sparsity` of the multiplications is gone; they leave the network then.
      stop_after: epochs after which training ends, short of the `epochs` over which its schedules are laid.
      shrink: whether units leave that gradual pruning took all weights of; with a parent that lost units they do in any case.
    """

    dataset: str
    network: str = "mlp"
    layers: Layers = "flipout"
    hidden: tuple[int, ...] | None = None
    width: float | None = None
    epochs: int = 50
    batch_size: int = 100
    seed: int = 0
    learning_rate: float = 1e-3
    kl: KLWeighting = "warmup"
    warmup_part: float = 0.4
    kl_weight: float = 1.0
    dropout_rate: float | None = None
    prior: Json | None = None
    rho_init: float = -5.0
    augmentation: Augmentation = "none"
    validation_fraction: float | None = None
    parent: Spec | None = None
    sparsity: float | None = None
    gradual: bool | None = None
    sizes: tuple[int, ...] | None = None
    units: Criterion | None = None
    stop_after: int | None = None
    shrink: bool | None = None

    def to_json(self) -> Json:
        """The entries that are not None, as plain data."""
        return _without_none(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_json(cls, stored: Json) -> Spec:
        """The inverse of `to_json`."""
        known = {field.name for field in fields(cls)}
        values = {key: value for key, value in renewed(stored).items() if key in known}
        if "parent" in values:
            values["parent"] = cls.from_json(values["parent"])
        values |= {key: tuple(values[key]) for key in ("hidden", "sizes") if key in values}
        return cls(**values)

    @property
    def key(self) -> str:
        """A name for the network that no other has: what a person looks for, and a hash of everything."""
        digest = sha256(json.dumps(_as_first_named(self.to_json()), sort_keys=True).encode())[:12]
        return f"{self.dataset}-{self.network}-{self.layers}-{self.seed}-{digest}"

    @property
    def kind(self) -> str:
        """Networks of one kind take the same time to train."""
        return replace(self, seed=0, dropout_rate=None).key

    @property
    def kept_aside(self) -> float:
        """The part of the training split that it is validated on."""
        return VALIDATION_FRACTION if self.validation_fraction is None else self.validation_fraction

    @property
    def bayesian(self) -> bool:
        """Whether its weights have distributions."""
        return self.layers not in ("deterministic", "dropout")


def _as_first_named(value: Any) -> Any:
    """With `twin` for `layers`, over which the names of networks were hashed first: stores of before stay found."""
    if not isinstance(value, dict):
        return value
    return {"twin" if key == "layers" else key: _as_first_named(item) for key, item in value.items()}


def _without_none(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _without_none(item) for key, item in value.items() if item is not None}


@dataclass(frozen=True)
class Network:
    """A trained network with its data, as a study measures it.

    Attributes:
      store: where it is, with other networks.
      data_dir: where other datasets are.
    """

    spec: Spec
    model: Any
    data: Splits
    store: Path
    data_dir: Path | None = None


def is_trained(spec: Spec, store: Path) -> bool:
    """Whether the store holds the network with all its epochs."""
    run = Run(store / spec.key)
    return run.exists and run.manifest.get("seconds") is not None


def train(spec: Spec, store: Path, data_dir: Path | None, threads: int, parent_process: int | None = None) -> Splits:
    """Trains the network into the store, from its last finished epoch if it was begun before; returns its data.

    Args:
      threads: that TensorFlow was told to use; kept with the times.
      parent_process: training stops after the epoch in which this process is no longer the parent of ours.
    """
    data = data_of(spec, data_dir)
    if is_trained(spec, store):
        return data
    if spec.parent is not None:
        train(spec.parent, store, data_dir, threads, parent_process)
    path = store / spec.key
    settings = Settings(
        spec.epochs, spec.learning_rate, kl=spec.kl, warmup_part=spec.warmup_part, kl_weight=spec.kl_weight
    )
    times = Times(path, parent_process)
    callbacks = [*pruning_callbacks(spec, data.steps), *([Stop(spec.stop_after)] if spec.stop_after else []), times]
    request = _request(spec, data_dir)
    options: Json = {"settings": settings, "callbacks": callbacks, "progress": False}
    fit(start_of(spec, data, store), data, out=path, resume=True, request=request, **options)
    run = Run.open(path)
    with run.locked():
        run.commit({}, seconds=times.total(spec.stop_after or spec.epochs), threads=threads)
    return data


def data_of(spec: Spec, data_dir: Path | None) -> Splits:
    """The data that the network is trained and tested on.

    Raises:
      DataError: it is absent, or no classification.
    """
    data = load(
        spec.dataset,
        data_dir,
        batch_size=spec.batch_size,
        validation_fraction=spec.kept_aside,
        seed=spec.seed,
        augmentation=spec.augmentation,
    )
    if data.info.task != "classification":
        raise DataError(f"{spec.dataset} is a {data.info.task}: the studies compare classifiers, expected images")
    return data


def start_of(spec: Spec, data: Splits, store: Path) -> Any:
    """The Keras model that training begins with."""
    if spec.parent is not None:
        model = load_model(store / spec.parent.key).model
        return prune(model, sparsity=spec.sparsity)[0] if spec.sparsity and not spec.gradual else model
    options: Json = {"hidden": spec.hidden} if spec.hidden is not None else {}
    options |= {key: value for key, value in (("width", spec.width), ("sizes", spec.sizes)) if value is not None}
    more: Json = {"dropout_rate": spec.dropout_rate} if spec.dropout_rate is not None else {}
    more |= {"prior": spec.prior, "rho_init": spec.rho_init, "seed": spec.seed}
    return build(spec.network, data.info, layers=spec.layers, options=options, **more)


def pruning_callbacks(spec: Spec, steps: int) -> list[Any]:
    """What keeps pruned weights at 0, or prunes while training."""
    if spec.sparsity is None:
        return []
    if spec.units is not None:
        given: Json = {"granularity": "unit", "aggregate": "norm", "inputs": True, "counts": "multiplications"}
        return [GradualPruning(spec.sparsity, criterion=spec.units, over=(0.1, 0.5), **given), Shrink()]
    if spec.parent is None:
        return [GradualPruning(spec.sparsity)]
    if not spec.gradual:
        return [KeepPruned()]
    half = max(1, spec.epochs * steps // 2)
    begun = 0.0 if spec.parent.units is not None else spec.parent.sparsity or 0.0  # units that are pruned are gone
    pruning = GradualPruning(polynomial(spec.sparsity, 0, half, begun), every=min(100, half))
    return [pruning, Shrink()] if spec.shrink or spec.parent.units is not None else [pruning]


def trained(spec: Spec, store: Path, data: Splits, data_dir: Path | None = None) -> Network:
    """The network from the store."""
    return Network(spec, load_model(store / spec.key).model, data, store, data_dir)


def _request(spec: Spec, data_dir: Path | None) -> Json:
    """What the package's other commands want to know of a run, and the whole of the spec."""
    about = {"dataset": spec.dataset, "model": spec.network, "layers": spec.layers, "seed": spec.seed}
    about |= {"validation_fraction": spec.kept_aside, "augmentation": spec.augmentation}
    return about | {"data_dir": str(data_dir.absolute()) if data_dir else None, "study": spec.to_json()}


class Stop(keras.callbacks.Callback):
    """Ends training after so many epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self._epochs = epochs

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Says so to Keras."""
        if epoch + 1 >= self._epochs:
            self.model.stop_training = True


class Times(keras.callbacks.Callback):
    """Keeps the seconds of every epoch in the run, validation and writing included.

    Args:
      path: of the run that `fit` writes.
      parent_process: see `train`.

    Raises:
      SystemExit: from within `model.fit`, once the parent process is gone.
    """

    def __init__(self, path: Path, parent_process: int | None = None) -> None:
        super().__init__()
        self._run, self._parent = Run(path), parent_process
        self._rows: list[Json] = []

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Takes up the times of the epochs that are done."""
        self._rows, self._begin = self._run.read_rows(TIMES), time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Adds a time to the run, which `fit` holds locked."""
        now = time.perf_counter()
        self._rows = [row for row in self._rows if row["epoch"] <= epoch]
        self._rows.append({"epoch": epoch + 1, "seconds": now - self._begin})
        self._run.commit({TIMES: rows_to_bytes(self._rows)})
        self._begin = now
        if self._parent is not None and os.getppid() != self._parent:
            raise SystemExit(f"{self._run.path.name}: stopped after epoch {epoch + 1}, as the study was ended")

    def total(self, epochs: int) -> float:
        """Seconds of the whole training; an epoch whose time was lost by a kill counts as the mean of the others."""
        seconds = [row["seconds"] for row in self._rows]
        return sum(seconds) * epochs / max(1, len(seconds))
