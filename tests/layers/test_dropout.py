"""Stateless dropout: the right share, the right scale, only while training, and noise that follows from its key."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from tests.bounds import assert_mean
from tfp_bprune._keras import keras
from tfp_bprune.layers import StatelessDropout


def dropped(x: np.ndarray, calls: int = 1, **arguments: Any) -> np.ndarray:
    """The output of the last of so many training calls of a new layer."""
    layer = StatelessDropout(**{"rate": 0.5, "name": "dropout"} | arguments)
    return [layer(x, training=True).numpy() for _ in range(calls)][-1]


@pytest.mark.parametrize("rate", [0.1, 0.75])
def test_a_share_of_rate_is_zero_and_the_rest_scaled_up(rate: float) -> None:
    outputs = dropped(np.ones((300, 400), np.float32), rate=rate)
    gone = outputs == 0
    np.testing.assert_allclose(outputs[~gone], 1 / (1 - rate), rtol=1e-6)
    std = math.sqrt(rate * (1 - rate))
    assert_mean(gone.ravel().astype(float), rate, std)
    # Examples are dropped independently of each other: the agreement of neighbours is by chance.
    assert_mean(((gone[1:] - rate) * (gone[:-1] - rate)).ravel(), 0, std**2)


def test_nothing_happens_outside_training() -> None:
    layer, x = StatelessDropout(0.5), np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    np.testing.assert_array_equal(layer(x, training=False), x)
    np.testing.assert_array_equal(layer(x), x)
    assert int(layer.noise_step) == 0
    assert not layer.trainable_weights


def test_noise_follows_from_seed_name_and_call() -> None:
    x = np.ones((8, 16), np.float32)
    np.testing.assert_array_equal(dropped(x, calls=2), dropped(x, calls=2))
    for changed in ({"calls": 1}, {"seed": 1}, {"name": "other"}):
        assert not np.array_equal(dropped(x, **{"calls": 2} | changed), dropped(x, calls=2))


def test_rate_zero_keeps_all() -> None:
    x = np.ones((8, 16), np.float32)
    np.testing.assert_array_equal(dropped(x, rate=0.0), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_rates_out_of_range_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\), got"):
        StatelessDropout(rate)


def test_config_round_trip_within_a_model() -> None:
    model = keras.Sequential([keras.Input((3,)), StatelessDropout(0.25, seed=2, name="dropout")])
    copy = keras.models.model_from_json(json.dumps(json.loads(model.to_json()))).layers[-1]
    assert copy.get_config() == model.layers[-1].get_config()
    assert (copy.rate, copy.seed, copy.name) == (0.25, 2, "dropout")
