"""Pruning while `model.fit` runs: gradual sparsity, and pruned weights of plain layers kept at 0.

Keras calls a callback once an execution, of one batch or of `steps_per_execution`: what is said of steps holds for those
that an execution ends with.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.graphs.convert import is_raw, weighted_layers
from tfp_bprune.graphs.install import sizes_before
from tfp_bprune.layers import Variational, kernels_of
from tfp_bprune.pruning.dead import remove_dead
from tfp_bprune.pruning.groups import costs_of
from tfp_bprune.pruning.masks import check_sparsity, sparsity_of
from tfp_bprune.pruning.paths import live_masks
from tfp_bprune.pruning.prune import apply_masks, remove_to_the_end, step_to_the_end, with_an_end
from tfp_bprune.pruning.schedule import SparsitySchedule, polynomial
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.types import Aggregate, Counts, Criterion, Granularity, Json, PruneError, Scope, check_number


class KeepPruned(keras.callbacks.Callback):
    """Sets the kernel entries of plain Keras layers that are 0 when training begins back to 0 after every execution.

    For retraining a network pruned by magnitude (Han et al. 2015): an optimizer with momentum moves a weight whose
    gradient is 0. With `steps_per_execution` it may do so within an execution; at its end, and so at the end of an epoch,
    the weight is 0. Bayesian layers need no such help, their masks are part of them.
    """

    runs_last = True  # `fit` calls it after callbacks that change weights

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Notes what is gone."""
        self._layers = _plain_layers(self.model)
        self._held = [(w.variable, w.mask) for layer in self._layers for w in kernels_of(layer).values()]

    def on_epoch_begin(self, epoch: int, logs: Json | None = None) -> None:
        """Notes it anew where the layers are others since: the network shrank."""
        if list(map(id, self._layers)) != list(map(id, _plain_layers(self.model))):
            self.on_train_begin()

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Removes it again."""
        for kernel, mask in self._held:
            if not mask.all():
                kernel.assign(np.where(mask, kernel.numpy(), 0))

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Removes it again, where another callback has put weights back."""
        self.on_train_batch_end(0)

    def on_train_end(self, logs: Json | None = None) -> None:
        """As at the end of an epoch."""
        self.on_train_batch_end(0)


_UNTIL = 0.75  # part of the training at which a schedule over all of it has reached its sparsity
_FROM = 0.25  # part of that at which it begins
_EVERY = 100
_NEAR = 0.005  # of the sparsity asked for; farther from it a warning says so


class GradualPruning(keras.callbacks.Callback):
    """A callback that removes more and more weights or units during training; what is removed stays removed.

    Weights that no longer have an effect, because others were removed, are removed too (`remove_dead`) and count towards the
    sparsity. When training ends, also if it ends early, the final sparsity is reached. A warning says if that took a large last
    step, or if the paths or units of the network do not allow that sparsity.

    The masks are weights of the model: checkpoints hold them, and a resumed run continues with them. Weights of units that have
    left the model since it was given to `fit` (`Shrink`) count as removed. In your own `model.fit`, put this callback last, so
    that no other one restores weights after it; `bp.fit` does so by itself.

    Args:
      schedule: the final sparsity, in [0, 1), which a cubic schedule reaches; or a function that gives the sparsity of each step, such
        as `pruning.polynomial`, whose last value is the final sparsity. With None, the criterion decides what is removed, from
        the first fifth of the training to its end.
      steps_per_epoch: batches in an epoch. By default Keras's number, or else that of the first epoch, in which a schedule given as
        a sparsity then prunes nothing.
      every: steps between two prunings; fewer if the schedule is short. With `steps_per_execution`, at the end of the execution that
        reaches them.
      criterion, scope, granularity, aggregate, inputs, counts: as in `prune`. With `schedule=None` the default criterion is that of
        `prune` without a sparsity.
      over: for a schedule given as a sparsity, the fractions of the training at which it begins and ends; (0.19, 0.75) by default.
        The training after its end lets the network recover; units need more of it than weights.

    Attributes:
      sparsity: the sparsity after the last pruning; None before the first.

    Raises:
      PruneError: the sparsity is outside [0, 1); there is no schedule and the criterion cannot choose the sparsity; or `every` is
        below 1. When training begins: there is nothing to prune, or the number of batches is needed but unknown.

    Example:
      bp.fit(model, data, callbacks=[bp.GradualPruning(0.95)])
    """

    runs_last = True

    def __init__(
        self,
        schedule: SparsitySchedule | float | None = None,
        *,
        steps_per_epoch: int | None = None,
        every: int = _EVERY,
        criterion: Criterion | None = None,
        scope: Scope = "global",
        granularity: Granularity = "weight",
        aggregate: Aggregate = "max",
        inputs: bool = False,
        counts: Counts = "weights",
        over: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        scoring = Scoring(criterion, scope, granularity, aggregate, inputs=inputs, counts=counts)
        self._by_prior = schedule is None and criterion is None
        if schedule is None:
            scoring = with_an_end(scoring)
        elif not callable(schedule):
            check_sparsity(schedule)
        if over is not None and (not isinstance(over, tuple | list) or len(over) != 2):
            raise PruneError(f"over must be two parts of the training, (begin, end), got {over!r}")
        for part in over or ():
            check_number("over", part, PruneError)
        if over is not None and not 0 <= over[0] < over[1] <= 1:
            raise PruneError(
                f"over must be two parts of the training, 0 <= begin < end <= 1, got {over[0]} and {over[1]}"
            )
        for name, value in (("every", every), ("steps_per_epoch", steps_per_epoch)):
            if value is not None:
                check_number(name, value, PruneError, whole=True)
            if value is not None and value < 1:
                raise PruneError(f"{name} must be at least 1, got {value}")
        self.schedule, self.steps_per_epoch, self.every = schedule, steps_per_epoch, every
        self.sparsity: float | None = None
        self._scoring, self._over = scoring, over
        self._keep = KeepPruned()

    def set_model(self, model: Any) -> None:
        """Keras's hook."""
        super().set_model(model)
        self._keep.set_model(model)

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Counts what is pruned already, and finds out how long the training is."""
        _check_prunable(self.model, self._scoring)
        if self._by_prior:
            self._scoring = with_an_end(replace(self._scoring, criterion=None), self.model)
        self._keep.on_train_begin()
        self._steps: int | None = self.steps_per_epoch or self.params.get("steps")
        self._begun = 0
        self._step: int | None = None
        self._planned: SparsitySchedule | None = self.schedule if callable(self.schedule) else None
        self._first: int | None = None  # step from which on the criterion says what goes
        self._every = self.every
        if self._steps is not None:
            self._plan(self._steps)
        elif self._planned is None and self.params["epochs"] == 1:
            raise PruneError(_UNKNOWN_LENGTH)

    def _plan(self, steps: int, not_before: int = 0) -> None:
        """Lays the schedule to a sparsity alone, or to a criterion's end, over the training."""
        if callable(self.schedule):
            return
        whole = self.params["epochs"] * steps
        begin, until = self._over or (None, _UNTIL)
        end = max(2, not_before + 1, round(until * whole))
        self._first = max(not_before, round(_FROM * end) if begin is None else min(end - 1, round(begin * whole)))
        self._planned = None if self.schedule is None else polynomial(self.schedule, self._first, end)
        self._every = min(self.every, max(1, end // 10))  # so that some pruning falls on the end or after it

    def on_epoch_begin(self, epoch: int, logs: Json | None = None) -> None:
        """Counts the steps taken so far; Keras counts batches within an epoch only."""
        self._keep.on_epoch_begin(epoch)
        if self._step is not None or epoch == 0:
            self._begun = self._step or 0
        elif self._steps is None:
            raise PruneError(_UNKNOWN_LENGTH)
        else:  # a training that goes on
            self._begun = epoch * self._steps
        self._step = self._begun

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Prunes if the steps since the last call reach the next multiple of `every`."""
        before, step = self._step or 0, self._begun + batch + 1
        self._step = step
        if step // self._every > before // self._every:
            self._prune_at(step)
        self._keep.on_train_batch_end(batch)

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Learns the length of an epoch, if it was unknown."""
        if self._steps is None and self._step:
            self._steps = self._step
            self._plan(self._steps, not_before=self._step)

    def on_train_end(self, logs: Json | None = None) -> None:
        """Prunes to the final sparsity, and warns if that was a large step or was not reached."""
        before, final = self._counted(), None if self.schedule is None else self._final()
        if final is None:
            remove_to_the_end(self.model, self._scoring)
        else:
            self._prune(final)
        self.sparsity = self._counted()
        if self.sparsity - before > _NEAR and self._step:
            warnings.warn(
                f"training ended at step {self._step} with a sparsity of {before:.4f}: {self.sparsity:.4f} was reached by "
                "removing the rest at once, without training afterwards; train longer, or let the schedule end sooner",
                stacklevel=2,
            )
        if final is not None:
            self._warn_of(final)

    def _warn_of(self, final: float) -> None:
        """Warns where the final sparsity was not reached."""
        reached = self.sparsity or 0.0
        off = final - reached
        if off > _NEAR or (off < -_NEAR and self._scoring.granularity == "weight" and final > 0):
            warnings.warn(
                f"GradualPruning ended at a sparsity of {reached:.4f}, asked for {final:.4f}: what was removed before "
                "and what every layer must keep allow no closer sparsity",
                stacklevel=3,
            )

    def _final(self) -> float:
        """The sparsity to end with."""
        if not callable(self.schedule):
            return self.schedule or 0.0
        known = getattr(self.schedule, "final", None)
        if known is not None:
            return float(known)
        steps = self._step if self._step is not None else self.params["epochs"] * (self._steps or 0)
        return self.schedule(steps)

    def _prune_at(self, step: int) -> None:
        """What is due at a step: the schedule's sparsity, or one step to the criterion's end."""
        if self._planned is not None:
            self._prune(self._planned(step))
        elif self._first is not None and self._first <= step:
            step_to_the_end(self.model, self._scoring)
            self._note()

    def _prune(self, sparsity: float) -> None:
        if sparsity <= 0:
            return
        apply_masks(self.model, live_masks(self.model, self._of_those_there(sparsity), self._scoring))
        remove_dead(self.model)
        self._note()

    def _note(self) -> None:
        """Takes down what is gone."""
        self._keep.on_train_begin()
        self.sparsity = self._counted()

    def _of_those_there(self, sparsity: float) -> float:
        """The part of the weights that are there that has to be gone for `sparsity` of those that there were."""
        left = self._part_left() if sizes_before(self.model) else 1.0
        return sparsity if left == 1 else max(0.0, 1 - (1 - sparsity) / left)

    def _counted(self) -> float:
        weights = prunable_weights(self.model, self._scoring.of(self.model).by)
        now = sparsity_of({name: w.mask for name, w in weights.items()}, self._costs(weights))
        left = self._part_left() if sizes_before(self.model) else 1.0
        return now if left == 1 else 1 - (1 - now) * left

    def _part_left(self) -> float:
        """How many prunable weights there are, masked or not, of those before the network shrank; or what they cost."""
        weights, before = prunable_weights(self.model, self._scoring.of(self.model).by), sizes_before(self.model)
        costs = self._costs(weights)
        now = sum(costs[name] * w.mask.size for name, w in weights.items())
        return now / sum(costs[name] * before[name] for name in weights)

    def _costs(self, names: Iterable[str]) -> dict[str, int]:
        return costs_of(self.model, names, self._scoring.counts)


_UNKNOWN_LENGTH = (
    "GradualPruning cannot tell how many batches an epoch has, for the data does not say so: give steps_per_epoch, to it "
    "or to `model.fit`"
)


def _check_prunable(model: Any, scoring: Scoring) -> None:
    for layer in model._flatten_layers(include_self=False):
        if is_raw(layer):
            raise PruneError(
                f"layer {layer.name!r} is of raw tfp.layers, which have no masks to prune while they train: expected this "
                "package's layers, train what `tfp_bprune.adopt(model)` gives"
            )
    prunable_weights(model, scoring.of(model).by)


def _plain_layers(model: Any) -> list[Any]:
    return [layer for layer in weighted_layers(model) if not isinstance(layer, Variational)]
