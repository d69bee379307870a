"""The masked normal posterior: sigma and rho, log sigma far out, and weights that are gone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bounds import assert_mean, assert_normal_variance
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import CentredPrior
from tfp_bprune.layers.posterior import DEFAULT_RHO, MaskedNormal, log_scale_of, rho_of, scale_of

EXACT = settings(derandomize=True, deadline=None, max_examples=200)


def posterior(loc: list[float], rho: list[float], mask: list[bool]) -> MaskedNormal:
    """A posterior over a vector of weights."""
    return MaskedNormal(tf.Variable(loc), tf.Variable(rho), tf.Variable(mask))


@EXACT
@given(log_scale=st.floats(-80, 9))
def test_rho_of_inverts_scale_of(log_scale: float) -> None:
    scale = math.exp(log_scale)
    # rho is rounded to float32: an error of 6e-8 |rho|, which sigma = exp(rho) takes over as a relative one.
    assert scale_of(rho_of(np.array(scale))).numpy() == pytest.approx(scale, rel=1e-6 + 1e-7 * abs(log_scale), abs=0)


@EXACT
@given(rho=st.floats(-80, 80, width=32))
def test_scale_is_softplus_with_nothing_added(rho: float) -> None:
    assert scale_of(tf.constant(rho, tf.float32)).numpy() == pytest.approx(np.logaddexp(0, rho), rel=2e-6, abs=0)


@EXACT
@given(rho=st.floats(-1e4, 1e4, width=32) | st.floats(-25, -15, width=32))
def test_log_scale_is_exact_with_a_finite_gradient(rho: float) -> None:
    value = tf.constant(rho, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(value)
        log_scale = log_scale_of(value)
    # log softplus(rho) in double precision: rho itself where softplus(rho) = exp(rho).
    softplus = np.logaddexp(0, rho)
    expected = math.log(softplus) if rho > -30 else rho
    slope = math.exp(-np.logaddexp(0, -rho)) / softplus if rho > -30 else 1.0
    assert log_scale.numpy() == pytest.approx(expected, rel=2e-6, abs=1e-6)
    assert tape.gradient(log_scale, value).numpy() == pytest.approx(slope, rel=1e-5)


def test_pruned_weights_are_exactly_zero() -> None:
    q = posterior([3.0, -2.0, 5.0, 4.0], [-1e4, -5.0, 0.0, 80.0], [False, False, True, False])
    gone = [0, 1, 3]
    for values in (q.loc, q.scale, q.log_scale, q.distribution.stddev(), q.sample([1, 2]), q.sample_centred([1, 2])):
        assert (values.numpy()[gone] == 0).all()
    assert q.loc.numpy()[2] == 5
    assert q.scale.numpy()[2] == pytest.approx(math.log(2))
    assert q.sample([1, 2]).numpy()[2] != 5


def test_pruned_weights_have_no_gradient_even_where_sigma_overflows() -> None:
    q = posterior([1.0, 1.0], [-1e4, 1e38], [False, False])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(q.sample([1, 2]) + q.log_scale)
    for gradient in tape.gradient(total, [q.loc_variable, q.rho_variable]):
        np.testing.assert_array_equal(gradient, [0, 0])


def test_the_raw_variables_of_pruned_weights_rest_at_one_value() -> None:
    q = posterior([3.0, -2.0, 5.0], [-1.0, -2.0, -3.0], [True, True, True])
    q.prior = CentredPrior()
    q.prior_variables = {"prior_loc": tf.Variable([6.0, 7.0, 8.0])}
    q.keep_only(np.array([False, True, False]))
    found = [variable.numpy().tolist() for variable, _ in q.resting]
    assert found == [[0, -2, 0], [DEFAULT_RHO, -2, DEFAULT_RHO], [0, 7, 0]]


def test_draws_have_the_stated_mean_and_variance() -> None:
    q = posterior([1.0, -2.0], rho_of(np.array([0.1, 2.0])).tolist(), [True, True])
    draws = np.stack([q.sample([7, step]).numpy() for step in range(4000)])
    assert_mean(draws, np.array([1.0, -2.0]), np.array([0.1, 2.0]))
    assert_normal_variance(draws, np.array([1.0, -2.0]), np.array([0.01, 4.0]))


def test_initial_values() -> None:
    layer = keras.layers.Layer()
    q = MaskedNormal.create(layer.add_weight, "kernel", (200, 100), rho_init=-3.0, seed=1)
    loc, rho = q.loc_variable.numpy(), q.rho_variable.numpy()
    half_he = math.sqrt(2 / 200) / 2
    assert_mean(loc.ravel(), 0, half_he)
    # The initializer truncates its normal, which leaves it less kurtosis than a normal has.
    assert_mean(np.square(loc.ravel()), half_he**2, half_he**2 * math.sqrt(2))
    assert_mean(rho.ravel(), -3, 0.1)
    assert_normal_variance(rho.reshape(-1, 1), -3.0, 0.01)
    assert q.mask.numpy().all()
    assert not q.mask.trainable
    assert (MaskedNormal.create(layer.add_weight, "bias", (3,), -3.0, 1).loc_variable.numpy() == 0).all()
