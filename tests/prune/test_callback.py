"""Pruning while training: the schedule is met, and what is gone stays gone through Adam's momentum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune import Settings, fit, load, prune
from tfp_bprune._keras import keras
from tfp_bprune.models import build
from tfp_bprune.prune import GradualPruning, KeepPruned, polynomial
from tfp_bprune.types import PruneError


def tiny(twin: Any) -> tuple[Any, Any]:
    """Digits and a small network of the twin."""
    data = load("digits")
    return data, build("mlp", twin, data.info, options={"hidden": (16,)})


@pytest.mark.parametrize(("twin", "criterion"), [("flipout", "snr"), ("deterministic", "magnitude")])
def test_gradual_pruning_ends_at_the_final_sparsity(twin: Any, criterion: Any) -> None:
    data, model = tiny(twin)
    schedule = polynomial(0.8, 0, data.steps)
    callback = GradualPruning(schedule, data.steps, every=5, criterion=criterion)
    fit(model, data, Settings(epochs=2), callbacks=[callback], progress=False)
    _, report = prune(model, sparsity=0.0, criterion=criterion)  # removes nothing, counts what is gone
    assert abs(report.sparsity - 0.8) < 1e-3


def test_a_sparsity_alone_is_reached_over_the_whole_training() -> None:
    data, model = tiny("flipout")
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(prune(self.model, sparsity=0.0)[1].sparsity)

    fit(model, data, Settings(epochs=8), callbacks=[GradualPruning(0.9), Watch()], progress=False)
    assert seen[0] == 0  # the first fifth prunes nothing
    assert 0 < seen[3] < seen[5]
    assert 0.9 - 1e-3 < seen[5] < 0.92
    assert seen[5] == seen[7]  # nor does the last quarter


def test_a_sparsity_out_of_range_is_refused() -> None:
    with pytest.raises(PruneError, match=r"sparsity must be in \[0, 1\), got 1.0"):
        GradualPruning(1.0)


def test_retraining_keeps_plain_weights_pruned() -> None:
    data, model = tiny("deterministic")
    fit(model, data, Settings(epochs=1), progress=False)
    pruned, _ = prune(model, sparsity=0.7, criterion="magnitude")
    before = pruned.get_layer("dense_1").kernel.numpy()
    fit(pruned, data, Settings(epochs=2), callbacks=[KeepPruned()], progress=False)
    after = pruned.get_layer("dense_1").kernel.numpy()
    np.testing.assert_array_equal(after[before == 0], 0)
    varies = (
        data.examples("train").x.reshape(data.train_size, -1).std(0) > 0
    )  # a border that is always blank trains nothing
    left = (before != 0) & varies[:, None]
    assert (after[left] != before[left]).mean() > 0.9  # the others did train
