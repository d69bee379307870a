"""Flipout and reparameterization: outputs of the exact mean and variance, and noise that differs where it must."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.bounds import FALSE_ALARM, assert_mean, assert_normal_variance
from tfp_bprune._keras import tf
from tfp_bprune.layers import LAYERS, noise

DRAWS = 4000
ESTIMATORS = ("flipout", "reparameterization")


@pytest.fixture
def rank_zero() -> Iterator[None]:
    """Puts the worker's rank back."""
    yield
    noise.set_rank(0)


def layer_of(kind: str, estimator: str, x: np.ndarray, **arguments: Any) -> Any:
    """A layer without KL in its loss, with scales from 0.1 to 1."""
    size = {"units": 3} if kind == "Dense" else {"filters": 3, "kernel_size": 2}
    layer = LAYERS[kind, estimator](**size, bayesian_bias=True, name="layer", **arguments)
    layer.build(x.shape)
    random = np.random.default_rng(2)
    for q in layer.posteriors.values():
        q.loc_variable.assign(random.normal(size=q.shape))
        q.rho_variable.assign(random.uniform(-2, 0.5, q.shape))
    return layer


def draw(layer: Any, x: np.ndarray, draws: int = DRAWS) -> np.ndarray:
    """Outputs [draws, batch, ...] of so many calls."""

    @tf.function
    def loop() -> Any:
        return tf.map_fn(
            lambda _: layer(x, training=False), tf.range(draws), fn_output_signature=tf.float32, parallel_iterations=1
        )

    return loop().numpy()


def linear(kind: str, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The linear map of the layer in NumPy and double precision; convolutions by sliding windows."""
    if kind == "Dense":
        return x.astype(np.float64) @ kernel
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), kernel.shape[:2], axis=(1, 2))
    return np.einsum("bhwcij,ijcf->bhwf", windows, kernel)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, "local"])
@pytest.mark.parametrize(("kind", "shape"), [("Dense", (2, 4)), ("Conv2D", (2, 3, 3, 2))])
def test_outputs_have_the_exact_mean_and_variance(kind: str, estimator: str, shape: tuple[int, ...]) -> None:
    # For one example x, x W is normal with mean x mu and variance x^2 sigma^2, under either estimator.
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    layer = layer_of(kind, estimator, x)
    kernel, bias = layer.kernel_posterior, layer.bias_posterior
    mean = linear(kind, x, kernel.loc.numpy()) + bias.loc.numpy()
    variance = linear(kind, np.square(x), np.square(kernel.scale.numpy())) + np.square(bias.scale.numpy())
    outputs = draw(layer, x)
    assert_mean(outputs, mean, np.sqrt(variance))
    assert_normal_variance(outputs, mean, variance)


@pytest.mark.parametrize("kind", ["Dense", "Conv2D"])
def test_equal_examples_are_uncorrelated_under_flipout_only(kind: str) -> None:
    one = np.random.default_rng(4).normal(size=(1, 4) if kind == "Dense" else (1, 3, 3, 2))
    x = np.repeat(one, 2, axis=0).astype(np.float32)
    products = {}
    for estimator in ESTIMATORS:
        layer = layer_of(kind, estimator, x)
        layer.bias_posterior.rho_variable.assign(tf.fill([3], -100.0))  # the bias is drawn once a batch by both
        mean = linear(kind, x, layer.kernel_posterior.loc.numpy()) + layer.bias_posterior.loc.numpy()
        variance = linear(kind, np.square(x), np.square(layer.kernel_posterior.scale.numpy()))
        standardized = (draw(layer, x) - mean) / np.sqrt(variance)
        products[estimator] = standardized[:, 0] * standardized[:, 1]
    # The product of two standard normals has at most the variance E[z^4] = 3 (Cauchy-Schwarz), however they depend.
    assert_mean(products["flipout"], 0, math.sqrt(3))
    assert_mean(products["reparameterization"], 1, math.sqrt(3))


def test_signs_are_plus_and_minus_one_equally_often() -> None:
    signs = noise.signs([200, 500], noise.seed_pair(1, 0, "layer"), tf.float32).numpy()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert_mean(signs.ravel(), 0, 1)
    # Neighbouring examples and neighbouring channels have unrelated signs.
    assert_mean((signs[1:] * signs[:-1]).ravel(), 0, 1)
    assert_mean((signs[:, 1:] * signs[:, :-1]).ravel(), 0, 1)


@pytest.mark.usefixtures("rank_zero")
def test_noise_differs_between_ranks_layers_streams_seeds_and_steps() -> None:
    keys = list(itertools.product((0, 1), (1, 2), (0, 5), ("a", "b"), ("kernel", "bias")))
    draws = []
    for rank, step, *key in keys:
        noise.set_rank(rank)
        draws.append(tf.random.stateless_normal([1000], noise.seed_pair(step, *key)).numpy())
    correlation = np.corrcoef(draws)[np.triu_indices(len(keys), 1)]
    assert np.abs(correlation).max() < stats.norm.isf(FALSE_ALARM / (2 * len(correlation))) / math.sqrt(1000)


@pytest.mark.usefixtures("rank_zero")
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_workers_draw_different_weights_from_equal_layers(estimator: str) -> None:
    x = np.ones((2, 4), np.float32)
    outputs = []
    for rank in (0, 1, 0):
        noise.set_rank(rank)
        outputs.append(layer_of("Dense", estimator, x)(x).numpy())
    assert not np.isclose(outputs[0], outputs[1]).any()
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_keys_are_not_run_together() -> None:
    assert noise.derive("ab", "c") != noise.derive("a", "bc")
    assert noise.derive(1, 12) != noise.derive(11, 2)
    assert 0 <= noise.derive("x") < 2**63
