"""Recalibration of batch normalization: against the statistics computed by hand, for the mean and for draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.layers import DenseFlipout, StatelessDropout

RNG = np.random.default_rng(0)
N, FEATURES, UNITS = 1000, 6, 5
X = RNG.normal(1.0, 2.0, (N, FEATURES)).astype(np.float32)


def network(scale: float = 0.5, dropout: bool = False) -> Any:
    inputs = keras.Input((FEATURES,))
    x = StatelessDropout(0.5, name="drop")(inputs) if dropout else inputs
    x = DenseFlipout(UNITS, rho_init=float(np.log(np.expm1(scale))), name="first")(x)
    x = keras.layers.BatchNormalization(name="norm_1")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Dense(UNITS, name="second")(x)
    return keras.Model(inputs, keras.layers.BatchNormalization(name="norm_2")(x))


def moments(model: Any, name: str = "norm_1") -> tuple[np.ndarray, np.ndarray]:
    layer = model.get_layer(name)
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


@pytest.mark.parametrize("size", [N, 100, 300])
def test_the_statistics_of_the_mean_are_those_of_all_batches_together(size: int) -> None:
    model = network(dropout=True)
    before = [w.numpy() for w in model.weights]
    batches = [(X[i : i + size], np.zeros(len(X[i : i + size]))) for i in range(0, N, size)]
    mean, variance = moments(bp.recalibrate(model, batches))
    z = X @ bp.strip(model).get_layer("first").kernel.numpy()
    np.testing.assert_allclose(mean, z.mean(0), rtol=1e-4, atol=1e-4)
    # Keras divides a batch's squares by its size less one.
    np.testing.assert_allclose(variance, z.var(0), rtol=2 / size + 1e-4)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))


def test_after_it_every_normalization_gives_mean_0_and_variance_1() -> None:
    model = bp.strip(bp.recalibrate(network(), [X]))
    parts = keras.Model(model.input, [model.get_layer("norm_1").output, model.output])
    for name, out in zip(("norm_1", "norm_2"), parts(X), strict=True):
        _, variance = moments(model, name)
        np.testing.assert_allclose(out.numpy().mean(0), 0.0, atol=1e-3)
        # 1 but for the epsilon that Keras adds to the variance.
        np.testing.assert_allclose(out.numpy().var(0), variance / (variance + 1e-3), rtol=2 / N)


def test_for_draws_the_variance_of_the_weights_is_in_it() -> None:
    model, draws = network(scale=0.5), 4000
    calibrated = bp.recalibrate(model, [X[:50]] * draws, "sampled", batches=draws)
    layer = model.get_layer("first")
    loc, scale = layer.kernel_posterior.loc.numpy(), layer.kernel_posterior.scale.numpy()
    z = X[:50] @ loc
    # Within a batch each example has a kernel of its own, half of whose deviations (the signs) are independent.
    second = (z**2).mean(0) + (X[:50, :, None] ** 2 * scale**2).sum(1).mean(0)
    expected = second - z.mean(0) ** 2
    _, variance = moments(calibrated)
    _, of_mean = moments(bp.recalibrate(model, [X[:50]]))
    # The relative deviation of a mean of `draws` such variances is below 3 / sqrt(draws); 5 of those is beyond 1e-6.
    np.testing.assert_allclose(variance, expected, rtol=15 / np.sqrt(draws))
    assert (of_mean < 0.9 * expected).all()


def test_a_network_without_normalization_comes_back_equal() -> None:
    model = keras.Sequential([keras.Input((FEATURES,)), DenseFlipout(3)])
    copy = bp.recalibrate(model, X)
    assert copy is not model
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, copy.weights, strict=True))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(bp.BpruneError, match="recalibrate got no data"):
        bp.recalibrate(network(), [])
    with pytest.raises(bp.BpruneError, match="layer 'norm_1' gets activations that are NaN or infinite"):
        bp.recalibrate(network(), np.full((10, FEATURES), np.nan, np.float32))
    with pytest.raises(bp.BpruneError, match="predictive must be 'mean' or 'sampled', got 'moments'"):
        bp.recalibrate(network(), X, "moments")  # type: ignore[arg-type]
    with pytest.raises(bp.BpruneError, match="batches must be at least 1, got 0"):
        bp.recalibrate(network(), X, batches=0)
