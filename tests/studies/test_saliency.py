"""The scores that studies rank by, against closed forms, quadrature and what a network does when a weight goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.graphs import strip
from tfp_bprune.layers import NormalPrior, ScaleMixturePrior
from tfp_bprune.layers.distribution import log_density_at_zero
from tfp_bprune.pruning.scores import snr
from tfp_bprune.studies.saliency import elbo_change, kl_of_each, likelihood_slopes
from tfp_bprune.types import BpruneError


def test_log_density_at_zero_is_the_normal_density() -> None:
    loc, scale = np.array([0.0, 0.3, -2.0]), np.array([1.0, 0.01, 0.5])
    np.testing.assert_allclose(log_density_at_zero(loc, scale), stats.norm.logpdf(0.0, loc, scale), rtol=1e-12)


def test_for_one_sigma_the_density_at_zero_orders_as_snr_does() -> None:
    loc, scale = np.random.default_rng(0).normal(size=100), np.full(100, 0.1)
    np.testing.assert_array_equal(np.argsort(-log_density_at_zero(loc, scale)), np.argsort(snr(loc, scale)))


def test_kl_from_a_normal_prior_is_the_closed_form() -> None:
    loc, scale = np.array([[0.0, 0.5], [-1.0, 2.0]], np.float32), np.array([[0.1, 1.0], [0.02, 0.7]], np.float32)
    expected = np.log(2.0 / scale) + (scale**2 + loc**2) / 8 - 0.5
    np.testing.assert_allclose(kl_of_each(loc, scale, NormalPrior(2.0)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.0067), (0.05, 0.003), (-0.4, 0.02), (1.0, 0.3)])
def test_kl_from_the_mixture_is_the_integral(loc: float, scale: float) -> None:
    prior = ScaleMixturePrior()

    def integrand(w: float) -> float:
        log_p = np.logaddexp(
            np.log(prior.pi) + stats.norm.logpdf(w, 0, prior.scale1),
            np.log(1 - prior.pi) + stats.norm.logpdf(w, 0, prior.scale2),
        )
        return stats.norm.pdf(w, loc, scale) * (stats.norm.logpdf(w, loc, scale) - log_p)

    points = np.sort([loc, 0.0]) if abs(loc) < 8 * scale else [loc]
    expected, _ = integrate.quad(integrand, loc - 9 * scale, loc + 9 * scale, points=points, limit=500)
    found = kl_of_each(np.array([loc], np.float32), np.array([scale], np.float32), prior)[0]
    assert found == pytest.approx(expected, rel=0.01, abs=0.01)


def test_the_change_of_the_elbo_is_exact_where_the_likelihood_is_quadratic() -> None:
    # L(w) = a w + b w^2 / 2 has the mean a mu + b (mu^2 + sigma^2) / 2 under q, and is 0 without the weight.
    rng = np.random.default_rng(1)
    loc, scale, a, b, kl = rng.normal(size=(5, 20))
    scale, b = np.abs(scale), np.abs(b)
    gradient = a + b * loc
    before, after = a * loc + 0.5 * b * (loc**2 + scale**2) + kl, 0.0
    np.testing.assert_allclose(elbo_change(loc, scale, gradient, b, kl), after - before, atol=1e-12)


def test_slopes_are_those_of_each_example_and_each_label(mlp: Callable[..., Any], digits: Splits) -> None:
    plain = strip(mlp("deterministic", hidden=(7, 5)))
    x, y = digits.examples("valid").x[:5], digits.examples("valid").y[:5]
    found = likelihood_slopes(plain, x, y)
    kernels = [layer.kernel for layer in plain.layers if isinstance(layer, keras.layers.Dense)]
    gradient, fisher = [np.zeros(k.shape) for k in kernels], [np.zeros(k.shape) for k in kernels]
    for example, label in zip(x, y, strict=True):
        for c in range(10):
            with tf.GradientTape() as tape:
                logits = plain(tf.constant(example[None], tf.float32))
                nll = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=[c], logits=logits)
            slopes = [slope.numpy() for slope in tape.gradient(nll, kernels)]
            for i, slope in enumerate(slopes):
                gradient[i] += slope * (c == label)
                fisher[i] += np.exp(-nll.numpy()[0]) * np.square(slope)
    assert list(found) == ["dense_1/kernel", "dense_2/kernel", "logits/kernel"]
    for (mine, mine_squared), theirs, theirs_squared in zip(found.values(), gradient, fisher, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(mine_squared, theirs_squared, rtol=1e-3, atol=1e-3)


def test_slopes_under_draws_are_means_over_q(mlp: Callable[..., Any], digits: Splits) -> None:
    # d NLL / d kernel of the last layer is its inputs times (softmax - label): both its moments by draws of our own.
    plain, n = strip(mlp("deterministic", hidden=(4,))), 600
    scales = {"logits/kernel": np.full(plain.layers[-1].kernel.shape, 0.5, np.float32)}
    x, y = np.repeat(digits.examples("valid").x[:1], n, 0), np.repeat(digits.examples("valid").y[:1], n)
    found = likelihood_slopes(plain, x, y, scales, batch=1)["logits/kernel"][0] / n
    before = keras.Model(plain.inputs, plain.layers[-1].input)(x[:1].astype(np.float32)).numpy()[0]
    drawn = plain.layers[-1].kernel.numpy() + 0.5 * np.random.default_rng(99).standard_normal((100_000, 4, 10))
    logits = np.einsum("i,nij->nj", before, drawn) + plain.layers[-1].bias.numpy()
    seen = np.exp(logits - logits.max(1, keepdims=True))
    seen = seen / seen.sum(1, keepdims=True) - np.eye(10)[y[0]]
    error = np.abs(before)[:, None] * seen.std(0) / np.sqrt(n)
    assert (
        np.abs(found - before[:, None] * seen.mean(0)) <= 4.5 * error + 1e-5
    ).all()  # 10 sums: false alarm below 1e-4


def test_slopes_of_a_convolution_are_refused() -> None:
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(inputs)))
    with pytest.raises(BpruneError, match="not a chain of dense layers"):
        likelihood_slopes(keras.Model(inputs, outputs), np.zeros((1, 8, 8, 1)), np.zeros(1, np.int64))
