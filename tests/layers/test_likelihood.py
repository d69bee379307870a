"""The Gaussian output layer: mean and noise in target units, learned or fixed."""

from __future__ import annotations

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.layers import GaussianOutput
from tfp_bprune.types import BpruneError

X = np.array([[-1.0], [0.0], [2.0]], np.float32)


def test_fixed_noise_stands_beside_the_rescaled_mean() -> None:
    layer = GaussianOutput(loc=10.0, scale=4.0, noise=0.3)
    np.testing.assert_allclose(layer(X), [[6, 0.3], [10, 0.3], [18, 0.3]], rtol=1e-6)
    assert not layer.trainable_weights


def test_learned_noise_starts_at_half_the_targets_scale() -> None:
    layer = GaussianOutput(loc=10.0, scale=4.0)
    with tf.GradientTape() as tape:
        outputs = layer(X)
    np.testing.assert_allclose(outputs[:, 1], 2.0, rtol=1e-6)
    assert len(layer.trainable_weights) == 1
    assert tape.gradient(outputs, layer.noise_rho).numpy() > 0


def test_config_round_trip() -> None:
    for layer in (GaussianOutput(1.5, 2.0, 0.1), GaussianOutput(1.5, 2.0)):
        copy = GaussianOutput.from_config(layer.get_config())
        assert copy.get_config() == layer.get_config()
        np.testing.assert_array_equal(copy(X), layer(X))


@pytest.mark.parametrize("arguments", [{"scale": 0.0}, {"scale": -1.0}, {"noise": 0.0}, {"noise": float("nan")}])
def test_scales_that_are_not_positive_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(BpruneError, match=f"{next(iter(arguments))} must be positive, got"):
        GaussianOutput(**arguments)
