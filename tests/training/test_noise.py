"""Noise of Keras's own layers: the same in a resumed run, another in every epoch, layer and worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.training.test_resume import Interrupt, assert_bit_identical
from tfp_bprune._keras import keras
from tfp_bprune.training.noise import NoiseByEpoch

L = keras.layers
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4, 6)).astype(np.float32), RNG.integers(0, 3, 60)


def data() -> Any:
    return bp.from_arrays((X[:50], Y[:50]), (X[50:], Y[50:]), batch_size=10, validation_fraction=0.2)


def network(body: Callable[[], tuple[Any, ...]], **how: Any) -> Any:
    keras.backend.clear_session()  # so that layers have the same names, by which noise of weights is drawn
    keras.utils.set_random_seed(1)  # of the initial weights
    x = h = keras.Input((4, 6))
    for layer in body():
        h = layer(h, **how)
    return bp.bayesianize(keras.Model(x, L.Dense(3)(L.Flatten()(h))), train_size=40)


def dropout() -> tuple[Any, ...]:
    return (L.Dropout(0.4),)


NETWORKS: dict[str, Callable[[], Any]] = {
    "dropout": lambda: network(dropout),
    "several": lambda: network(
        lambda: (L.GaussianNoise(0.3), L.SpatialDropout1D(0.2), L.GaussianDropout(0.2), L.AlphaDropout(0.1))
    ),
    "in cells": lambda: network(
        lambda: (L.LSTM(5, dropout=0.3, return_sequences=True), L.Bidirectional(L.GRU(4, dropout=0.2)))
    ),
    "of images": lambda: network(
        lambda: (L.Reshape((4, 6, 1)), L.RandomFlip(), L.RandomTranslation(0.3, 0.3), L.Flatten())
    ),
    "stays on": lambda: network(dropout, training=True),
    "nested": lambda: network(lambda: (keras.Sequential([keras.Input((4, 6)), L.Dense(5), *dropout()]), *dropout())),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_resumed_run_meets_the_same_noise(name: str, tmp_path: Path) -> None:
    def run(out: str, *callbacks: Any, resume: bool = False) -> None:
        settings = bp.Settings(3, 0.01)
        bp.fit(
            NETWORKS[name](), data(), settings=settings, from_logits=True, out=tmp_path / out, resume=resume, callbacks=callbacks,
            progress=False,
        )  # fmt: skip

    run("whole")
    with pytest.raises(InterruptedError):
        run("parts", Interrupt(2, 1))
    run("parts", resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")


def noise(epoch: int, rank: int = 0, seed: int = 0) -> np.ndarray:
    """What two layers make of ones, [2, 2, 1000]: two calls of each."""
    x = keras.Input((1000,))
    model = keras.Model(x, [L.Dropout(0.5)(x), L.Dropout(0.5)(x)])
    callback = NoiseByEpoch(seed, rank)
    callback.set_model(model)
    callback.on_epoch_begin(epoch)
    return np.array([[out[0] for out in model(np.ones((1, 1000)), training=True)] for _ in range(2)])


def test_noise_is_another_in_every_call_layer_epoch_worker_and_seed() -> None:
    np.testing.assert_array_equal(noise(3, 1, 2), noise(3, 1, 2))
    drawn = np.concatenate([noise(*given).reshape(4, -1) for given in ((0,), (1,), (0, 1), (0, 0, 1))])
    assert set(np.unique(drawn)) == {0.0, 2.0}
    # Of independent masks half of the places agree, within 5.6 deviations: a false alarm in 120 pairs takes less than 3e-6.
    agree = np.array([[np.mean(a == b) for b in drawn] for a in drawn])[np.triu_indices(len(drawn), 1)]
    assert np.abs(agree - 0.5).max() < 5.6 * 0.5 / np.sqrt(1000)


def test_layers_have_their_own_generators_back_afterwards() -> None:
    model = NETWORKS["several"]()
    layers = [layer for layer in model.layers if hasattr(layer, "_random_generator")]
    before = [layer._random_generator for layer in layers]
    assert len(before) == 4
    bp.fit(model, data(), settings=bp.Settings(1), from_logits=True, progress=False)
    assert all(layer._random_generator is generator for layer, generator in zip(layers, before, strict=True))
    assert model(X, training=True).shape == (60, 3)
