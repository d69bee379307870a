"""Pruning while `model.fit` runs: gradual sparsity, and pruned weights of plain layers kept at 0."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.layers import Variational
from tfp_bprune.models.convert import kind_of
from tfp_bprune.prune.dead import remove_dead
from tfp_bprune.prune.masks import check_sparsity
from tfp_bprune.prune.prune import apply_masks
from tfp_bprune.prune.schedule import SparsitySchedule, polynomial
from tfp_bprune.prune.select import choose_masks
from tfp_bprune.types import Criterion, Granularity, Json, Scope


class KeepPruned(keras.callbacks.Callback):
    """Sets the kernel entries of plain Keras layers that are 0 when training begins back to 0 after every step.

    For retraining a network pruned by magnitude (Han et al. 2015): an optimizer with momentum moves a weight whose
    gradient is 0. Bayesian layers need no such help, their masks are part of them.
    """

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Notes what is gone."""
        self._held = [(layer.kernel, layer.kernel.numpy() != 0) for layer in _plain_layers(self.model)]

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Removes it again."""
        for kernel, mask in self._held:
            if not mask.all():
                kernel.assign(np.where(mask, kernel.numpy(), 0))


_UNTIL = 0.75  # part of the training at which a schedule over all of it has reached its sparsity
_FROM = 0.25  # part of that at which it begins
_EVERY = 100


class GradualPruning(keras.callbacks.Callback):
    """Removes weights or units while training, as a schedule says; what is gone stays gone.

    Weights that carry nothing once others are gone go too (`remove_dead`), so that what the schedule leaves is left to
    weights that do something; the last pruning may end a little above the final sparsity for it.

    The masks are weights of the model, so a checkpoint holds them, and a resumed run goes on with them.

    Args:
      schedule: the final sparsity, in [0, 1), reached by a cubic schedule over the whole training, whose first fifth and
        last quarter prune nothing; or the sparsity by step, as `prune.polynomial` gives it.
      steps_per_epoch: batches an epoch; by default as many as Keras says.
      every: steps between two prunings, fewer where a schedule over the whole training is short.
      criterion, scope, granularity: as in `prune`.

    Raises:
      PruneError: a sparsity outside [0, 1).
    """

    def __init__(
        self,
        schedule: SparsitySchedule | float,
        steps_per_epoch: int | None = None,
        every: int = _EVERY,
        criterion: Criterion | None = None,
        scope: Scope = "global",
        granularity: Granularity = "weight",
    ) -> None:
        super().__init__()
        if not callable(schedule):
            check_sparsity(schedule)
        self.schedule, self.steps_per_epoch, self.every = schedule, steps_per_epoch, every
        self._ranking: Json = {"criterion": criterion, "scope": scope, "granularity": granularity}
        self._epoch, self._keep = 0, KeepPruned()

    def set_model(self, model: Any) -> None:
        """Keras's hook."""
        super().set_model(model)
        self._keep.set_model(model)

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Notes what is gone already, and how long the training is."""
        self._keep.on_train_begin()
        self._steps = self.steps_per_epoch or self.params["steps"]
        if callable(self.schedule):
            self._sparsity, self._every = self.schedule, self.every
            return
        end = max(2, round(_UNTIL * self.params["epochs"] * self._steps))
        self._sparsity = polynomial(self.schedule, round(_FROM * end), end)
        self._every = min(self.every, max(1, end // 10))  # so that some pruning falls on the end or after it

    def on_epoch_begin(self, epoch: int, logs: Json | None = None) -> None:
        """Notes the epoch; Keras counts batches within it."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Prunes, every so many steps."""
        step = self._epoch * self._steps + batch + 1
        sparsity = self._sparsity(step) if step % self._every == 0 else 0.0
        if sparsity > 0:
            apply_masks(self.model, choose_masks(self.model, sparsity=sparsity, **self._ranking).masks)
            remove_dead(self.model)
            self._keep.on_train_begin()
        self._keep.on_train_batch_end(batch)


def _plain_layers(model: Any) -> list[Any]:
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if kind_of(layer) and not isinstance(layer, Variational)]
