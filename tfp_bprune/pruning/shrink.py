"""Units that are gone leave the network while it trains, so that what is left trains faster."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.compact import Kept, kept_of
from tfp_bprune.graphs.products import multiplications
from tfp_bprune.graphs.shrink import check_shrinkable, shrink, units
from tfp_bprune.pruning.callback import KeepPruned
from tfp_bprune.pruning.dead import remove_dead
from tfp_bprune.pruning.masks import check_threshold
from tfp_bprune.pruning.prune import apply_masks
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.pruning.select import choose_masks, prunable_weights
from tfp_bprune.types import Aggregate, Criterion, Json, PruneError, Scope, check_number

_C: Any = keras.callbacks
LEAST = 0.1  # of the multiplications


class _NotOfSizes(logging.Filter):
    """Keeps back TensorFlow's warning that Keras's functions are traced often, as for new sizes they have to be."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is another one."""
        message = record.getMessage()
        return not ("<function Model.make_" in message and "tf.function retracing" in message)


_NOT_OF_SIZES = _NotOfSizes()


class Shrink(keras.callbacks.Callback):
    """A callback that takes removed units out of the model between epochs: smaller variables, the same function, faster epochs.

    A unit is taken out if nothing reads it; or if its value is the same for every input, which is then added to the biases of
    its readers. `GradualPruning` and `prune` leave such units, or this callback removes them by a score of its own. Outputs stay
    equal to within float32 rounding, also under the same draws. The mask, the prior and the optimizer's state of every
    remaining weight stay bit-identical. The model object stays the same, but its layers are new ones
    (`model.get_layer(name)`). At the end of the training, all removed units are taken out.

    The input keeps its shape, and the flattened input of a dense layer its length. Features and positions that nothing reads
    remain as masked rows of the kernel, and cost as much as others during training (of 784-105-262-10 that reads 278 inputs,
    half of the multiplications). An export leaves them out.

    For each epoch, Keras's logs and the run's rows have its `seconds`, the `multiplications` of an example, and the units of each
    layer (`units/LAYER`). In your own `model.fit`, put this callback after those that prune; `bp.fit` does so by itself.

    Args:
      criterion: also remove the units that score below `threshold`; by default only units that were removed already are taken out.
      threshold: by default where the criterion ends by itself; "evidence" ends at 0.
      aggregate, scope: as in `prune`.
      after: number of epochs before units are scored.
      least: fraction of the multiplications that has to be gone before the network is made smaller, since tracing it again takes
        seconds.

    Raises:
      PruneError: there is a threshold without a criterion, or none with a criterion that cannot choose one; or `least` is outside
        [0, 1]. When training begins: another callback would restore weights of a larger network.
      BpruneError: when training begins: a nested model (see `inline`) or something else, which is named, cannot be made smaller.

    Example:
      model.fit(x, y, epochs=20, callbacks=[bp.GradualPruning(0.95, granularity="unit"), bp.Shrink()])
    """

    runs_last = True  # `fit` calls it after callbacks that change weights
    changes_sizes = True  # of which a run keeps count

    def __init__(
        self,
        *,
        criterion: Criterion | None = None,
        threshold: float | None = None,
        aggregate: Aggregate = "max",
        scope: Scope = "global",
        after: int = 0,
        least: float = LEAST,
    ) -> None:
        super().__init__()
        self._scoring = Scoring(criterion, scope, "unit", aggregate)
        self._threshold = _end(criterion, threshold)
        check_number("least", least, PruneError)
        check_number("after", after, PruneError, whole=True)
        if threshold is not None:
            check_threshold(threshold, -np.inf)
        if not 0 <= least <= 1 or after < 0:
            raise PruneError(f"least must be in [0, 1] and after at least 0, got {least} and {after}")
        self.after, self.least = after, least
        self._keep = KeepPruned()
        self._share: Callable[[Any], Any] | None = None

    def set_model(self, model: Any) -> None:
        """Keras's hook."""
        super().set_model(model)
        self._keep.set_model(model)

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Checks that the model, its optimizer and the other callbacks allow it."""
        if tf.distribute.has_strategy():
            raise PruneError("a network cannot shrink under tf.distribute: expected one process, or Horovod's workers")
        check_shrinkable(self.model)
        if self._scores:
            prunable_weights(self.model, self._scoring.of(self.model).by)
        others = _callbacks_around()
        _refuse_restoring(others)
        self._share = next((one.share for one in others if hasattr(one, "share")), None)
        self._keep.on_train_begin()
        tf.get_logger().addFilter(_NOT_OF_SIZES)

    def on_epoch_begin(self, epoch: int, logs: Json | None = None) -> None:
        """Notes the time."""
        self._began = time.perf_counter()
        self._keep.on_epoch_begin(epoch)

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Keeps removed weights of plain layers at 0."""
        if self._scores:
            self._keep.on_train_batch_end(batch)

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Removes units, and makes the model smaller if that pays."""
        if logs is not None:
            logs.update(self.figures())
        if self._scores and epoch + 1 > self.after:
            self._remove()
        if epoch + 1 < self.params["epochs"] and self._shrink(self.least):
            self.model.make_train_function(force=True)

    def on_train_end(self, logs: Json | None = None) -> None:
        """Takes all removed units out."""
        tf.get_logger().removeFilter(_NOT_OF_SIZES)
        self._shrink(0.0)

    def figures(self) -> Json:
        """Seconds since the epoch began, multiplications of an example, and units of each layer."""
        sizes = {f"units/{name}": float(count) for name, count in units(self.model).items()}
        passed = time.perf_counter() - self._began
        return {"seconds": passed, "multiplications": float(multiplications(self.model)), **sizes}

    @property
    def _scores(self) -> bool:
        return self._threshold is not None

    def _remove(self) -> None:
        masks = choose_masks(self.model, self._scoring, threshold=self._threshold).masks
        apply_masks(self.model, masks)
        remove_dead(self.model)
        self._keep.on_train_begin()

    def _shrink(self, least: float) -> bool:
        """Makes the model smaller if more than the part `least` of its multiplications goes; whether it did."""
        kept: dict[str, Kept] = kept_of(self.model)
        if self._share is not None:  # what is constant may hang on a worker's own moving averages
            kept = self._share(kept)
        if not kept or multiplications(self.model, kept) > (1 - least) * multiplications(self.model):
            return False
        shrink(self.model, kept)
        return True


def _end(criterion: Criterion | None, threshold: float | None) -> float | None:
    """The score below which units go; None where none are scored."""
    if criterion is None and threshold is not None:
        raise PruneError(f"threshold {threshold} needs a criterion: give Shrink one, such as criterion='snr'")
    if criterion is None or threshold is not None:
        return threshold
    if CRITERIA[criterion].ends_at is None:
        raise PruneError(f"criterion {criterion!r} cannot choose a threshold: give Shrink one")
    return CRITERIA[criterion].ends_at


def _callbacks_around() -> list[Any]:
    """All callbacks of the training that calls this one; Keras's list of them calls each, and nothing else tells of it."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, _C.CallbackList):
            return list(owner.callbacks)
        frame = frame.f_back
    return []


def _refuse_restoring(callbacks: list[Any]) -> None:
    for one in callbacks:
        if getattr(one, "restore_best_weights", False) or isinstance(one, _C.BackupAndRestore):
            raise PruneError(
                f"{type(one).__name__} restores earlier weights, which do not fit a network that has shrunk: expected "
                "EarlyStopping(restore_best_weights=False), and ModelCheckpoint(save_best_only=True) for the best model"
            )
