"""The fused training step: its gradients are those of the evidence lower bound, on average, whatever is sampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.bounds import FALSE_ALARM, assert_mean
from tfp_bprune._keras import tf
from tfp_bprune.layers import LAYERS, NormalPrior, ScaleMixturePrior, noise
from tfp_bprune.layers.fused import _PARTS, _SMALLEST_BLOCK, FusedWeights, _parts_of
from tfp_bprune.layers.posterior import MaskedNormal, rho_of

ROWS, COLUMNS = 16, 4096  # 8 blocks of 2 rows
PI, NARROW = 0.25, math.exp(-6)


def posterior(loc: float, scale: float, shape: tuple[int, int] = (ROWS, COLUMNS)) -> MaskedNormal:
    """A weight matrix whose entries all have one distribution."""
    variables = (np.full(shape, loc, np.float32), np.full(shape, rho_of(scale), np.float32), np.ones(shape, bool))
    return MaskedNormal(*map(tf.Variable, variables))


def kl_gradients(q: MaskedNormal, prior: Any, steps: int, moment: Any = "variance") -> tuple[np.ndarray, np.ndarray]:
    """KLs [steps] and their gradients [steps, 2, rows], of mean and rho, averaged over columns."""
    fused = FusedWeights(q, prior)

    def one(step: Any) -> Any:
        with tf.GradientTape() as tape:
            kl = fused.terms(moment, lambda stream: noise.seed_pair(step, 7, stream), training=True).kl
        gradients = tape.gradient(kl, [q.loc_variable, q.rho_variable])
        return kl, tf.stack([tf.reduce_mean(g, axis=1) for g in gradients])

    loop = tf.function(lambda: tf.map_fn(one, tf.range(steps), fn_output_signature=(tf.float32, tf.float32)))
    kls, gradients = loop()
    return kls.numpy(), gradients.numpy()


def quadrature(loc: float, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean, and standard deviation between draws, of (KL, d KL / d mu, d KL / d rho) of one weight."""
    z, step = np.linspace(-10, 10, 100_001, retstep=True)
    w, weight = loc + scale * z, step * stats.norm.pdf(z)
    wide, narrow = math.log(PI) + stats.norm.logpdf(w), math.log(1 - PI) + stats.norm.logpdf(w, scale=NARROW)
    share = np.exp(wide - np.logaddexp(wide, narrow))
    pull = w * (share + (1 - share) / NARROW**2)  # - d log p / dw
    entropy = 0.5 * math.log(2 * math.pi * math.e) + math.log(scale)
    slope = 1 - math.exp(-scale)  # d sigma / d rho, for sigma = log(1 + e^rho)
    draws = np.stack([-np.logaddexp(wide, narrow) - entropy, pull, slope * (pull * z - 1 / scale)])
    mean = (draws * weight).sum(1)
    return mean, np.sqrt((np.square(draws) * weight).sum(1) - mean**2)


@pytest.mark.parametrize("moment", ["variance", "deviation"])
@pytest.mark.parametrize(("loc", "scale"), [(0.001, NARROW), (0.05, 0.01), (0.7, 0.4)])
def test_the_mean_gradient_of_the_mixture_kl_is_the_quadratures(loc: float, scale: float, moment: Any) -> None:
    steps, (exact, std) = 40, quadrature(loc, scale)
    kls, gradients = kl_gradients(posterior(loc, scale), ScaleMixturePrior(PI, 1.0, NARROW), steps, moment)
    found = np.array([kls.mean() / (ROWS * COLUMNS), *gradients.mean((0, 2))])
    # Each step sees one block of all weights alike, so that only its own draws vary.
    bound = stats.norm.isf(FALSE_ALARM / 6) * std / math.sqrt(steps * ROWS * COLUMNS / _PARTS)
    # Beside the chance: float32, and the pool's distance of 1e-5 from a normal, in units of a draw's deviation.
    assert np.all(np.abs(found - exact) <= bound + 1e-4 * (np.abs(exact) + std))


def test_every_row_gets_the_kl_equally_often_and_its_whole_pull_on_average() -> None:
    loc, scale, steps = 0.3, 0.2, 2000
    _, gradients = kl_gradients(posterior(loc, scale), NormalPrior(0.5), steps)
    pull = loc / 0.5**2  # exact, so that a step's gradient is 0 or _PARTS times this
    hit = gradients[:, 0] > 0
    np.testing.assert_allclose(gradients[:, 0][hit], _PARTS * pull, rtol=1e-5)
    assert (hit.sum(1) == ROWS // _PARTS).all()
    low, high = stats.binom.ppf([FALSE_ALARM / (2 * ROWS), 1 - FALSE_ALARM / (2 * ROWS)], steps, 1 / _PARTS)
    assert ((hit.sum(0) >= low) & (hit.sum(0) <= high)).all()


def test_away_from_training_the_kl_is_whole() -> None:
    q, prior = posterior(0.3, 0.2), NormalPrior(0.5)
    terms = FusedWeights(q, prior).terms("variance", lambda stream: noise.seed_pair(1, stream), training=False)
    each = 0.5 * (0.3**2 + 0.2**2) / 0.25 - 0.5 - math.log(0.2 / 0.5)
    assert float(terms.kl) == pytest.approx(ROWS * COLUMNS * each, rel=1e-4)


@pytest.mark.parametrize("estimator", ["flipout", "reparameterization", "local"])
def test_the_mean_gradient_of_the_expected_square_has_the_closed_form(estimator: str) -> None:
    # E (y - x w)^2 = (y - x mu)^2 + x^2 sigma^2, so its gradients are known.
    random, draws = np.random.default_rng(0), 20_000
    x, y = random.normal(size=(5, 4)).astype(np.float32), random.normal(size=(5, 3)).astype(np.float32)
    layer = LAYERS["Dense", estimator](3, use_bias=False, name="layer")
    layer.build((5, 4))
    q = layer.kernel_posterior
    q.loc_variable.assign(random.normal(size=(4, 3)))
    q.rho_variable.assign(random.uniform(-1, 0.5, (4, 3)))

    def one(_: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(y - layer(x, training=False)))
        return tf.stack(tape.gradient(loss, [q.loc_variable, q.rho_variable]))

    loop = tf.function(lambda: tf.map_fn(one, tf.range(draws), fn_output_signature=tf.float32, parallel_iterations=1))
    gradients = loop().numpy()
    loc, rho = (v.numpy().astype(np.float64) for v in (q.loc_variable, q.rho_variable))
    of_loc = -2 * x.T @ (y - x @ loc)
    of_rho = 2 * np.log1p(np.exp(rho)) / (1 + np.exp(-rho)) * (x**2).sum(0)[:, None]
    # The deviation is estimated from as many draws: 20,000 are enough for the normal approximation.
    assert_mean(gradients, np.stack([of_loc, of_rho]), gradients.std(0))


@settings(derandomize=True, deadline=None)
@given(rows=st.integers(1, 5000), columns=st.integers(1, 5000))
def test_blocks_are_equal_and_worth_their_effort(rows: int, columns: int) -> None:
    parts = _parts_of(rows, columns)
    assert rows % parts == 0
    assert 1 <= parts <= _PARTS
    assert parts == 1 or rows // parts * columns >= _SMALLEST_BLOCK


@pytest.mark.parametrize("shape", [[1000, 100], [3, 2**18]])
@pytest.mark.parametrize("static", [True, False])
def test_pooled_numbers_are_standard_normal(shape: list[int], static: bool) -> None:
    draw = tf.function(lambda s: noise.normal(shape if static else s, noise.seed_pair(3, "pool")))
    values = draw(tf.constant(shape)).numpy()
    assert values.shape == tuple(shape)
    assert_mean(values.ravel(), 0, 1)
    assert_mean(np.square(values.ravel()), 1, math.sqrt(2))
    assert_mean((values[1:] * values[:-1]).ravel(), 0, 1)
    assert_mean((values[:, 1:] * values[:, :-1]).ravel(), 0, 1)
    assert stats.kstest(values.ravel()[:100_000], "norm").pvalue > FALSE_ALARM


def test_pooled_numbers_follow_from_their_seed_and_differ_between_seeds() -> None:
    draws = [noise.normal([5000], noise.seed_pair(step, name)).numpy() for step, name in ((1, "a"), (2, "a"), (1, "b"))]
    again = noise.normal([5000], noise.seed_pair(1, "a")).numpy()
    np.testing.assert_array_equal(draws[0], again)
    correlation = np.corrcoef(draws)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(FALSE_ALARM / 6) / math.sqrt(5000)
