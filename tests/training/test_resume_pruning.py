"""Pruning while training, interrupted and resumed: the same bits and the same masks as without the interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_resume import Interrupt, assert_bit_identical, tensors
from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import Run
from tfp_bprune.graphs import strip
from tfp_bprune.pruning import GradualPruning, polynomial, prune
from tfp_bprune.storage import load_model
from tfp_bprune.training import Settings, fit

Build = Callable[..., Any]
EPOCHS, FINAL = 6, 0.8
CASES = [
    ("flipout", "snr", "weight"),
    ("flipout", "snr", "unit"),
    ("deterministic", "magnitude", "weight"),
    ("deterministic", "magnitude", "unit"),
]


class Zeros(keras.callbacks.Callback):
    """Which kernel entries are 0 in the checkpoint of each epoch, as a reader of the run finds them."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run, self.by_epoch = run, {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if Run(self.run).manifest.get("epoch"):  # not before the first
            self.read()

    def on_train_end(self, logs: Any = None) -> None:
        self.read()

    def read(self) -> None:
        epoch = Run(self.run).manifest["epoch"] - 1
        kernels = [w for w in strip(load_model(self.run).model).get_weights() if w.ndim == 2]
        self.by_epoch[epoch] = [kernel == 0 for kernel in kernels]


@pytest.fixture
def trained(mlp: Build, digits: Splits, tmp_path: Path) -> Callable[..., dict[int, list[np.ndarray]]]:
    """Trains a small network under gradual pruning and gives the zeros in each epoch's checkpoint."""

    def train(folder: str, case: Any, *callbacks: Any, resume: bool = False) -> dict[int, list[np.ndarray]]:
        layers, criterion, granularity = case
        # The last pruning is before the last epochs, in which momentum alone would bring weights back.
        schedule = polynomial(FINAL, begin=digits.steps, end=(EPOCHS - 2) * digits.steps)
        pruning = GradualPruning(
            schedule, steps_per_epoch=digits.steps, every=3, criterion=criterion, granularity=granularity
        )
        zeros = Zeros(tmp_path / folder)
        fit(
            mlp(layers, hidden=(24,), seed=1),
            digits,
            settings=Settings(epochs=EPOCHS, learning_rate=0.01),
            out=tmp_path / folder,
            resume=resume,
            callbacks=[pruning, *callbacks, zeros],
            progress=False,
        )
        return zeros.by_epoch

    return train


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_a_resumed_run_has_the_masks_and_weights_of_an_unbroken_one(trained: Any, tmp_path: Path, case: Any) -> None:
    unbroken = trained("whole", case)
    # Once while more is removed from step to step, once after the last removal, each in the middle of an epoch.
    for epoch in (2, EPOCHS - 1):
        with pytest.raises(InterruptedError):
            trained("parts", case, Interrupt(epoch, 4), resume=True)
        assert Run.open(tmp_path / "parts").manifest["epoch"] == epoch
    after = trained("parts", case, resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")
    for ours, theirs in zip(after[EPOCHS - 1], unbroken[EPOCHS - 1], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    stored = sorted((name, array) for name, array in tensors(tmp_path / "parts").items() if "kernel_mask" in name)
    assert len(stored) == (2 if case[0] == "flipout" else 0)
    for gone, (_, mask) in zip(after[EPOCHS - 1], stored, strict=False):
        np.testing.assert_array_equal(gone, ~mask.astype(bool))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_what_is_pruned_stays_pruned_in_every_checkpoint(trained: Any, tmp_path: Path, case: Any) -> None:
    zeros = trained("run", case)
    assert sorted(zeros) == list(range(EPOCHS))
    counts = [sum(int(np.count_nonzero(kernel)) for kernel in zeros[epoch]) for epoch in zeros]
    assert counts[0] == 0
    assert counts[1] > 0
    assert counts[2] > counts[1]
    assert counts[-1] == counts[-2]
    for epoch in range(1, EPOCHS):
        for before, now in zip(zeros[epoch - 1], zeros[epoch], strict=True):
            assert now[before].all()
    _, report = prune(load_model(tmp_path / "run").model, sparsity=0.0, criterion=case[1])
    assert report.sparsity >= FINAL - 1e-3
