"""Negative log likelihoods against scipy, in nats per example."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from tfp_bprune.data.targets import Target
from tfp_bprune.graphs.heads import Head
from tfp_bprune.training.loss import gaussian_nll, metrics_of, negative_log_likelihood


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_gaussian_nll(shape: tuple[int, ...], dtype: type) -> None:
    random = np.random.default_rng(0)
    y = (10 * random.normal(size=shape)).astype(dtype)
    mean, std = random.normal(size=6), random.uniform(0.5, 3, 6)
    nll = gaussian_nll(y, np.stack([mean, std], axis=1).astype(np.float32))
    assert nll.shape == (6,)  # not [6, 6]: targets [6, 1] must not broadcast against means [6]
    np.testing.assert_allclose(nll, -stats.norm.logpdf(y.ravel(), mean, std), rtol=1e-5)


def test_classification_is_cross_entropy_of_logits() -> None:
    logits = 20 * np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
    labels = np.arange(7) % 4
    expected = -special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(7), labels].mean()
    np.testing.assert_allclose(negative_log_likelihood("classification")(labels, logits), expected, rtol=1e-5)


def test_metrics_are_named_and_leave_the_divergence_out() -> None:
    labels, logits = np.array([0, 1]), np.array([[2.0, 0.0], [2.0, 0.0]], np.float32)
    nll, accuracy = metrics_of(Head("classification", logits=True), Target("classification", 2))
    assert (nll.name, accuracy.name) == ("nll", "accuracy")
    np.testing.assert_allclose(
        nll(labels, logits), negative_log_likelihood("classification")(labels, logits), rtol=1e-6
    )
    assert float(accuracy(labels, logits)) == 0.5
    y, prediction = np.array([[1.0], [4.0]], np.float32), np.array([[2.0, 1.0], [1.0, 3.0]], np.float32)
    nll, mse = metrics_of(Head("gaussian"), Target("regression", 1))
    assert (nll.name, mse.name) == ("nll", "mse")
    np.testing.assert_allclose(nll(y, prediction), -stats.norm.logpdf([1, 4], [2, 1], [1, 3]).mean(), rtol=1e-6)
    assert float(mse(y, prediction)) == 5
