"""Bugs that were put in on purpose and that no other test saw; `tests/mutate.py` puts them in again."""

from __future__ import annotations

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.evaluation.metrics import bin_of, expected_calibration_error
from tfp_bprune.layers import LAYERS, DenseFlipout, NormalPrior, ScaleMixturePrior
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.layers.prior import CentredPrior, Normals
from tfp_bprune.pruning import GradualPruning
from tfp_bprune.pruning.groups import Side, Units, unit_scores
from tfp_bprune.pruning.shrink import Shrink


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


def test_flipout_turns_the_sign_of_each_output_by_itself() -> None:
    # Of one input, s turns all outputs of an example together; without r two outputs would always agree or always not.
    layer = DenseFlipout(2, train_size=10, rho_init=-1.0, use_bias=False)
    outputs = np.asarray(layer(np.ones((64, 1), np.float32)))
    turned = np.sign(outputs - layer.posteriors["kernel"].loc.numpy())
    assert set(np.unique(turned[:, 0] * turned[:, 1])) == {-1.0, 1.0}  # of 64 pairs all alike: a chance of 2^-63


def test_the_signs_of_two_kernels_of_a_layer_have_streams_of_their_own() -> None:
    layer = LAYERS["SeparableConv2D", "flipout"](3, 2)
    kernels = layer.kind.kernels
    seeds = [layer._stream(1, name, which).numpy().tolist() for name in kernels for which in ("sign_in", "sign_out")]
    assert len({tuple(seed) for seed in seeds}) == 2 * len(kernels) == 4


def test_calls_of_a_shared_layer_with_noise_on_outputs_have_the_weights_in_common() -> None:
    # w is one draw for x and 2 x: then f(2 x) = 2 f(x); noise on the outputs of each call says so of |x| alone.
    layer = LAYERS["Dense", "local"](3, use_bias=False, rho_init=0.0)
    a, b = keras.Input((2,)), keras.Input((2,))
    model = keras.Model([a, b], [layer(a), layer(b)])
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    one, other = model([x, -2 * x])
    np.testing.assert_allclose(other, -2 * one, rtol=1e-4, atol=1e-5)


def test_the_noise_of_narrow_weights_survives_half_precision() -> None:
    # sigma^2 = 1e-8 is 0 in float16, whose least number is 6e-8; sigma x of 100 inputs is 1e-3.
    layer = LAYERS["Dense", "local"](200, use_bias=False, dtype=keras.mixed_precision.Policy("mixed_float16"))
    layer.build((None, 100))
    layer.posteriors["kernel"].assign(np.zeros((100, 200)), np.full((100, 200), 1e-4))
    outputs = layer(np.ones((50, 100), np.float32)).numpy().astype(np.float64)
    assert outputs.std() == pytest.approx(1e-3, rel=0.06)  # 10,000 normals: six deviations of their deviation are .042


def test_means_start_by_the_weights_that_an_output_reads() -> None:
    # Half of He's: .5 / n for n weights, here 20 of the 400 that Keras would count by the shape.
    made = MaskedNormal.create(keras.layers.Layer().add_weight, "kernel", (20, 20, 60), -5.0, 1, fan_in=20)
    assert float(np.var(made.loc_variable)) == pytest.approx(
        0.5 / 20, rel=0.05
    )  # 24,000 numbers: five deviations are .045


def test_a_prior_around_weights_is_moved_as_they_are() -> None:
    random, at = np.random.default_rng(0), np.array([[0.3, -0.7], [2.0, 0.0]], np.float32)
    loc, sample, variables = random.normal(size=(2, 2, 2)).astype(np.float32), at + 0.1, {"prior_loc": at}
    q = Normals(
        loc[0], np.full((2, 2), 0.2, np.float32), np.full((2, 2), np.log(0.2), np.float32), np.ones((2, 2), bool)
    )
    for prior in (ScaleMixturePrior(0.3, 0.8, 0.2), NormalPrior(0.5, 0.1)):
        centred, moved = CentredPrior(prior), q._replace(loc=q.loc - at)
        np.testing.assert_allclose(centred.kl(q, sample, variables), prior.kl(moved, sample - at, {}), rtol=1e-5)
        np.testing.assert_allclose(
            centred.log_density(sample, variables), prior.log_density(sample - at, {}), rtol=1e-5
        )


@pytest.mark.parametrize("after", [0, 1])
def test_units_are_scored_after_the_epochs_that_are_said(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, scored = Shrink(criterion="snr", threshold=1.0, after=after), []
    callback.set_params({"epochs": 3})
    monkeypatch.setattr(callback, "_shrink", lambda least: False)
    for epoch in range(3):
        monkeypatch.setattr(callback, "_remove", lambda epoch=epoch: scored.append(epoch))
        callback.on_epoch_end(epoch)
    assert scored == list(range(after, 3))
