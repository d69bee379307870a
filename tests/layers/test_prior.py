"""Priors against scipy in double precision, quadrature and their known moments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from tests.bounds import assert_mean
from tfp_bprune._keras import tf
from tfp_bprune.layers import NormalPrior, ScaleMixturePrior, prior_from
from tfp_bprune.types import BpruneError

GRID = [
    (pi, math.exp(-a), math.exp(-b)) for pi in (0.25, 0.5, 0.75) for a in (0, 1, 2) for b in (6, 7, 8)
]  # the paper's
WEIGHTS = st.floats(-1e4, 1e4, width=32) | st.floats(-0.0625, 0.0625, width=32)  # far out, and where the parts cross


def parts(prior: ScaleMixturePrior, w: float) -> tuple[float, float]:
    """log of each part's weighted density at `w`, in double precision."""
    wide = math.log(prior.pi) + stats.norm.logpdf(w, scale=prior.scale1)
    return wide, math.log1p(-prior.pi) + stats.norm.logpdf(w, scale=prior.scale2)


def reference(prior: ScaleMixturePrior, w: float) -> tuple[float, float]:
    """log p(w) and its derivative, in double precision."""
    wide, narrow = parts(prior, w)
    log_prob = np.logaddexp(wide, narrow)
    slopes = -w / prior.scale1**2, -w / prior.scale2**2
    return log_prob, math.exp(wide - log_prob) * slopes[0] + math.exp(narrow - log_prob) * slopes[1]


@settings(derandomize=True, deadline=None, max_examples=150)
@given(w=WEIGHTS, arguments=st.sampled_from(GRID))
def test_mixture_log_prob_and_gradient_are_exact_and_finite(w: float, arguments: tuple[float, float, float]) -> None:
    prior = ScaleMixturePrior(*arguments)
    value = tf.constant(w, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(value)
        output = prior.log_prob(value)
    log_prob, gradient = output.numpy(), tape.gradient(output, value).numpy()
    assert np.isfinite(log_prob)
    assert np.isfinite(gradient)
    # float32 rounds each part's exponent, of size |part|, to 6e-8 of it; a few roundings follow one another. The weight
    # of a part in the gradient has that error of the exponents' difference, where the other part isn't negligible.
    expected, slope = reference(prior, w)
    wide, narrow = parts(prior, w)
    assert log_prob == pytest.approx(expected, rel=5e-7, abs=2e-6 + 5e-7 * min(abs(narrow), abs(wide) + 40))
    rounding = 1e-6 * (1 + min(abs(narrow), 100)) * abs(w) / prior.scale2**2 * math.exp(-abs(wide - narrow))
    assert gradient == pytest.approx(slope, rel=2e-6, abs=rounding + 1e-30)


def test_far_weights_have_the_wide_parts_density() -> None:
    # log(sum of densities) is -inf in float32 from |w| = 20 on.
    w = np.array([20.0, 1e2, 1e4], np.float32)
    expected = math.log(0.5) + stats.norm.logpdf(w.astype(np.float64))
    np.testing.assert_allclose(ScaleMixturePrior(0.5, 1.0).log_prob(w), expected, rtol=1e-6)


@pytest.mark.parametrize("arguments", GRID[::5])
def test_mixture_integrates_to_one(arguments: tuple[float, float, float]) -> None:
    prior = ScaleMixturePrior(*arguments)
    # Even in w, so half of it; on a log scale both parts are smooth.
    log_w = np.linspace(math.log(arguments[2] * 1e-4), math.log(arguments[1] * 12), 4001)
    density = np.exp(prior.log_prob(np.exp(log_w).astype(np.float32)).numpy().astype(np.float64))
    below = density[0] * math.exp(log_w[0])  # what the log scale leaves out next to 0
    total = 2 * (integrate.simpson(density * np.exp(log_w), x=log_w) + below)
    assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("prior", [ScaleMixturePrior(0.25, 1.5, 0.1), NormalPrior(0.5, -2.0)])
def test_samples_have_the_stated_moments(prior: Any) -> None:
    n = 200_000
    samples = prior.sample(n, seed=[1, 2]).numpy()
    mean, variance = float(prior.mean()), float(prior.variance())
    fourth = 3 * variance**2
    if isinstance(prior, ScaleMixturePrior):
        assert variance == pytest.approx(0.25 * 1.5**2 + 0.75 * 0.1**2)
        fourth = 3 * (0.25 * 1.5**4 + 0.75 * 0.1**4)
    assert_mean(samples, mean, math.sqrt(variance))
    assert_mean(np.square(samples.astype(np.float64) - mean), variance, math.sqrt(fourth - variance**2))


def test_samples_come_from_the_two_parts_in_the_stated_shares() -> None:
    samples = ScaleMixturePrior(0.25, 1.0, 1e-4).sample(100_000, seed=[3, 4]).numpy()
    wide = np.abs(samples) > 1e-3  # ten narrow scales; P(|wide| <= 1e-3) is 8e-4
    share = 0.25 * 2 * stats.norm.sf(1e-3)
    assert_mean(wide.astype(float), share, math.sqrt(share * (1 - share)))


@pytest.mark.parametrize("prior", [ScaleMixturePrior(0.25, 0.5, 0.01), NormalPrior(0.3, 0.1), ScaleMixturePrior()])
def test_config_makes_an_equal_prior(prior: Any) -> None:
    copy = prior_from(prior.get_config())
    assert type(copy) is type(prior)
    assert copy.get_config() == prior.get_config()
    np.testing.assert_array_equal(copy.log_prob([0.0, 0.3, 5.0]), prior.log_prob([0.0, 0.3, 5.0]))


def test_prior_from_takes_objects_kinds_and_nothing() -> None:
    prior = NormalPrior(2.0)
    assert prior_from(prior) is prior
    assert prior_from("normal").get_config() == NormalPrior().get_config()
    assert prior_from(None).get_config() == ScaleMixturePrior().get_config()


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ScaleMixturePrior, {"pi": 0.0}, r"pi must be in \(0, 1\), got 0"),
        (ScaleMixturePrior, {"pi": 1.0}, r"pi must be in \(0, 1\), got 1"),
        (ScaleMixturePrior, {"pi": math.nan}, r"pi must be in \(0, 1\), got nan"),
        (
            ScaleMixturePrior,
            {"scale1": 0.1, "scale2": 0.2},
            "scale1 must be a finite number above scale2 = 0.2, got 0.1",
        ),
        (ScaleMixturePrior, {"scale1": math.inf}, "scale1 must be a finite number"),
        (ScaleMixturePrior, {"scale2": 0.0}, "scale2 must be a positive number, got 0"),
        (ScaleMixturePrior, {"scale2": math.nan}, "scale[12] must be"),
        (NormalPrior, {"scale": 0.0}, "scale must be a positive number, got 0"),
        (NormalPrior, {"scale": math.inf}, "scale must be a positive number, got inf"),
        (NormalPrior, {"loc": math.nan}, "loc must be a finite number, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Any, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(BpruneError, match=message):
        make(**arguments)
