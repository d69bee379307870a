"""Bayesian linear regression: training finds the posterior that is known exactly.

With known noise s and prior N(m, t^2) the posterior is normal with precision P = X'X / s^2 + 1 / t^2 and mean
P^-1 (X'y / s^2 + m / t^2). Of all products of normals the one that minimizes KL(q || posterior) has that mean and the
variances 1 / P_ii (Bishop 2006, eq. 10.12-10.15).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import LAYERS, GaussianOutput, NormalPrior
from tfp_bprune.training import negative_log_likelihood

EXAMPLES, NOISE = 60, 0.5
PRIOR = NormalPrior(scale=0.2, loc=0.2)  # strong enough that leaving it out, or counting it twice, shows
STEPS, RATE = 20_000, 0.003
# One weight draw a step gives gradients of mu / sigma and log sigma whose standard deviation is about their curvature.
# The cosine averages them over the last (12 / (pi^2 RATE))^(1/3) STEPS^(2/3) = 5500 steps or so, which leaves 0.013.
TOLERANCE = 0.06


def data() -> tuple[np.ndarray, np.ndarray]:
    """Two correlated features and a constant one [60, 3]; targets [60, 1]."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, EXAMPLES))
    x = np.stack([first, 0.9 * first + 0.4 * second, np.ones(EXAMPLES)], axis=1) / 2
    y = x @ [1.0, -0.5, 0.7] + NOISE * random.normal(size=EXAMPLES)
    return x.astype(np.float32), y.astype(np.float32)[:, None]


def exact_posterior(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision, in double precision."""
    x, y = x.astype(np.float64), y.astype(np.float64)[:, 0]
    precision = x.T @ x / NOISE**2 + np.eye(x.shape[1]) / 0.2**2
    return np.linalg.solve(precision, x.T @ y / NOISE**2 + 0.2 / 0.2**2), precision


def trained(estimator: str, x: np.ndarray, y: np.ndarray) -> Any:
    """The Bayesian layer after training on full batches."""
    layer = LAYERS["Dense", estimator](1, prior=PRIOR, use_bias=False, rho_init=-1.0, train_size=EXAMPLES, name="w")
    model = keras.Sequential([keras.Input((3,)), layer, GaussianOutput(noise=NOISE)])
    decay = keras.optimizers.schedules.CosineDecay(RATE, STEPS)  # to 0, so that the gradients' noise averages out
    model.compile(
        keras.optimizers.legacy.Adam(decay, beta_2=0.9999),
        negative_log_likelihood("regression"),
        steps_per_execution=500,
    )
    batches = tf.data.Dataset.from_tensors((x, y)).repeat()
    model.fit(batches, steps_per_epoch=STEPS, verbose=0)
    return layer


@pytest.mark.parametrize("estimator", ["flipout", "reparameterization", "local"])
def test_training_finds_the_best_diagonal_normal(estimator: str) -> None:
    x, y = data()
    mean, precision = exact_posterior(x, y)
    q = trained(estimator, x, y).kernel_posterior
    loc, scale = q.loc.numpy()[:, 0], q.scale.numpy()[:, 0]
    best = 1 / np.sqrt(np.diag(precision))
    marginal = np.sqrt(np.diag(np.linalg.inv(precision)))
    assert (marginal / best).max() > 1.2  # else the test could not tell the best diagonal normal from the marginals
    np.testing.assert_allclose((loc - mean) / best, 0, atol=TOLERANCE)
    np.testing.assert_allclose(scale / best, 1, atol=TOLERANCE)
