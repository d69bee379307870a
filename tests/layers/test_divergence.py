"""KL(q || p) against closed forms and quadrature; pruned weights cost nothing; KL / N enters the loss once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers import DenseFlipout, DenseReparameterization, NormalPrior, ScaleMixturePrior, variational_layers
from tfp_bprune.layers.divergence import kl_divergence, scaled
from tfp_bprune.layers.posterior import MaskedNormal, rho_of
from tfp_bprune.types import TrainingError


def posterior(loc: Any, scale: Any, mask: Any = None) -> MaskedNormal:
    """A posterior over a vector of weights."""
    loc = np.asarray(loc, np.float32)
    mask = np.ones(loc.shape, bool) if mask is None else mask
    return MaskedNormal(tf.Variable(loc), tf.Variable(rho_of(np.broadcast_to(scale, loc.shape))), tf.Variable(mask))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    loc=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=4),
    scale=st.floats(1e-3, 5),
    prior_scale=st.floats(0.1, 3),
    prior_loc=st.floats(-1, 1),
)
def test_normal_prior_has_the_closed_form(loc: list[float], scale: float, prior_scale: float, prior_loc: float) -> None:
    q, prior = posterior(loc, scale), NormalPrior(prior_scale, prior_loc)
    # TFP's formula in double precision; sampling plays no part.
    normals = [
        tfp.distributions.Normal(np.asarray(a, np.float64), np.float64(b))
        for a, b in ((loc, scale), (prior_loc, prior_scale))
    ]
    expected = float(tf.reduce_sum(tfp.distributions.kl_divergence(*normals)))
    assert float(kl_divergence(q, prior, sample=None)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, math.exp(-6)), (0.05, 0.01), (0.7, 0.4), (-3.0, 1.0)])
def test_mixture_estimate_has_the_quadratures_mean(loc: float, scale: float) -> None:
    prior, n = ScaleMixturePrior(0.25, 1.0, math.exp(-6)), 100_000
    z, step = np.linspace(-10, 10, 100_001, retstep=True)  # the trapezoidal rule; the density beyond is 1e-23
    w = loc + scale * z
    q = step * stats.norm.pdf(z)
    log_p = np.logaddexp(
        math.log(0.25) + stats.norm.logpdf(w), math.log(0.75) + stats.norm.logpdf(w, scale=math.exp(-6))
    )
    exact = np.sum(q * (stats.norm.logpdf(w, loc, scale) - log_p))
    std = math.sqrt(np.sum(q * log_p**2) - np.sum(q * log_p) ** 2)  # only log p varies between draws
    many = posterior(np.full(n, loc), scale)
    estimate = float(kl_divergence(many, prior, many.sample([5, 6]))) / n
    # Beside the chance: rounding of rho and of each term to float32.
    assert estimate == pytest.approx(exact, abs=stats.norm.isf(5e-7) * std / math.sqrt(n) + 1e-5 * (1 + abs(exact)))


def test_mixture_of_nearly_equal_scales_costs_what_its_normal_costs() -> None:
    q = posterior(np.linspace(-1, 1, 50_000), 0.3)
    estimate = float(kl_divergence(q, ScaleMixturePrior(0.5, 1 + 1e-6, 1.0), q.sample([1, 1])))
    expected = float(kl_divergence(q, NormalPrior(1.0), None))
    std = math.sqrt(50_000 * (0.3**4 / 2 + 0.3**2 / 3))  # of the sum of w^2 / 2, w ~ N(mu, 0.3^2), mu^2 being 1/3
    assert estimate == pytest.approx(expected, abs=stats.norm.isf(5e-7) * std + 1e-4 * expected)


@pytest.mark.parametrize("prior", [NormalPrior(0.5), ScaleMixturePrior()])
def test_pruned_weights_cost_nothing(prior: Any) -> None:
    loc, mask = np.array([0.3, 2.0, -1.0, 4.0], np.float32), np.array([True, False, True, False])
    masked, left = posterior(loc, 0.2, mask), posterior(loc[mask], 0.2)
    draw = masked.sample([1, 2])
    np.testing.assert_allclose(
        kl_divergence(masked, prior, draw), kl_divergence(left, prior, tf.boolean_mask(draw, mask)), rtol=1e-6
    )
    nothing = posterior(loc, 0.2, np.zeros(4, bool))
    assert float(kl_divergence(nothing, prior, nothing.sample([1, 2]))) == 0


def test_scaled_divides_by_the_examples_once() -> None:
    assert float(scaled(tf.constant(30.0), 60, tf.constant(0.5), "layer")) == 0.25


@pytest.mark.parametrize("train_size", [None, 0, -1])
def test_scaled_refuses_an_unknown_number_of_examples(train_size: Any) -> None:
    with pytest.raises(TrainingError, match="'dense_7' does not know the number of training examples"):
        scaled(tf.constant(1.0), train_size, 1.0, "dense_7")


def two_layers(**arguments: Any) -> Any:
    """A small network with KL in two layers, one of them in a nested model."""
    inner = keras.Sequential([keras.Input((3,)), DenseFlipout(4, name="inner", bayesian_bias=True, **arguments)])
    return keras.Sequential([keras.Input((3,)), inner, DenseReparameterization(2, name="outer", **arguments)])


def test_the_loss_holds_kl_over_n_once() -> None:
    model = two_layers(train_size=70)
    model.compile(keras.optimizers.legacy.SGD(0.0), lambda y, prediction: 0.0 * prediction)
    for batch in (5, 20):  # whatever the size of the batch
        x = np.ones((batch, 3), np.float32)
        loss = model.train_on_batch(x, x[:, :2])
        kl = sum(float(layer.last_kl) for layer in variational_layers(model))
        assert kl > 1
        assert loss == pytest.approx(kl / 70, rel=1e-5)


def test_training_refuses_an_unknown_number_of_examples() -> None:
    model = two_layers()
    x = np.ones((5, 3), np.float32)
    model(x)  # prediction needs no N
    model.compile("sgd", "mse")
    with pytest.raises(TrainingError, match="set_train_size"):
        model.fit(x, x[:, :2], verbose=0)
