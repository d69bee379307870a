"""The ARD prior: its scales against a numerical optimum, its KL against quadrature, its gradients against the closed form's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

import tfp_bprune as bp
from tests.layers.kinds import CASES, class_of, inputs
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import LAYERS, ARDPrior, Prior, Sides, noise, variational_layers
from tfp_bprune.layers.posterior import MaskedNormal, rho_of
from tfp_bprune.types import BpruneError

GROUPS = ("input", "output", "both")
MATRIX = Sides((0,), (1,))


def posterior(loc: Any, scale: Any, mask: Any = None, groups: Any = "both", sides: Sides = MATRIX) -> MaskedNormal:
    loc = np.asarray(loc, np.float32)
    mask = np.ones(loc.shape, bool) if mask is None else mask
    rho = tf.Variable(rho_of(np.broadcast_to(scale, loc.shape)))
    q = MaskedNormal(tf.Variable(loc), rho, tf.Variable(mask), ARDPrior(groups=groups))
    q.sides = sides
    return q


def random_posterior(shape: Any, groups: Any, seed: int = 0, sides: Sides = MATRIX) -> MaskedNormal:
    random = np.random.default_rng(seed)
    loc, scale = random.normal(size=shape), np.exp(random.normal(size=shape))
    return posterior(loc, scale, random.random(shape) < 0.7, groups, sides)


def kl_at(log_s: np.ndarray, q: MaskedNormal, groups: str) -> float:
    """KL(q || p) in double precision, by the formula of two normals, at given log scales."""
    rows = q.shape[0]
    s, t = {
        "input": (log_s[:, None], np.zeros(1)),
        "output": (np.zeros((1, 1)), log_s),
        "both": (log_s[:rows, None], log_s[rows:]),
    }[groups]
    scale, loc = q.scale.numpy().astype(float), q.loc.numpy().astype(float)
    with np.errstate(divide="ignore"):
        each = s + t - np.log(scale) + 0.5 * (loc**2 + scale**2) / np.exp(2 * (s + t)) - 0.5
    return float(each[q.mask.numpy()].sum())


@pytest.mark.parametrize("groups", GROUPS)
def test_the_scales_are_those_of_a_numerical_minimum(groups: Any) -> None:
    q = random_posterior((12, 9), groups)
    size = {"input": 12, "output": 9, "both": 21}[groups]
    least = optimize.minimize(kl_at, np.zeros(size), (q, groups), tol=1e-12)
    found = float(q.kl(None))
    # What is found in turns is left above the minimum by as little as this of it.
    assert least.fun - 1e-3 < found < least.fun + (0.01 * least.fun if groups == "both" else 1e-3)


def test_scales_that_are_products_are_found_exactly() -> None:
    random = np.random.default_rng(3)
    s, t = np.exp(3 * random.normal(size=(40, 1))), np.exp(3 * random.normal(size=30))
    found = ARDPrior().found(posterior(0.6 * s * t, 0.8 * s * t).normals, {})
    np.testing.assert_allclose(found["s"] * found["t"], (s * t) ** 2, rtol=1e-4)


def test_the_kl_of_a_group_is_the_quadratures() -> None:
    loc, scale = np.array([[0.3, -1.0, 0.02]]), np.array([[0.5, 0.1, 0.3]])
    s = math.sqrt(np.mean(loc**2 + scale**2))
    exact = 0.0
    for mu, sigma in zip(loc[0], scale[0], strict=True):

        def gap(w: float, mu: float = mu, sigma: float = sigma) -> float:
            q = stats.norm(mu, sigma)
            return float(q.pdf(w) * (q.logpdf(w) - stats.norm.logpdf(w, 0, s)))

        exact += integrate.quad(gap, mu - 12 * sigma, mu + 12 * sigma, epsabs=1e-12)[0]
    assert float(posterior(loc, scale, groups="input").kl(None)) == pytest.approx(exact, rel=1e-5)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), log_factor=st.floats(-8, 8), groups=st.sampled_from(GROUPS))
def test_it_costs_nothing_to_be_noise_and_size_does_not_matter(seed: int, log_factor: float, groups: Any) -> None:
    factor = math.exp(log_factor)
    q = random_posterior((5, 4), groups, seed)
    loc, scale, mask = q.loc.numpy(), np.where(q.mask, q.scale, 1.0), q.mask.numpy()
    kl = float(q.kl(None))
    assert kl >= -1e-4
    assert float(posterior(factor * loc, factor * scale, mask, groups).kl(None)) == pytest.approx(kl, abs=1e-3)
    assert float(posterior(0 * loc, np.full(loc.shape, factor), mask, groups).kl(None)) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (300, 250)])
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("moment", ["variance", "deviation"])
def test_gradients_are_those_of_normals_of_the_scales_found(shape: Any, groups: Any, moment: Any) -> None:
    q = random_posterior(shape, groups)
    with tf.GradientTape(persistent=True) as tape:
        ours = q.terms(moment, lambda stream: noise.seed_pair(1, stream), every_value=False).kl
        derived = q.kl(None)
    np.testing.assert_allclose(ours, derived, rtol=1e-5)
    variance = np.ones(shape) * math.prod(q.prior.found(q.normals, {}).values()).numpy().astype(float)
    loc, rho, left = q.loc.numpy(), q.rho_variable.numpy().astype(float), q.mask.numpy()
    scale = np.logaddexp(0, rho)
    exact = loc / variance, (scale / variance - 1 / scale) / (1 + np.exp(-rho))
    for variable, expected in zip((q.loc_variable, q.rho_variable), exact, strict=True):
        expected = np.where(left, expected, 0)
        for kl in (ours, derived):
            np.testing.assert_allclose(tape.gradient(kl, variable), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("groups", ["input", "output"])
def test_the_slope_by_a_scale_at_its_optimum_is_0(groups: Any) -> None:
    q = random_posterior((6, 5), groups)
    variable, step = q.loc_variable, 1e-2
    with tf.GradientTape() as tape:
        kl = q.kl(None)
    gradient = tape.gradient(kl, variable).numpy()
    values, values_at = variable.numpy(), []
    for sign in (1, -1):  # the whole KL, the scales found anew
        variable.assign(values + sign * step * np.eye(6, 5, dtype=np.float32)[0])
        values_at.append(float(q.kl(None)))
    along = gradient[:, 0].sum()
    assert (values_at[0] - values_at[1]) / (2 * step) == pytest.approx(along, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("groups", GROUPS)
def test_groups_that_are_gone_cost_nothing_and_get_no_gradient(groups: Any) -> None:
    loc = np.random.default_rng(0).normal(size=(4, 3))
    mask = np.ones((4, 3), bool)
    mask[1], mask[:, 2] = False, False
    q = posterior(loc, 0.1, mask, groups)
    left = posterior(np.delete(np.delete(loc, 1, 0), 2, 1), 0.1, None, groups)
    np.testing.assert_allclose(q.kl(None), left.kl(None), rtol=1e-4)
    nothing = posterior(loc, 0.1, np.zeros((4, 3), bool), groups)
    for one in (q, nothing):
        with tf.GradientTape() as tape:
            kl = one.terms("deviation", lambda stream: [1, 2]).kl
        for gradient in tape.gradient(kl, [one.loc_variable, one.rho_variable]):
            assert np.isfinite(gradient).all()
            assert (gradient.numpy()[~one.mask.numpy()] == 0).all()
    assert float(nothing.kl(None)) == 0


def test_weights_far_below_float32_are_finite() -> None:
    q = posterior(np.zeros((3, 2)), 1.0)
    q.rho_variable.assign(np.full((3, 2), -95.0))
    with tf.GradientTape() as tape:
        kl = q.terms("variance", lambda stream: [1, 2]).kl
    assert np.isfinite(kl)
    assert all(np.isfinite(g).all() for g in tape.gradient(kl, [q.loc_variable, q.rho_variable]))


SIDES = {
    "depthwise 1D": {"depthwise_kernel": Sides((1,), (1,))},
    "depthwise 2D": {"depthwise_kernel": Sides((2,), (2,))},
    "separable 1D": {"depthwise_kernel": Sides((1,), (1,)), "pointwise_kernel": Sides((1,), (2,))},
    "separable 2D": {"depthwise_kernel": Sides((2,), (2,)), "pointwise_kernel": Sides((2,), (3,))},
    "transposed 1D": {"kernel": Sides((2,), (1,))},
    "transposed 2D": {"kernel": Sides((3,), (2,))},
    "transposed 3D": {"kernel": Sides((4,), (3,))},
    "einsum, dense": {"kernel": Sides((0,), (1,))},
    "einsum, heads": {"kernel": Sides((0,), (1, 2))},
    "einsum, steps": {"kernel": Sides((0,), (1,))},
    "einsum, left": {"kernel": Sides((0,), (1,))},
    "einsum, right": {"kernel": Sides((0,), (1,))},
    "einsum, apart": {"kernel": Sides((0, 1), (0, 2))},
    "embedding": {"embeddings": Sides((0,), (1,))},
    "groups": {"kernel": Sides((2,), (3,))},
    "causal": {"kernel": Sides((1,), (2,))},
    "dense": {"kernel": Sides((0,), (1,))},
    "dense at positions": {"kernel": Sides((0,), (1,))},
    "convolution 1D": {"kernel": Sides((1,), (2,))},
    "convolution 2D": {"kernel": Sides((2,), (3,))},
    "convolution 3D": {"kernel": Sides((3,), (4,))},
}


def test_every_case_says_its_sides() -> None:
    assert set(SIDES) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_layers_of_every_kind_have_the_kl_of_their_groups(case: str) -> None:
    name, arguments, shape = CASES[case]
    layer = keras.Input(shape)
    plain = keras.Model(layer, class_of(name)(name="layer", **arguments)(layer))
    for groups in GROUPS:
        model = bp.bayesianize(plain, prior={"kind": "ard", "groups": groups}, train_size=5, bayesian_bias=True)
        model(inputs(case))
        [bayesian] = variational_layers(model)
        for tensor, q in bayesian.posteriors.items():
            sides = SIDES[case].get(tensor, Sides((), tuple(range(len(q.shape)))))
            assert q.sides == sides
            if groups != "both":
                assert_by_groups(q, sides.read if groups == "input" else sides.made)
        np.testing.assert_allclose(
            bayesian.last_kl, sum(float(q.kl(None)) for q in bayesian.posteriors.values()), rtol=1e-4
        )


def assert_by_groups(q: Any, axes: tuple[int, ...]) -> None:
    """The KL, from J / 2 log mean(mu^2 + sigma^2) - sum log sigma of each group."""
    loc, scale = (
        np.moveaxis(a.numpy().astype(float), axes, range(len(axes))).reshape(math.prod(q.shape[a] for a in axes), -1)
        for a in (q.loc, q.scale)
    )
    exact = loc.shape[1] / 2 * np.log((loc**2 + scale**2).mean(1)).sum() - np.log(scale).sum()
    np.testing.assert_allclose(q.kl(None), exact, rtol=1e-4)


def test_heads_of_attention_have_scales_of_their_own() -> None:
    x = keras.Input((5, 4))
    plain = keras.Model(x, keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x))
    model = bp.bayesianize(plain, prior="ard", train_size=5)
    found = {layer.name: layer.posteriors["kernel"].sides for layer in variational_layers(model)}
    assert found["attention_query"] == Sides((0,), (1, 2))
    assert found["attention_attention_output"] == Sides((0, 1), (2,))
    assert np.isfinite(model(np.ones((2, 5, 4), np.float32))).all()


def test_a_prior_is_its_config_and_others_are_refused() -> None:
    layer = LAYERS["Dense", "flipout"](3, prior="ard")
    assert layer.get_config()["prior"] == {"kind": "ard", "groups": "both"}
    assert isinstance(layer.prior, Prior)
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(BpruneError, match="prior 'ard' draws weights to 0 and cannot be centred at trained weights"):
        bp.bayesianize(plain, prior="ard", moped=0.1)
    with pytest.raises(BpruneError, match="groups must be one of input, output, both, got 'rows'"):
        ARDPrior(groups="rows")  # type: ignore[arg-type]
