"""Keras callbacks for `model.fit`: KL schedule, a stop at non-finite losses, and the run directory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.files.runs import METRICS, WEIGHTS, Run, json_to_bytes, rows_to_bytes, tensors_to_bytes
from tfp_bprune.graphs.install import sizes_before
from tfp_bprune.graphs.slots import optimizer_variables
from tfp_bprune.layers import variational_layers
from tfp_bprune.storage import compress, store
from tfp_bprune.storage.store import Shaped, check_shaped, fitting, weights_of
from tfp_bprune.training.schedules import Schedule
from tfp_bprune.training.states import PREFIX, states_of
from tfp_bprune.types import Json, TrainingError

_CHECKPOINT = re.compile(rf"{WEIGHTS}/epoch-\d{{5,9}}(-end)?\.(safetensors|json)")

RATE, STOPPED = f"{PREFIX}learning_rate", f"{PREFIX}stopped"


class KLSchedule(keras.callbacks.Callback):
    """Sets the factor on KL / N before every execution, of one batch or of `steps_per_execution`.

    Of several batches it is the mean of their factors, so that an epoch counts the KL as often as with one by one.

    Args:
      schedule: factor by step, counted from 0 over the whole training.
      steps_per_epoch: batches an epoch.
    """

    def __init__(self, schedule: Schedule, steps_per_epoch: int) -> None:
        super().__init__()
        self.schedule, self.steps_per_epoch, self._epoch = schedule, steps_per_epoch, 0
        self._set: float | None = None

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Forgets what was set before this training."""
        self._set = None

    def on_epoch_begin(self, epoch: int, logs: Json | None = None) -> None:
        """Notes the epoch; Keras counts batches within it."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Json | None = None) -> None:
        """Sets the factor of this execution in every Bayesian layer."""
        step = self._epoch * self.steps_per_epoch + batch
        # Keras has set it to what is left of the epoch where that is less.
        steps = getattr(self.model, "_steps_per_execution", None)
        count = 1 if steps is None else int(steps.numpy())
        factor = sum(self.schedule(step + i) for i in range(count)) / count
        if factor == self._set:
            return
        self._set = factor
        for layer in variational_layers(self.model):
            layer.kl_schedule.assign(factor)


class StopAtNonFinite(keras.callbacks.Callback):
    """Ends training at the first loss that is NaN or infinite, and names the layer where that began.

    Raises:
      TrainingError: from within `model.fit`.
    """

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Looks at the running mean of the loss, which keeps every NaN and infinity."""
        loss = float((logs or {}).get("loss", 0.0))
        if not np.isfinite(loss):
            raise TrainingError(f"the loss became {loss} at batch {batch + 1}: {self._culprit()}")

    def _culprit(self) -> str:
        for layer in variational_layers(self.model):
            if not np.isfinite(layer.last_kl.numpy()):
                return (
                    f"the KL of layer {layer.name!r} is not finite; check its rho and prior, or lower the learning rate"
                )
        return "the KLs of all layers are finite, so the likelihood is not; check the inputs for NaN, or lower the learning rate"


class History(keras.callbacks.Callback):
    """Adds a row to the history after each epoch.

    Args:
      rows: the history so far, one object an epoch.
      callbacks: those that have `figures` of an epoch add them.
    """

    def __init__(self, rows: list[Json], callbacks: Sequence[Any] = ()) -> None:
        super().__init__()
        self.rows, self._callbacks = rows, callbacks

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Adds the epoch's metrics, the KL of each layer, and the figures of callbacks."""
        row: Json = {"epoch": epoch + 1, **{key: float(value) for key, value in (logs or {}).items()}}
        row |= {f"kl/{layer.name}": float(layer.last_kl.numpy()) for layer in variational_layers(self.model)}
        for callback in self._callbacks:
            row |= callback.figures() if hasattr(callback, "figures") else {}
        self.rows.append(row)


class Rows(list[Json], keras.callbacks.History):
    """What `fit` gives back: a row an epoch, and the same as the `History` of Keras.

    Args:
      rows: one object an epoch.
      model: that was trained.

    Attributes:
      history: a list for each figure, by name.
      epoch: numbers of the epochs, from 0.
      params: of the training.
    """

    def __init__(self, rows: Sequence[Json], model: Any, steps: int) -> None:
        list.__init__(self, rows)
        self.epoch = [row["epoch"] - 1 for row in rows]
        names = dict.fromkeys(name for row in rows for name in row if name != "epoch")
        self.history = {name: [row[name] for row in rows if name in row] for name in names}
        self.params = {"epochs": len(rows), "steps": steps, "verbose": 0}
        self.model, self.validation_data = model, None


class RunWriter(keras.callbacks.Callback):
    """After each epoch commits a checkpoint (weights, optimizer, noise steps) and the history to a run, atomically.

    Beside the checkpoint of a model that was made smaller it writes what the model is now.

    It comes after callbacks that change any of these, then and when training ends: the run holds what the model ends with.
    The last checkpoint is stored in the fewest bytes; those before it, which the next epoch replaces, as they are.

    Args:
      run: the run, locked by the caller.
      rows: the history, which has the epoch's row already.
      callbacks: those of which the checkpoint holds the state too; see `states`.
    """

    def __init__(self, run: Run, rows: list[Json], callbacks: Sequence[Any] = ()) -> None:
        super().__init__()
        self.run, self.rows, self.callbacks = run, rows, callbacks

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Writes the new checkpoint, then the manifest that names it, then drops the one before."""
        states = states_of(self.callbacks) | ({STOPPED: np.asarray(1)} if self.model.stop_training else {})
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        self._commit(epoch + 1, checkpoint_name(epoch + 1), checkpoint(self.model) | states, last)

    def on_train_end(self, logs: Json | None = None) -> None:
        """Writes the checkpoint anew where a callback changed something since, such as to the weights of the best epoch."""
        name, epoch = self.run.manifest.get("checkpoint"), len(self.rows)
        if name is None:
            return
        stored = compress.decode(self.run.read_tensors(name))
        arrays = checkpoint(self.model)
        if all(name in stored and array.tobytes() == stored[name].tobytes() for name, array in arrays.items()):
            return
        # Callbacks are done, and what they knew is no more of use, but that the training was to end.
        stopped = {STOPPED: stored[STOPPED]} if STOPPED in stored else {}
        self._commit(epoch, checkpoint_name(epoch, end=name == checkpoint_name(epoch)), arrays | stopped, last=True)

    def _commit(self, epoch: int, name: str, arrays: dict[str, np.ndarray], last: bool) -> None:
        stored = compress.encode(arrays) if last else arrays
        files = {name: tensors_to_bytes(stored), METRICS: rows_to_bytes(self.rows)} | self._architecture(name)
        older = [file for file in self.run.manifest["files"] if _CHECKPOINT.fullmatch(file) and file not in files]
        described = {"architecture": next((file for file in files if file.endswith(".json")), None)}
        known = described["architecture"] or "architecture" in self.run.manifest
        self.run.commit(files, drop=tuple(older), epoch=epoch, checkpoint=name, **(described if known else {}))

    def _architecture(self, name: str) -> dict[str, bytes]:
        """The file that says what the model is, where it is not what the run's config says."""
        if not sizes_before(self.model):
            return {}
        now = json_to_bytes(store.architecture(self.model))
        return {} if now == json_to_bytes(self.run.config["architecture"]) else {f"{name.rpartition('.')[0]}.json": now}


def checkpoint_name(epoch: int, end: bool = False) -> str:
    """Path within the run of the checkpoint after `epoch` epochs; that of the `end` replaces that of the last epoch."""
    return f"{WEIGHTS}/epoch-{epoch:05d}{'-end' if end else ''}.safetensors"


def checkpoint(model: Any) -> dict[str, np.ndarray]:
    """Everything that the next step depends on: weights, masks, noise steps, and the optimizer's state."""
    optimizer = {f"optimizer/{i:04d}": v.numpy() for i, v in enumerate(optimizer_variables(model))}
    rate = {RATE: np.stack([v.numpy() for v in model.optimizer.rate_state])} if _settable(model) else {}
    return weights_of(model) | optimizer | rate


def restore(model: Any, arrays: dict[str, np.ndarray]) -> None:
    """Puts a `checkpoint`'s optimizer state back; `storage.store.set_weights` does the weights.

    Raises:
      TrainingError: the checkpoint belongs to another optimizer.
      RunError: a variable has another shape or type, or is not finite.
    """
    check_state(model, arrays)
    for name, variable in _by_name(model, arrays):
        variable.assign(fitting(name, arrays[name], variable))
    if RATE in arrays and _settable(model):
        for value, variable in zip(arrays[RATE], model.optimizer.rate_state, strict=True):
            variable.assign(fitting(RATE, np.asarray(value), variable))


def check_state(model: Any, arrays: Mapping[str, Shaped]) -> None:
    """Holds the optimizer's state in a `checkpoint`, or what is declared of it before it is unpacked, to the model's.

    Raises:
      TrainingError: the checkpoint belongs to another optimizer.
      RunError: a variable has another shape or type.
    """
    for name, variable in _by_name(model, arrays):
        check_shaped(name, arrays[name], variable)


def _by_name(model: Any, arrays: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The optimizer's variables by what a checkpoint names them."""
    variables = optimizer_variables(model)
    stored = sorted(name for name in arrays if name.startswith("optimizer/"))
    if len(stored) != len(variables):
        raise TrainingError(
            f"the checkpoint has {len(stored)} optimizer variables, expected {len(variables)}: use the optimizer of the run"
        )
    return zip(stored, variables, strict=True)


def _settable(model: Any) -> bool:
    return hasattr(model.optimizer, "rate_state")
