"""Bugs that were put in on purpose and that no other test saw; `tests/mutate.py` puts them in again."""

from __future__ import annotations

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.evaluation.metrics import bin_of, expected_calibration_error
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.pruning import GradualPruning
from tfp_bprune.pruning.groups import Side, Units, unit_scores


def kl_of_normals(loc: np.ndarray, scale: np.ndarray, prior: float) -> float:
    """KL of N(loc, scale^2) from N(0, prior^2), summed, in nats."""
    return float(np.sum(np.log(prior / scale) + (scale**2 + loc**2) / (2 * prior**2) - 0.5))


def test_the_kl_of_kernel_and_bias_count_once_each() -> None:
    prior, n = 0.1, 50
    options = {"bayesian_bias": True, "train_size": n, "rho_init": -1.0, "name": "layer"}
    layer = DenseFlipout(3, prior={"kind": "normal", "scale": prior}, **options)
    layer(np.ones((2, 4), np.float32))
    expected = sum(
        kl_of_normals(q.loc.numpy().astype(np.float64), q.scale.numpy().astype(np.float64), prior)
        for q in layer.posteriors.values()
    )
    bias = layer.posteriors["bias"]
    assert kl_of_normals(bias.loc.numpy(), bias.scale.numpy(), prior) > 0.01 * expected  # else nothing is shown
    np.testing.assert_allclose(float(layer.losses[0]), expected / n, rtol=1e-5)


def test_the_last_bins_of_confidence_are_two() -> None:
    confidence = np.array([0.90, 0.92, 0.94, 0.95, 0.99, 1.0])
    probabilities = np.stack([confidence, 1 - confidence], 1)
    np.testing.assert_array_equal(bin_of(probabilities), [13, 13, 14, 14, 14, 14])
    # In the last bin but one all are wrong, in the last all right: gaps of other signs, which one bin would set off.
    labels = np.array([1, 1, 0, 0, 0, 0])
    expected = (0.90 + 0.92 + 0.06 + 0.05 + 0.01) / 6
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_flipout_turns_the_signs_of_inputs_too() -> None:
    # Wen et al. 2018, eq. 4: (x * s) D * r. Without s, equal examples get the same deviation but for its sign.
    layer = DenseFlipout(5, train_size=10, rho_init=-1.0, use_bias=False)
    x = np.tile(np.random.default_rng(0).normal(size=8).astype(np.float32), (64, 1))
    outputs = np.asarray(layer(x))
    deviations = np.abs(outputs - x @ layer.posteriors["kernel"].loc.numpy())
    # Two of 2^8 patterns of s give one magnitude; 64 alike have a chance of 2^-441.
    assert (deviations.max(0) > 1.5 * deviations.min(0) + 1e-4).all()


def test_the_mean_score_of_a_unit_is_over_the_weights_that_are_left() -> None:
    locs = {"k": np.array([[1.0, 6.0], [2.0, 7.0], [9.0, 8.0]])}  # [in, out]
    masks = {"k": np.array([[True, True], [True, True], [False, True]])}
    units = Units([Side("k", -1, np.array([0, 1]))], [], [], 2, np.ones(2, bool))
    np.testing.assert_allclose(unit_scores(units, locs, None, masks, "mean"), [1.5, 7.0])


def test_gradual_pruning_counts_the_step_that_was_taken() -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.0

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    callback = GradualPruning(schedule, steps_per_epoch=4, every=2, criterion="magnitude")
    callback.set_params({"epochs": 2, "steps": 4})
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in range(2):
        callback.on_epoch_begin(epoch)
        for batch in range(4):
            callback.on_train_batch_end(batch)
        callback.on_epoch_end(epoch)
    assert asked == [2, 4, 6, 8]
    callback.on_train_end()
    assert asked[-1] == 8
