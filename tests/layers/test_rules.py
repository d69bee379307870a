"""Rules of layers without weights where an option decides: along which axis, with which shape of noise, of which factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs import compact
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.layers.rules import rule_of
from tfp_bprune.layers.rules.rule import Spread
from tfp_bprune.prediction import Predictor
from tfp_bprune.types import ExportError

L = keras.layers
X = np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype(np.float32)


def around(layer: Any) -> Any:
    """Two convolutions around a layer: of the first, one of four filters is constant, and the second does not read another."""
    model = keras.Sequential(
        [keras.Input(X.shape[1:]), L.Conv2D(4, 1, name="first"), layer, L.Conv2D(2, 2, name="second")]
    )
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(0.2, 1, w.shape) * rng.choice([-1, 1], w.shape) for w in model.get_weights()])
    for norm in (one for one in model.layers if isinstance(one, L.BatchNormalization)):
        norm.moving_variance.assign(rng.uniform(0.5, 2, norm.moving_variance.shape))
    first, second = model.get_layer("first").kernel, model.get_layer("second").kernel
    first.assign(first * np.array([1.0, 1, 0, 1]))
    per_channel = second.shape[2] // 4
    second.assign(second * np.repeat([1.0, 0, 1, 1], per_channel)[:, None])
    return model


FOLLOWED: dict[str, Any] = {
    "normalization": lambda: L.BatchNormalization(),
    "without scale": lambda: L.BatchNormalization(scale=False),
    "without center": lambda: L.BatchNormalization(center=False),
    "with neither": lambda: L.BatchNormalization(scale=False, center=False),
    "of the last axis by its number": lambda: L.BatchNormalization(axis=3),
    "depthwise": lambda: L.DepthwiseConv2D(2),
    "depthwise, two for each": lambda: L.DepthwiseConv2D((1, 2), depth_multiplier=2),
    "depthwise without bias": lambda: L.DepthwiseConv2D(2, use_bias=False),
    "dropout": lambda: L.Dropout(0.3),
    "dropout of whole channels": lambda: L.SpatialDropout2D(0.3),
    "dropout of positions": lambda: L.Dropout(0.3, noise_shape=(None, 4, 4, 1)),
    "dropout of channels": lambda: L.Dropout(0.3, noise_shape=(None, 1, 1, None)),
}
STAYS: dict[str, Any] = {
    "normalization of rows": lambda: L.BatchNormalization(axis=1),
    "normalization of two axes": lambda: L.BatchNormalization(axis=[2, 3]),
    "dropout of as many channels as there are": lambda: L.Dropout(0.3, noise_shape=(None, 1, 1, 4)),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_go_through_it_to_the_bit_of_rounding(name: str) -> None:
    model = around(FOLLOWED[name]())
    small = compact(model)
    # Without a bias nothing takes up what a constant filter adds: it stays.
    assert small.get_layer("first").filters == (3 if name == "depthwise without bias" else 2)
    np.testing.assert_allclose(small(X), model(X), rtol=1e-5, atol=1e-5)
    small(X, training=True)  # noise of a shape that fits what is left


@pytest.mark.parametrize("name", STAYS)
def test_all_channels_stay_where_it_was_made_for_so_many(name: str) -> None:
    model = around(STAYS[name]())
    assert compact(model) is model
    pruned, report = bp.prune(bp.bayesianize(model, train_size=5), sparsity=0.5)
    assert report.pruned == round(0.5 * report.prunable)
    np.testing.assert_allclose(compact(bp.strip(pruned))(X), bp.strip(pruned)(X), rtol=1e-5, atol=1e-5)
    pruned(X, training=True)


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"axis": 1}, {"axis": -2}])
def test_normalization_scales_variances_along_its_axis(options: dict[str, Any]) -> None:
    layer, rng = L.BatchNormalization(**options), np.random.default_rng(2)
    layer.build((None, 3, 4, 2))
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    mean = tf.constant(rng.normal(size=(2, 3, 4, 2)), tf.float32)
    found = rule_of(layer).moments(layer, [Spread(mean, tf.ones_like(mean))])
    assert found is not None
    np.testing.assert_allclose(found.mean, layer(mean), rtol=1e-6)
    # The layer is affine in each number by itself: its slope is what one more makes of it.
    np.testing.assert_allclose(found.variance, (layer(mean + 1) - layer(mean)) ** 2, rtol=1e-4)


def test_normalization_of_two_axes_carries_no_variances() -> None:
    layer = L.BatchNormalization(axis=[1, 2])
    layer.build((None, 3, 4, 2))
    value = tf.ones((2, 3, 4, 2))
    assert rule_of(layer).moments(layer, [Spread(value, value)]) is None


def dropped(noise_shape: Any) -> Any:
    """Monte-Carlo dropout between two layers, at 3 steps of 4 units."""
    inputs = keras.Input((3, 5))
    h = L.Dropout(0.4, noise_shape=noise_shape, name="drop")(
        DenseFlipout(4, rho_init=-30.0, train_size=5)(inputs), training=True
    )
    return keras.Model(inputs, L.Dense(2)(L.Flatten()(h)))


@pytest.mark.parametrize("noise_shape", [None, (None, None, None), (None, 3, 4), (None, 3, None)])
def test_dropout_with_a_draw_for_each_number_is_carried(noise_shape: Any) -> None:
    model = dropped(noise_shape)
    x = np.random.default_rng(3).normal(size=(2, 3, 5)).astype(np.float32)
    found = Predictor(model, "moments", task="regression").predict(x)
    hidden = bp.strip(model).layers[1](x).numpy().reshape(2, 12)
    kernel = model.layers[-1].kernel.numpy()
    # Of h / q with probability q the variance is h^2 (1 - q) / q, and all are drawn independently.
    expected = np.sqrt(np.square(hidden) @ np.square(kernel) * 0.4 / 0.6)
    np.testing.assert_allclose(found["weights_std"], expected, rtol=1e-4)


@pytest.mark.parametrize("noise_shape", [(None, 1, 4), (None, 3, 1), (1, 3, 4), (None, 1, None)])
def test_dropout_whose_numbers_share_a_draw_is_refused_by_moments(noise_shape: Any) -> None:
    with pytest.raises(ExportError, match="layer 'drop'"):
        Predictor(dropped(noise_shape), "moments", task="regression")
