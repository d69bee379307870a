"""Each kind of layer: the contract, the plain layer's function at its mean, the law of its draws, and everything that follows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

import tfp_bprune as bp
from tests.bounds import FALSE_ALARM
from tests.checks import check_layer, inputs_of
from tests.layers.kinds import CASES, L, class_of, inputs, kind_in, layer_of, plain_model
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs import compact
from tfp_bprune.layers import LAYERS, kind_of, kinds, variational_layers, weights_of
from tfp_bprune.layers.posterior import rho_of
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.prediction.lower import LoweredPositions
from tfp_bprune.prediction.value import Value

ESTIMATORS: tuple[Any, ...] = ("flipout", "reparameterization", "local")
CERTAIN = -30.0  # rho, at which sigma is 1e-13
DRAWS = 1000


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def plain(case: str) -> Any:
    """A model that is the plain layer alone."""
    return plain_model(*CASES[case])


def test_every_kind_is_tried() -> None:
    tried = {kind_in(case).name for case in CASES}
    ours = {kind.name for kind in kinds() if kind.kernels and type(kind).__module__.startswith("tfp_bprune.")}
    assert tried == ours
    assert all((kind.name, estimator) in LAYERS for kind in kinds() for estimator in ESTIMATORS)


ALSO_AS_SAVED_MODEL = ("depthwise 2D", "separable 2D", "transposed 2D", "einsum, heads", "embedding")  # one of a family


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
@pytest.mark.parametrize("kind", [case for case in CASES if not case.startswith(("dense", "convolution"))])
def test_layer_meets_the_contract(kind: str, estimator: Any) -> None:  # those others do in `test_variational`
    name, arguments, shape = CASES[kind]
    arguments = arguments | {"bayesian_bias": estimator == "flipout"}
    saved_model = kind in ALSO_AS_SAVED_MODEL and estimator == "flipout"
    check_layer(LAYERS[name, estimator], arguments, shape, saved_model)


def assert_kept(model: Any, x: np.ndarray, tolerance: float = 1e-5, **options: Any) -> Any:
    """`bayesianize` at no noise gives the model's outputs, and `strip` its weights, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # as bayesianize warns
        bayesian = bp.bayesianize(model, **({"train_size": 10, "strict": True, "rho_init": CERTAIN} | options))
    expected = np.asarray(model(x), np.float64)
    np.testing.assert_allclose(np.asarray(bayesian(x), np.float64), expected, rtol=tolerance, atol=tolerance)
    stripped = bp.strip(bayesian)
    assert [type(layer) for layer in stripped.layers] == [type(layer) for layer in model.layers]
    for ours, theirs in zip(stripped.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(stripped(x), model(x))
    assert list(variational_layers(bayesian))
    return bayesian


@pytest.mark.parametrize("bayesian_bias", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_function_of_the_plain_layer_is_kept(case: str, plain: Any, estimator: Any, bayesian_bias: bool) -> None:
    assert_kept(plain, inputs(case), layers=estimator, bayesian_bias=bayesian_bias)


@pytest.mark.parametrize("kind", ["separable 1D", "separable 2D", "einsum, heads"])
def test_a_posterior_around_trained_weights_keeps_it_too(kind: str) -> None:
    assert_kept(plain_model(*CASES[kind]), inputs(kind), rho_init=None, moped=1e-9)


@pytest.mark.parametrize(("policy", "tolerance"), [("float64", 1e-10), ("mixed_float16", 1e-2)])
def test_policies_of_numbers_are_kept(case: str, policy: str, tolerance: float) -> None:
    model, x = plain_model(*CASES[case], dtype=policy), inputs(case)
    bayesian = assert_kept(model, x, tolerance)
    assert bayesian.layers[-1].dtype_policy.name == policy
    assert bayesian(x).dtype == model(x).dtype


def test_what_keras_takes_for_each_weight_comes_back(case: str) -> None:
    name, arguments, shape = CASES[case]
    stems = [
        key.removesuffix("_initializer")
        for key in class_of(name)(**arguments).get_config()
        if key.endswith("_initializer")
    ]
    given: dict[str, Any] = {}
    # A separable convolution of Keras has a kernel's arguments from its base, which it has no kernel for.
    for stem in [stem for stem in stems if stem != "kernel" or "depthwise" not in stems]:
        given |= {f"{stem}_initializer": "ones", f"{stem}_regularizer": "l2", f"{stem}_constraint": "non_neg"}
    model, x = plain_model(name, arguments, shape, activity_regularizer="l2", **given), inputs(case)
    model.layers[-1].trainable = False
    bayesian = assert_kept(model, x)
    assert not bayesian.layers[-1].trainable_weights
    config, again = model.layers[-1].get_config(), bp.strip(bayesian).layers[-1].get_config()
    assert again == config
    plain_loss = float(tf.add_n(model.losses))
    bayesian(x)
    kl = float(bayesian.layers[-1].last_kl) / 10
    np.testing.assert_allclose(float(tf.add_n(bayesian.losses)) - kl, plain_loss, rtol=1e-3, atol=1e-5 * kl)


# Draws. With one uncertain kernel, and the bias, outputs are linear in all that is uncertain, so that any sum of an example's
# outputs is normal, with a variance that their derivatives by the weights give: mean and variance of a sample have known
# laws. Random sums over all outputs see whether all positions read one draw.


def linear_model(case: str) -> Any:
    """The plain layer alone, without its activation."""
    options = {"activation": None} if "activation" in CASES[case][1] else {}
    return plain_model(*CASES[case], **options)


@pytest.fixture(scope="module")
def directions(case: str) -> tuple[Any, np.ndarray, Any]:
    """The plain layer, linear; two equal examples and another one; four directions over all outputs of an example."""
    linear = linear_model(case)
    size = int(np.prod(linear.output_shape[1:]))
    along = tf.constant(np.random.default_rng(5).normal(size=(size, 4)), tf.float32)
    return linear, inputs(case)[[0, 0, 1]], along


def derivatives(linear: Any, name: str, x: np.ndarray, along: Any) -> np.ndarray:
    """Of the sums of outputs along directions, by each entry of a weight [examples, directions, entries]."""
    variable = getattr(linear.get_layer("layer"), name)
    mean = variable.numpy()

    def summed(values: np.ndarray) -> np.ndarray:
        variable.assign(values.reshape(mean.shape))
        return (tf.reshape(linear(x), [len(x), -1]) @ along).numpy()

    nothing = summed(np.zeros_like(mean))
    found = np.stack([summed(unit) - nothing for unit in np.eye(mean.size, dtype=np.float32)], -1)
    variable.assign(mean)
    return found


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
def test_draws_have_the_law_of_a_draw_of_the_weights(
    case: str, directions: tuple[Any, np.ndarray, Any], estimator: Any
) -> None:
    linear, x, along = directions
    expected = (tf.reshape(linear(x), [len(x), -1]) @ along).numpy()
    model = bp.bayesianize(linear, layers=estimator, rho_init=CERTAIN, bayesian_bias=True)
    layer, rng = model.get_layer("layer"), np.random.default_rng(1)
    scales = {name: rng.uniform(0.1, 0.5, q.shape).astype(np.float32) for name, q in layer.posteriors.items()}
    variances = {
        name: (np.square(derivatives(linear, name, x, along)) * np.square(scale.ravel())).sum(-1)
        for name, scale in scales.items()
    }

    @tf.function
    def sampled() -> Any:
        def draw(_: Any) -> Any:
            return tf.reshape(model(x), [len(x), -1]) @ along

        return tf.map_fn(draw, tf.range(DRAWS), fn_output_signature=tf.float32)

    for kernel in kind_in(case).kernels:
        uncertain = {kernel, "bias"} & set(scales)
        for name, q in layer.posteriors.items():
            q.rho_variable.assign(rho_of(scales[name]) if name in uncertain else tf.fill(q.shape, CERTAIN))
        found = sampled().numpy()
        assert_normal(found, expected, sum(variances[name] for name in uncertain))
        equal = np.isclose(found[:, 0], found[:, 1], rtol=1e-4, atol=1e-4).all(1)
        assert equal.all() if estimator == "reparameterization" else equal.mean() < 0.9


def assert_normal(found: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> None:
    """Mean and variance of normal samples [n, ...]: by the laws of a normal and of a chi-squared variable, exactly."""
    n, each = len(found), FALSE_ALARM / (2 * 2 * mean.size)  # on either side of two statements for each entry
    assert (np.abs(found.mean(0) - mean) < stats.norm.isf(each) * np.sqrt(variance / n)).all()
    ratio = found.var(0, ddof=1) / variance * (n - 1)
    low, high = stats.chi2.ppf([each, 1 - each], n - 1)
    assert low < ratio.min()
    assert ratio.max() < high


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
@pytest.mark.parametrize("name", ["SeparableConv1D", "SeparableConv2D"])
def test_two_kernels_are_drawn_independently(name: str, estimator: Any) -> None:
    # One weight each, of mean 0 and scale 1: the output is a product of two standard normals, which, were they one draw, would
    # be beyond 2 three times as often.
    plain = plain_model(name, {"filters": 1, "kernel_size": 1, "use_bias": False}, (1,) * (int(name[-2]) + 1))
    for weight in plain.weights:
        weight.assign(tf.zeros_like(weight))
    model = bp.bayesianize(plain, layers=estimator, rho_init=float(rho_of(np.float32(1.0))))
    x = tf.ones((1, *plain.input_shape[1:]))
    run = tf.function(lambda: tf.map_fn(lambda _: model(x), tf.range(DRAWS), fn_output_signature=tf.float32))
    chance = 2 * integrate.quad(lambda t: 2 * stats.norm.sf(2 / t) * stats.norm.pdf(t), 0, 40)[0]
    beyond = int((np.abs(run().numpy()) > 2).sum())
    low, high = stats.binom.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], DRAWS, chance)
    assert low <= beyond <= high


# What follows, beside the training that is a part of the contract: pruned by weight and by unit, stored, made smaller, exported.


def classifier(case: str) -> tuple[Any, np.ndarray]:
    """The layer in a network with a head, and six examples."""
    rng = np.random.default_rng(0)
    h = layer_of(case)(entry := keras.Input(CASES[case][2]))
    outputs = L.Dense(3, activation="softmax", name="head")(L.Flatten()(L.Activation("relu")(h)))
    model = keras.Model(entry, outputs)
    model.set_weights([0.5 * rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    return model, inputs(case, 6)


def test_a_layer_is_pruned_kept_and_read_again(case: str, tmp_path: Path) -> None:
    plain, x = classifier(case)
    model = bp.bayesianize(plain, train_size=6)
    pruned, report = bp.prune(model, sparsity=0.6)
    prunable = sum(
        w.loc.size for layer in variational_layers(pruned) for n, w in weights_of(layer).items() if n != "bias"
    )
    assert report.prunable == prunable
    assert report.pruned == round(0.6 * prunable)
    for layer in variational_layers(pruned):
        for weights in weights_of(layer).values():
            assert not weights.loc[~weights.mask].any()
            assert weights.scale is None or not weights.scale[~weights.mask].any()
    bp.save_model(pruned, tmp_path / "model")
    read = bp.load_model(tmp_path / "model").model
    for one, other in zip(read.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(compact(bp.strip(pruned))(x), bp.strip(pruned)(x), rtol=1e-4, atol=1e-6)


def test_units_go_whole_where_channels_are_followed(case: str) -> None:
    shape, kind = CASES[case][2], kind_in(case)
    rng = np.random.default_rng(0)
    entry = keras.Input(shape)
    h = entry if kind.reads_indices else L.Dense(shape[-1], activation="relu", name="before")(entry)
    outputs = L.Dense(2, name="after")(L.Flatten()(L.Activation("relu")(layer_of(case)(h))))
    plain = keras.Model(entry, outputs)
    plain.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in plain.weights])
    x = inputs_of(kind, shape, 5)
    layer = plain.get_layer("layer")
    assert kind_of(layer) is kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned, report = bp.prune(bp.bayesianize(plain), sparsity=0.5, granularity="unit")
    small = compact(pruned)
    followed = kind.flow(layer) != "unknown"
    assert (small.count_params() < pruned.count_params()) == followed
    assert (report.pruned > 0) == followed
    np.testing.assert_allclose(bp.strip(small)(x), bp.strip(pruned)(x), rtol=1e-4, atol=1e-5)


def test_noise_on_a_kernel_is_carried_forward_and_followed_back_exactly(case: str) -> None:
    # Outputs are linear in one kernel: by their derivatives its variances give theirs, and what any two sums have in common.
    plain, x, kind = linear_model(case), inputs(case)[:3], kind_in(case)
    layer = plain.get_layer("layer")
    if not kind.moments(layer):
        assert case in ("einsum, steps", "einsum, right")  # which read a weight at several places
        return
    for kernel in kind.kernels:
        rng = np.random.default_rng(2)
        model = bp.bayesianize(plain, rho_init=CERTAIN)
        scale = rng.uniform(0.1, 0.5, getattr(layer, kernel).shape).astype(np.float32)
        model.get_layer("layer").posteriors[kernel].rho_variable.assign(rho_of(scale))
        steps = LoweredPositions(model.get_layer("layer"), Lowering("dense")).steps
        step = next(step for step in steps if step._one == kernel)
        value = Value(tf.constant(x))
        for before in steps[: steps.index(step)]:
            value = before.mean(value)
        outputs, own = step.moments(value)
        shape = tuple(outputs.mean.shape)
        one, other = (tf.constant(rng.normal(size=shape), tf.float32) for _ in range(2))
        common = step.common([step.laid(value).mean], one, other).numpy()
        units = tf.reshape(tf.eye(scale.size), [scale.size, *scale.shape])
        slopes = np.stack([kind.linear(layer, kernel, step.laid(value).mean, unit).numpy() for unit in units], -1)
        slopes, variances = slopes.reshape(len(x), -1, scale.size), scale.ravel() ** 2
        np.testing.assert_allclose(own.numpy().reshape(len(x), -1), slopes**2 @ variances, rtol=1e-4, atol=1e-6)
        sums = [np.einsum("bo,bow->bw", part.numpy().reshape(len(x), -1), slopes) for part in (one, other)]
        np.testing.assert_allclose(common, (sums[0] * sums[1]) @ variances, rtol=1e-3, atol=1e-4)


def test_a_bias_of_any_shape_is_followed_back() -> None:
    plain, x = plain_model(*CASES["einsum, heads"]), inputs("einsum, heads")
    model = bp.bayesianize(plain, rho_init=CERTAIN, bayesian_bias=True)
    scale = np.random.default_rng(0).uniform(0.1, 0.5, (2, 3)).astype(np.float32)
    model.get_layer("layer").posteriors["bias"].rho_variable.assign(rho_of(scale))
    step, slopes = LoweredPositions(model.get_layer("layer"), Lowering("dense")), np.random.default_rng(1)
    one, other = (tf.constant(slopes.normal(size=(len(x), 3, 2, 3)), tf.float32) for _ in range(2))
    expected = (scale**2 * one.numpy().sum(1) * other.numpy().sum(1)).sum((1, 2))
    np.testing.assert_allclose(step.common([tf.constant(x)], one, other), expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["groups", "depthwise 2D", "separable 2D", "transposed 2D", "embedding"])
def test_what_is_exported_is_the_mean_and_draws_and_moments(kind: str) -> None:
    plain, x = classifier(kind)
    model = bp.bayesianize(plain, layers="reparameterization", rho_init=-2.0)
    mean = Predictor(model, "mean").predict(x)["probabilities"]
    np.testing.assert_allclose(mean, plain(x), rtol=1e-4, atol=1e-6)
    sampled = tf.function(Predictor(model, "sampled", samples=1000).predict)(x)["probabilities"]
    draws = tf.function(lambda: tf.map_fn(lambda _: model(x), tf.range(1000), fn_output_signature=tf.float32))().numpy()
    # Means of 1,000 numbers in [0, 1] with this variance, each off by more than 7 of its deviations once in 1e11.
    error = np.sqrt(2 * draws.var(0) / len(draws)) + 1e-6
    assert (np.abs(sampled - draws.mean(0)) < 7 * error).all()
    moments = Predictor(model, "moments").predict(x)["probabilities"]
    # Up to a quarter of a deviation of one draw: weights of .13 are noisy for a softmax of so few inputs.
    assert (np.abs(moments - sampled) < 0.25 * draws.std(0) + 7 * error).all()
