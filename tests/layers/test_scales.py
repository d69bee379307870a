"""Priors over scales: their KLs against quadrature, their posterior's draws against closed forms, and what follows them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

import tfp_bprune as bp
from tests.bounds import assert_mean
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.compact import compact
from tfp_bprune.layers import LAYERS, HorseshoePrior, NormalJeffreysPrior, Scaled, Sides, noise, variational_layers
from tfp_bprune.layers.posterior import MaskedNormal, rho_of
from tfp_bprune.layers.scales import Normal
from tfp_bprune.pruning import scores_of, units_table
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.types import BpruneError, PruneError

PRIORS = ("normal_jeffreys", "horseshoe")
FAMILIES = (NormalJeffreysPrior, HorseshoePrior)
MATRIX = Sides((0,), (1,))
SMALL, COMPILED = (6, 5), (300, 250)


def normal(loc: float, scale: float) -> Normal:
    return Normal(*(tf.constant(value, tf.float32) for value in (loc, scale, math.log(scale))))


@pytest.mark.parametrize("log_alpha", [-10.0, -4.0, -1.5, -0.5, 0.0, 0.7, 2.0, 6.0])
@pytest.mark.parametrize("mean", [-3.0, 0.1])
def test_the_kl_of_a_scale_from_normal_jeffreys_is_the_quadratures(log_alpha: float, mean: float) -> None:
    alpha = math.exp(log_alpha)

    def log_size(epsilon: float) -> float:
        return float(stats.norm.pdf(epsilon) * math.log(abs(1 + math.sqrt(alpha) * epsilon) + 1e-300))

    # E log |z / mu| - log(sigma / |mu|), and 0 where z is noise: E log |epsilon| = -(gamma + log 2) / 2.
    pole = -1 / math.sqrt(alpha)
    points = [pole] if abs(pole) < 12 else []
    expected = integrate.quad(log_size, -12, 12, points=points, limit=200)[0] - 0.5 * log_alpha
    expected += 0.5 * (np.euler_gamma + math.log(2))
    found = NormalJeffreysPrior().kl_of("z", normal(mean, math.sqrt(alpha) * abs(mean)))
    assert float(found) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("part", ["a", "alpha", "b", "beta"])
@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (-1.5, 0.3), (0.8, 1.4)])
def test_the_kl_of_each_part_of_a_horseshoe_is_the_quadratures(part: str, loc: float, scale: float) -> None:
    prior = HorseshoePrior(tau0=0.3)
    c = 0.3**2 if part == "a" else 1.0
    exact: Any = stats.invgamma(0.5) if part in ("b", "beta") else stats.gamma(0.5, scale=c)

    def gap(log_x: float) -> float:
        q = stats.norm(loc, scale)  # of the logarithm, whose density under the prior has the factor x
        return float(q.pdf(log_x) * (q.logpdf(log_x) - exact.logpdf(math.exp(log_x)) - log_x))

    expected = integrate.quad(gap, loc - 9 * scale, loc + 9 * scale, limit=200)[0]
    assert float(prior.kl_of(part, normal(loc, scale))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau0", [0.5, 2.0])
def test_the_parts_of_a_horseshoe_make_half_cauchys(tau0: float) -> None:
    random, n = np.random.default_rng(0), 100_000
    a, alpha = tau0**2 * random.gamma(0.5, size=n), random.gamma(0.5, size=n)
    b, beta = 1 / random.gamma(0.5, size=n), 1 / random.gamma(0.5, size=n)
    for square, scale in ((a * b, tau0), (alpha * beta, 1.0)):
        assert stats.kstest(np.sqrt(square), stats.halfcauchy(scale=scale).cdf).pvalue > 1e-6
    drawn = HorseshoePrior().scale_at({"shared_a": np.log(a), "shared_b": np.log(b), "alpha": 0.0, "beta": 0.0})
    np.testing.assert_allclose(drawn, np.sqrt(a * b), rtol=1e-4)


def posterior(family: Any, shape: Any = SMALL, groups: Any = "both", spread: float = 0.3, mask: Any = None) -> Scaled:
    """A random one, as a layer makes it."""
    random, prior = np.random.default_rng(0), family(groups=groups)
    left = random.random(shape) < 0.7 if mask is None else mask

    def add_weight(name: str, shape: Any, initializer: Any = None, **_: Any) -> Any:
        values = np.asarray(initializer(shape)) + spread * random.normal(size=shape)
        return tf.Variable(values, name=name, dtype=tf.float32)

    v = random.normal(size=shape), rho_of(np.exp(random.normal(-1, 0.3, shape)))
    q = Scaled(MaskedNormal(*(tf.Variable(part, dtype=tf.float32) for part in v), tf.Variable(left)))
    q.sides, q._rho = MATRIX, float(rho_of(spread))
    q.take(prior, add_weight, "kernel", None)  # type: ignore[arg-type]
    return q


def variables_of(q: Scaled) -> list[Any]:
    return [*q.parts.values(), *q.prior_variables.values()]


@pytest.mark.parametrize(("shape", "moment"), [(SMALL, "variance"), (SMALL, "deviation"), (COMPILED, "deviation")])
@pytest.mark.parametrize("family", FAMILIES)
def test_terms_are_normals_given_one_draw_of_the_scales(shape: Any, family: Any, moment: Any) -> None:
    q = posterior(family, shape)

    def seeds(stream: str) -> Any:
        return noise.seed_pair(3, stream)

    random = np.random.default_rng(1)
    by_loc, by_second = (tf.constant(random.normal(size=shape), tf.float32) for _ in range(2))
    with tf.GradientTape(persistent=True) as tape:
        terms = q.terms(moment, seeds, every_value=False)
        ours = tf.reduce_sum(by_loc * terms.loc + by_second * terms.second) + terms.kl
        z, v = q.prior.draw(q.prior_variables, seeds("scales")), q.weight
        noisy = v.scale * noise.normal(list(shape), seeds("draw")) * z
        second = tf.square(z * v.scale) if moment == "variance" else noisy
        plain = tf.reduce_sum(by_loc * z * v.loc + by_second * second) + q.kl()
    np.testing.assert_allclose(terms.loc, z * v.loc, rtol=1e-5)
    np.testing.assert_allclose(terms.second, second, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for variable in variables_of(q):
        one, other = (tape.gradient(value, variable).numpy() for value in (ours, plain))
        assert np.abs(other).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
    assert tuple(z.shape) == shape
    assert np.linalg.matrix_rank(z, tol=1e-3 * float(tf.norm(z))) == 1  # one of each input and one of each output
    assert not np.allclose(z, q.prior.draw(q.prior_variables, noise.seed_pair(4, "scales")))


@pytest.mark.parametrize("family", FAMILIES)
def test_slopes_of_the_kl_are_its_differences(family: Any) -> None:
    q, step = posterior(family), 1e-2
    with tf.GradientTape() as tape:
        kl = q.kl()
    variables = variables_of(q)
    for variable, slope in zip(variables, tape.gradient(kl, variables), strict=True):
        at, along = variable.numpy(), np.sign(slope.numpy())
        values = []
        for sign in (1, -1):
            variable.assign(at + sign * step * along)
            values.append(float(q.kl()))
        variable.assign(at)
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(np.abs(slope).sum(), rel=2e-3, abs=5e-3)


def raw_moments(loc: np.ndarray, scale: np.ndarray) -> list[np.ndarray]:
    """E x^k of normals, k = 1 to 4."""
    return [loc, loc**2 + scale**2, loc**3 + 3 * loc * scale**2, loc**4 + 6 * loc**2 * scale**2 + 3 * scale**4]


def scale_moments(prior: Any, variables: Any) -> list[np.ndarray]:
    """E z^k of the products of the scales of both sides, k = 1 to 4."""
    found = [np.ones(()) for _ in range(4)]
    for side in ("read", "made"):
        loc, rho = (
            [v.numpy().astype(float) for n, v in variables.items() if n.startswith(side) and n.endswith(w)]
            for w in ("loc", "rho")
        )
        scale = [np.logaddexp(0, r) for r in rho]
        if isinstance(prior, NormalJeffreysPrior):
            mine = raw_moments(loc[0], scale[0]) if loc else [np.ones(())] * 4
        else:
            m, v = sum(loc) / 2, sum(s**2 for s in scale) / 4  # type: ignore[operator]
            mine = [np.exp(k * m + k * k * v / 2) for k in range(1, 5)]
        found = [one * other for one, other in zip(found, mine, strict=True)]
    return found


def assert_moments(samples: np.ndarray, raw: list[np.ndarray], mean: Any, variance: Any) -> None:
    """Holds samples [n, ...] to their mean and variance, by the exact fourth moments."""
    exact = raw[1] - raw[0] ** 2
    np.testing.assert_allclose(mean, raw[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, exact, rtol=1e-3, atol=1e-6)
    assert_mean(samples, raw[0], np.sqrt(exact))
    fourth = raw[3] - 4 * raw[0] * raw[2] + 6 * raw[0] ** 2 * raw[1] - 3 * raw[0] ** 4
    assert_mean(np.square(samples - raw[0]), exact, np.sqrt(fourth - exact**2))


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_have_the_marginal_mean_and_variance(family: Any) -> None:
    q = posterior(family, (3, 2), spread=0.2)
    draw = tf.function(
        lambda step: tf.map_fn(lambda s: q.sample(noise.seed_pair(s, "draw")), step, fn_output_signature=tf.float32)
    )
    samples = draw(tf.range(20_000, dtype=tf.int64)).numpy().astype(float)
    v = raw_moments(q.weight.loc.numpy().astype(float), q.weight.scale.numpy().astype(float))
    raw = [one * other for one, other in zip(v, scale_moments(q.prior, q.prior_variables), strict=True)]
    left = q.mask.numpy()
    assert (samples[:, ~left] == 0).all()
    assert_moments(samples[:, left], [m[left] for m in raw], q.loc.numpy()[left], np.square(q.scale.numpy()[left]))
    np.testing.assert_allclose(np.square(q.prior_deviation()), scale_moments(q.prior, q.prior_variables)[1], rtol=1e-3)
    np.testing.assert_allclose(
        np.exp(q.log_alpha()), scale_moments(q.prior, q.prior_variables)[1] / scale_moments(q.prior, q.prior_variables)[0] ** 2 - 1, rtol=1e-2
    )  # fmt: skip


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("estimator", ["flipout", "reparameterization", "local"])
def test_outputs_of_every_estimator_have_the_scales_noise_too(estimator: str, prior: str) -> None:
    # Outputs with a scale each and equal weights: every one of them is an independent draw of a product.
    outputs, passes, x = 2000, 6, np.array([[1.0, -2.0, 0.5]], np.float32)
    mu, sigma, spread = np.array([0.8, -0.3, 0.4]), 0.15, 0.3
    layer = LAYERS["Dense", estimator](outputs, prior={"kind": prior, "groups": "output"}, use_bias=False)
    layer.build((None, 3))
    q = layer.posteriors["kernel"]
    q.weight.assign(np.repeat(mu[:, None], outputs, 1), np.full((3, outputs), sigma))
    own = {name: variable for name, variable in q.prior_variables.items() if "shared" not in name}
    for name, variable in q.prior_variables.items():
        if name.endswith("rho"):
            variable.assign(tf.fill(variable.shape, float(rho_of(spread if name in own else 1e-6))))
    samples = np.concatenate([layer(x).numpy().ravel() for _ in range(passes)])[:, None].astype(float)
    u = raw_moments(np.array([x[0] @ mu]), np.array([sigma * np.linalg.norm(x)]))
    z = [m.ravel()[0] for m in scale_moments(q.prior, q.prior_variables)]
    raw = [one * other for one, other in zip(u, z, strict=True)]
    assert_moments(samples, raw, raw[0], raw[1] - raw[0] ** 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", ["input", "output", "both"])
def test_a_group_that_is_gone_costs_nothing_and_gets_no_gradient(family: Any, groups: Any) -> None:
    mask = np.ones(SMALL, bool)
    mask[1], mask[:, 3] = False, False
    q = posterior(family, SMALL, groups, mask=mask)
    smaller = posterior(family, (5, 4), groups, mask=np.ones((5, 4), bool))
    smaller.copy_slice(q, np.ix_([0, 2, 3, 4, 5], [0, 1, 2, 4]))
    np.testing.assert_allclose(q.kl(), smaller.kl(), rtol=1e-5)
    own, once = smaller.prior_variables, 0.0  # of each group, however many weights it has
    for name in (n.removesuffix("_loc") for n in own if n.endswith("_loc")):
        values = zip(*(own[f"{name}_{w}"].numpy().ravel().tolist() for w in ("loc", "rho")), strict=True)
        part = [normal(loc, math.log1p(math.exp(rho))) for loc, rho in values]
        once += sum(float(smaller.prior.kl_of(name.split("_")[-1], p)) for p in part)
    np.testing.assert_allclose(smaller.kl() - smaller.weight.kl(None), once, rtol=1e-3)
    np.testing.assert_allclose(smaller.loc, np.delete(np.delete(q.loc, 1, 0), 3, 1), rtol=1e-6)
    with tf.GradientTape() as tape:
        terms = q.terms("deviation", lambda stream: noise.seed_pair(1, stream))
        loss = tf.reduce_sum(terms.loc + terms.second) + terms.kl
    gone = np.s_[1] if groups == "input" else np.s_[:, 3]
    for variable, gradient in zip(variables_of(q), tape.gradient(loss, variables_of(q)), strict=True):
        assert np.isfinite(gradient).all()
        own = gradient.numpy()
        if groups != "both" and max(variable.shape) > 1:
            assert (own[gone] == 0).all()
    q.keep_only(np.zeros(SMALL, bool))
    assert float(q.kl()) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_assigned_is_the_marginal(family: Any) -> None:
    q = posterior(family, mask=np.ones(SMALL, bool))
    random = np.random.default_rng(2)
    loc, scale = random.normal(size=SMALL), np.exp(random.normal(size=SMALL))
    q.assign(loc)
    np.testing.assert_allclose(q.loc, loc, rtol=1e-5)
    q.assign(2 * loc, scale)
    np.testing.assert_allclose(q.loc, 2 * loc, rtol=1e-5)
    np.testing.assert_allclose(q.scale, scale, rtol=1e-5)


def dense_network() -> Any:
    dense = keras.layers.Dense
    return keras.Sequential([keras.Input((6,)), dense(8, activation="relu", name="hidden"), dense(3, name="logits")])


def conv_network() -> Any:
    conv = keras.layers.Conv2D(4, 3, activation="relu", name="hidden")
    return keras.Sequential(
        [keras.Input((6, 6, 2)), conv, keras.layers.Flatten(), keras.layers.Dense(3, name="logits")]
    )


@pytest.mark.parametrize(("make", "prior"), [(dense_network, "horseshoe"), (conv_network, "normal_jeffreys")])
def test_networks_are_trained_pruned_stored_and_exported(make: Any, prior: str, tmp_path: Path) -> None:
    plain, random = make(), np.random.default_rng(0)
    x = random.normal(size=(40, *plain.input_shape[1:])).astype(np.float32)
    model = bp.bayesianize(plain, prior=prior, train_size=40, layers="local")
    np.testing.assert_allclose(bp.strip(model)(x), plain(x), atol=1e-4)
    model.compile(keras.optimizers.legacy.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [variable.numpy() for variable in model.trainable_weights]
    model.fit(x, random.integers(0, 3, 40), epochs=2, verbose=0)
    moved = [np.abs(v.numpy() - old).max() for v, old in zip(model.trainable_weights, before, strict=True)]
    assert min(moved) > 0
    for q in (layer.posteriors["kernel"] for layer in variational_layers(model)):
        rho = next(
            v for n, v in q.prior_variables.items() if n.startswith("made") and "shared" not in n and n.endswith("rho")
        )
        rho.assign(tf.tensor_scatter_nd_update(rho, [[0] * (len(rho.shape) - 1) + [1]], [4.0]))  # noise
    pruned, report = bp.prune(model, criterion="log_alpha", granularity="unit")
    assert report.requested == {"criterion": "log_alpha"}
    left = pruned.get_layer("hidden").posteriors["kernel"].mask.numpy()
    np.testing.assert_array_equal(left.any(tuple(range(left.ndim - 1))), np.arange(left.shape[-1]) != 1)
    assert 0 < bp.prune(model, sparsity=0.4, granularity="unit")[1].sparsity < 1
    assert set(scores_of(model, granularity="unit", criterion="evidence")) == {"hidden/kernel", "logits/kernel"}
    assert all(row["scale"] > 0 for row in units_table(model))
    bp.save_model(pruned, tmp_path / "run", config={})
    loaded = bp.load_model(tmp_path / "run").model
    for old, new in zip(pruned.weights, loaded.weights, strict=True):
        if not old.name.endswith(("kernel_loc:0", "kernel_rho:0")):
            np.testing.assert_array_equal(old, new)
    expected = bp.strip(pruned)(x).numpy()
    np.testing.assert_array_equal(bp.strip(loaded)(x), expected)
    small = compact(pruned)
    assert small.get_layer("hidden").posteriors["kernel"].shape[-1] == left.shape[-1] - 1
    np.testing.assert_allclose(bp.strip(small)(x), expected, atol=1e-5)
    asked: dict[str, Any] = {"mean": {}, "sampled": {"samples": 3}, "moments": {}}
    for predictive, options in asked.items():
        bp.export(
            loaded, tmp_path / predictive, task="classification", from_logits=True, predictive=predictive, **options
        )  # type: ignore[arg-type]
    mean, *others = (one.outputs["probabilities"] for one in bp.reload([tmp_path / name for name in asked], x))
    np.testing.assert_allclose(mean, tf.nn.softmax(expected), atol=1e-5)
    assert all(np.isfinite(other).all() for other in others)


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_says_its_posterior_and_others_are_refused(prior: str) -> None:
    layer = LAYERS["Dense", "flipout"](3, prior=prior, name="line")
    assert (layer.posterior, layer.get_config()["posterior"]) == ("scaled", "scaled")
    assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()
    with pytest.raises(BpruneError, match=f"^layer 'line': prior '{prior}' needs the posterior 'scaled', got 'normal'"):
        LAYERS["Dense", "flipout"](3, prior=prior, posterior="normal", name="line")
    with pytest.raises(BpruneError, match=r"posterior 'scaled' is for priors over scales, .*, got prior 'normal'"):
        LAYERS["Dense", "flipout"](3, prior="normal", posterior="scaled").build((None, 2))
    with pytest.raises(BpruneError, match=f"prior '{prior}' draws weights to 0"):
        bp.bayesianize(dense_network(), prior=prior, moped=0.1)
    with pytest.raises(BpruneError, match="groups must be one of input, output, both, got 'rows'"):
        bp.bayesianize(dense_network(), prior={"kind": prior, "groups": "rows"})
    with pytest.raises(BpruneError, match="tau0 must be a positive number, got 0"):
        HorseshoePrior(tau0=0)


def test_log_alpha_is_of_scales_and_units_end_by_it() -> None:
    for prior, ending in (("normal_jeffreys", "log_alpha"), ("horseshoe", "log_alpha"), ("ard", "evidence")):
        model = bp.bayesianize(dense_network(), prior=prior)
        assert bp.prune(model, granularity="unit")[1].requested == {"criterion": ending}
    with pytest.raises(PruneError, match="criterion 'log_alpha' needs weights that share scales"):
        scores_of(bp.bayesianize(dense_network()), criterion="log_alpha")


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_that_say_nothing_leave_and_the_others_stay_in_20_of_20_regressions(family: Any) -> None:
    """y = x w + noise of deviation 1, x'x = n: the lower bound depends on the data by least squares b alone, and has no draw."""
    seeds, inputs, relevant, outputs, n = 20, 10, 4, 8, 100
    random = np.random.default_rng(0)
    w = np.zeros((seeds, inputs, outputs))
    w[:, :relevant] = random.normal(size=(seeds, relevant, outputs))
    b = tf.constant((w + random.normal(size=w.shape) / np.sqrt(n)).reshape(-1, outputs), tf.float32)
    q = posterior(family, b.shape, "input", spread=0.1, mask=np.ones(b.shape, bool))
    q.weight.loc_variable.assign(b)
    variables = [v for v in variables_of(q) if v.dtype == tf.float32]
    optimizer = keras.optimizers.legacy.Adam(0.02)
    optimizer._create_all_weights(variables)

    @tf.function
    def fit() -> None:
        for _ in tf.range(1500):
            with tf.GradientTape() as tape:
                loss = q.kl() + 0.5 * n * tf.reduce_sum(tf.square(q.loc - b) + tf.square(q.scale))
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    fit()
    worth = -q.log_alpha()[:, 0].reshape(seeds, inputs)
    end = CRITERIA["log_alpha"].ends_at
    assert (worth[:, :relevant] > end).all()
    assert (worth[:, relevant:] < end).all()
