"""The fused training step: its gradients are those of the evidence lower bound, on average, whatever is sampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.bounds import FALSE_ALARM, assert_mean, assert_normal_variance
from tfp_bprune._keras import tf
from tfp_bprune.layers import LAYERS, CentredPrior, NormalPrior, ScaleMixturePrior, divergence, noise
from tfp_bprune.layers.fused import terms
from tfp_bprune.layers.posterior import MaskedNormal, compiled_scale_of, rho_of, scale_of

# Small tensors go through TensorFlow operation by operation, large ones through XLA.
SMALL, LARGE = (4, 4096), (4, 2**15)
# More normals than the pool holds.
HUGE = (5, 2**18)
PI, NARROW = 0.25, math.exp(-6)


def posterior(loc: float, scale: float, shape: tuple[int, int] = SMALL) -> MaskedNormal:
    """A weight matrix whose entries all have one distribution."""
    variables = (np.full(shape, loc, np.float32), np.full(shape, rho_of(scale), np.float32), np.ones(shape, bool))
    return MaskedNormal(*map(tf.Variable, variables))


def kl_gradients(q: MaskedNormal, prior: Any, steps: int, moment: Any = "variance") -> tuple[np.ndarray, np.ndarray]:
    """KLs [steps] and their gradients [steps, 2, rows], of mean and rho, averaged over columns."""

    def one(step: Any) -> Any:
        with tf.GradientTape() as tape:
            kl = terms(q, prior, moment, lambda stream: noise.seed_pair(step, 7, stream)).kl
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
@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_the_mean_gradient_of_the_mixture_kl_is_the_quadratures(
    loc: float, scale: float, moment: Any, shape: tuple[int, int]
) -> None:
    steps, (exact, std) = 40, quadrature(loc, scale)
    kls, gradients = kl_gradients(posterior(loc, scale, shape), ScaleMixturePrior(PI, 1.0, NARROW), steps, moment)
    found = np.array([kls.mean() / math.prod(shape), *gradients.mean((0, 2))])
    bound = stats.norm.isf(FALSE_ALARM / 6) * std / math.sqrt(steps * math.prod(shape))
    # Beside the chance: float32, and the pool's distance of 1e-5 from a normal, in units of a draw's deviation.
    assert np.all(np.abs(found - exact) <= bound + 1e-4 * (np.abs(exact) + std))


def test_the_kl_of_a_normal_prior_has_the_closed_forms_value_and_gradient() -> None:
    loc, scale, width = 0.3, 0.2, 0.5
    kls, gradients = kl_gradients(posterior(loc, scale), NormalPrior(width), 1)
    each = 0.5 * (loc**2 + scale**2) / width**2 - 0.5 - math.log(scale / width)
    slope = 1 - math.exp(-scale)
    np.testing.assert_allclose(kls, math.prod(SMALL) * each, rtol=1e-4)
    np.testing.assert_allclose(gradients[0, 0], loc / width**2, rtol=1e-4)
    np.testing.assert_allclose(gradients[0, 1], slope * (scale / width**2 - 1 / scale), rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (300, 250)])
@pytest.mark.parametrize("prior", [NormalPrior(0.5, 0.1), ScaleMixturePrior()])
@pytest.mark.parametrize("moment", ["variance", "deviation"])
def test_the_gradient_written_by_hand_is_the_one_tensorflow_derives(prior: Any, moment: Any, shape: Any) -> None:
    random = np.random.default_rng(1)
    variables = [random.normal(size=shape), random.uniform(-30, 2, shape), random.random(shape) < 0.7]
    loc, rho, mask = (
        tf.Variable(v, dtype=t) for v, t in zip(variables, (tf.float32, tf.float32, tf.bool), strict=True)
    )
    prior = CentredPrior(prior)
    centre = tf.Variable(random.normal(size=shape), dtype=tf.float32, trainable=False)
    q = MaskedNormal(loc, rho, mask, prior, {"prior_loc": centre})
    weights = [tf.constant(random.normal(size=shape), tf.float32) for _ in range(2)]
    seed = noise.seed_pair(1, "stream")
    epsilon = noise.normal(list(shape), seed)
    with tf.GradientTape(persistent=True) as tape:
        ours = terms(q, prior, moment, lambda stream: seed)
        second = q.scale * epsilon if moment == "deviation" else tf.square(q.scale)
        plain = (q.loc, second, divergence.kl_divergence(q, prior, q.loc + q.scale * epsilon))
        losses = [
            tf.reduce_sum(weights[0] * a) + tf.reduce_sum(weights[1] * b) + 0.7 * c
            for a, b, c in (plain, (ours.loc, ours.second, ours.kl))
        ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for variable in (loc, rho):
        expected, found = (tape.gradient(loss, variable) for loss in losses)
        # At the edge of the narrow part its density takes the rounding of w^2 times 80,000 into the exponent.
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
        assert np.median(np.abs(found / expected - 1)[mask.numpy()]) < 1e-6
        assert (found.numpy()[~mask.numpy()] == 0).all()


def test_the_kl_of_a_block_is_that_of_all_weights_on_average() -> None:
    # Not a multiple of the block's size, and the odd block at the end is unlike the others.
    q, steps, size = posterior(0.7, 0.4, (9, 1024)), 4000, 9 * 1024
    q.loc_variable.assign(np.linspace(-1, 3, size, dtype=np.float32).reshape(9, 1024) ** 3)
    mask = np.random.default_rng(0).random((9, 1024)) < 0.8
    q.mask.assign(mask)

    def one(step: Any) -> Any:
        return terms(q, ScaleMixturePrior(), "variance", lambda s: noise.seed_pair(step, 7, s), every_value=False).kl

    estimates = tf.function(lambda: tf.map_fn(one, tf.range(steps), fn_output_signature=tf.float32))().numpy()
    assert estimates.std() > 0.1 * estimates.mean()
    # The mean over draws: of w^2 / 2 under a prior of scale 1, and the narrow part's density is nothing out there.
    loc, scale = q.loc.numpy().astype(np.float64), 0.4
    w = loc[..., None] + scale * np.polynomial.hermite_e.hermegauss(60)[0]
    weight = np.polynomial.hermite_e.hermegauss(60)[1] / math.sqrt(2 * math.pi)
    narrow = math.exp(-6)
    log_p = np.logaddexp(stats.norm.logpdf(w), stats.norm.logpdf(w, scale=narrow)) + math.log(0.5)
    each = -(log_p * weight).sum(-1) - 0.5 * math.log(2 * math.pi * math.e * scale**2)
    # Quadrature misses the spike at 0, which holds all its weight within 4 of narrow: less than 1e-2 of the sum.
    exact = (each * mask).sum()
    bound = stats.norm.isf(FALSE_ALARM / 2) * estimates.std() / math.sqrt(steps)
    assert abs(estimates.mean() - exact) < bound + 1e-2 * exact
    assert bound < 0.1 * exact


@pytest.mark.parametrize("shape", [SMALL, LARGE, HUGE])
def test_a_training_step_estimates_the_kl_from_a_block_and_an_evaluation_sums_all(shape: tuple[int, int]) -> None:
    q = posterior(0.01, 0.1, shape)
    seeds = [noise.seed_pair(1, "stream"), noise.seed_pair(2, "stream")]
    whole, other = (terms(q, NormalPrior(), "variance", lambda _, s=s: s, every_value=False).kl for s in seeds)
    assert float(whole) == float(other)  # a closed form is never estimated
    with tf.GradientTape(persistent=True) as tape:
        kls = [terms(q, ScaleMixturePrior(), "variance", lambda _: seeds[0], every).kl for every in (True, False)]
    gradients = [tape.gradient(kl, q.rho_variable).numpy() for kl in kls]
    np.testing.assert_array_equal(*gradients)
    assert float(kls[0]) != float(kls[1])
    np.testing.assert_allclose(*kls, rtol=0.1)


def test_the_compiled_scale_is_softplus_to_rounding() -> None:
    rho = np.concatenate([np.linspace(-87, 87, 100_001), [-1e-6, 0, 1e-6]]).astype(np.float32)
    exact = np.logaddexp(0, rho.astype(np.float64))
    np.testing.assert_allclose(compiled_scale_of(rho).numpy(), exact, rtol=5e-7)
    np.testing.assert_allclose(scale_of(rho).numpy(), exact, rtol=5e-7)


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


@pytest.mark.parametrize("shape", [[1000, 100], [5, 2**18]])
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


@pytest.mark.parametrize("kind", ["normal", "signs"])
def test_every_place_of_a_window_has_mean_0_and_variance_1(kind: str) -> None:
    # Windows start on a grid of 16, so that each place of them meets a sixteenth of the pool.
    def one(step: Any) -> Any:
        seed = noise.seed_pair(step, kind)
        return noise.normal([32], seed) if kind == "normal" else noise.signs([32], seed, tf.float32)

    loop = tf.function(lambda: tf.map_fn(one, tf.range(4000), fn_output_signature=tf.float32))
    values = loop().numpy()
    assert_mean(values, 0, 1)
    if kind == "normal":
        assert_normal_variance(values, 0, 1)
    else:
        assert set(np.unique(values)) == {-1.0, 1.0}
        assert_mean(values[:, 1:] * values[:, :-1], 0, 1)


@pytest.mark.parametrize("static", [True, False])
def test_pooled_signs_are_independent_over_examples_and_channels(static: bool) -> None:
    shape = [1000, 784]
    draw = tf.function(lambda s: noise.signs(shape if static else s, noise.seed_pair(3, "signs"), tf.float32))
    values = draw(tf.constant(shape)).numpy()
    assert_mean(values, 0, 1)
    assert_mean((values[1:] * values[:-1]).ravel(), 0, 1)
    assert_mean((values[:, 1:] * values[:, :-1]).ravel(), 0, 1)


def test_pooled_numbers_follow_from_their_seed_and_differ_between_seeds() -> None:
    draws = [noise.normal([5000], noise.seed_pair(step, name)).numpy() for step, name in ((1, "a"), (2, "a"), (1, "b"))]
    again = noise.normal([5000], noise.seed_pair(1, "a")).numpy()
    np.testing.assert_array_equal(draws[0], again)
    correlation = np.corrcoef(draws)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(FALSE_ALARM / 6) / math.sqrt(5000)
