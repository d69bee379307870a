"""Means and variances through a network: held to integrals, to closed forms and to draws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats

from tests.bounds import FALSE_ALARM
from tests.exports.networks import classifier
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout, GaussianOutput, Variational
from tfp_bprune.layers.rules import rule_of
from tfp_bprune.layers.rules.normals import rectified, transformed
from tfp_bprune.prediction import Predictor, answers, covariance
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.prediction.lower import LoweredDense
from tfp_bprune.prediction.moments import through
from tfp_bprune.prediction.value import Value
from tfp_bprune.pruning import prune
from tfp_bprune.types import ExportError

L = keras.layers
MEANS = np.array([-30.0, -3.0, -0.4, 0.0, 0.7, 5.0, 40.0])
DEVIATIONS = (0.01, 0.3, 1.0, 2.0)
Function = Callable[[Any], Any]


def integral(function: Function, mean: float, deviation: float, kinks: tuple[float, ...]) -> float:
    """The mean of function(z), z normal, cut at the kinks of the function."""
    cuts = sorted({-9.0, 9.0, *(np.clip((k - mean) / deviation, -9, 9) for k in kinks)})

    def integrand(t: float) -> float:
        return float(function(mean + deviation * t)) * stats.norm.pdf(t)

    return sum(integrate.quad(integrand, a, b, epsabs=1e-12)[0] for a, b in itertools.pairwise(cuts))


def exact(function: Function, deviation: float, kinks: tuple[float, ...] = ()) -> np.ndarray:
    """Mean, variance and mean slope [3, means]: the slope by Stein's lemma, cov(function(z), z) / variance."""
    rows = []
    for mean in MEANS:
        first = integral(function, mean, deviation, kinks)
        second = integral(lambda z, c=first: (function(z) - c) ** 2, mean, deviation, kinks)
        slope = integral(lambda z, m=mean, c=first: (function(z) - c) * (z - m), mean, deviation, kinks)
        rows.append((first, second, slope / deviation**2))
    return np.array(rows).T


def found(rule: Callable[..., Any], deviation: float, *arguments: Any) -> np.ndarray:
    mean = tf.constant(MEANS, tf.float32)
    return np.array([part.numpy() for part in rule(mean, tf.fill(mean.shape, np.float32(deviation**2)), *arguments)])


@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_rectifying_is_exact(slope: float, deviation: float) -> None:
    expected = exact(lambda z: max(z, slope * z), deviation, (0.0,))
    mean, variance, mean_slope = found(rectified, deviation, slope)
    np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-6 * deviation)
    # Means of 4,000 standard deviations are among them: the variance must not drown in the square of the mean.
    np.testing.assert_allclose(variance, expected[1], rtol=1e-4, atol=1e-6 * deviation**2)
    np.testing.assert_allclose(mean_slope, expected[2], rtol=1e-5, atol=1e-6)


ACTIVATIONS: dict[str, tuple[Function, tuple[float, ...], float]] = {
    "tanh": (np.tanh, (), 0.01),
    "softplus": (lambda z: np.logaddexp(z, 0), (), 0.01),
    "gelu": (lambda z: z * stats.norm.cdf(z), (), 0.01),
    "relu6": (lambda z: min(max(z, 0.0), 6.0), (0.0, 6.0), 0.06),  # the nodes do not know where its kinks are
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_other_activations_are_close(name: str, deviation: float) -> None:
    function, kinks, tolerance = ACTIVATIONS[name]
    expected = exact(function, deviation, kinks)
    mean, variance, slope = found(transformed, deviation, keras.activations.get(name))
    # Errors in standard deviations of the input. Rounding of a value of 40 in float32 is 4e-4 of the least of them.
    np.testing.assert_allclose(mean, expected[0], rtol=1e-6, atol=tolerance * deviation)
    np.testing.assert_allclose(variance, expected[1], atol=tolerance * deviation**2)
    np.testing.assert_allclose(slope, expected[2], atol=tolerance)


@pytest.mark.parametrize("name", ["relu", "tanh", "softplus", "gelu"])
def test_the_mean_slope_is_the_slope_of_the_mean(name: str) -> None:
    function = keras.activations.get(name)
    rule = rectified if name == "relu" else lambda mean, variance: transformed(mean, variance, function)
    mean = tf.constant(np.linspace(-2, 2, 9), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(mean)
        first, _, slope = rule(mean, tf.fill(mean.shape, 0.49))
    np.testing.assert_allclose(slope, tape.gradient(first, mean), atol=0.02)


@pytest.mark.parametrize("name", ["relu", "tanh", "softplus"])
def test_without_variance_they_are_the_functions_themselves(name: str) -> None:
    layer = L.Activation(name)
    rule = rule_of(layer).matched(layer, tf.math.erf)
    assert rule is not None
    mean = tf.constant(MEANS, tf.float32)
    first, variance, _ = rule(mean, tf.zeros_like(mean))
    np.testing.assert_allclose(first, layer(mean), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, 0, atol=1e-12)


@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_a_dense_layer_is_exact_for_independent_inputs(kernels: Any) -> None:
    rng = np.random.default_rng(0)
    layer = DenseFlipout(3, rho_init=-1.0, bayesian_bias=True)
    layer.build((None, 5))
    linear = LoweredDense(layer, Lowering(kernels))
    m, v = (rng.uniform(0.1, 2, (4, 5)).astype(np.float32) for _ in range(2))
    value, own = linear.moments(Value(tf.constant(m), tf.constant(v)))
    value, own = value.as_rows(), Value(own, columns=value.columns).as_rows().mean
    mu, s = layer.kernel_posterior.loc.numpy(), layer.kernel_posterior.scale.numpy() ** 2
    bias = layer.bias_posterior
    np.testing.assert_allclose(value.mean, m @ mu + bias.loc, rtol=1e-4, atol=1e-5)
    # var(h w) = E[h^2] E[w^2] - E[h]^2 E[w]^2
    expected = (m**2 + v) @ (mu**2 + s) - m**2 @ mu**2 + bias.scale.numpy() ** 2
    np.testing.assert_allclose(value.variance, expected, rtol=1e-4)
    np.testing.assert_allclose(own, expected - v @ mu**2, rtol=1e-4)


def spread(shape: tuple[int, ...], seed: int = 0) -> Value:
    rng = np.random.default_rng(seed)
    mean, variance = rng.normal(size=shape), rng.uniform(0.1, 2, shape)
    return Value(tf.constant(mean, tf.float32), tf.constant(variance, tf.float32))


def linear_variance(layer: Any, value: Value) -> np.ndarray:
    """Of a linear layer and independent inputs: the squares of its Jacobian times their variances."""
    with tf.GradientTape() as tape:
        tape.watch(value.mean)
        outputs = layer(value.mean)
    jacobian = tape.jacobian(outputs, value.mean).numpy()
    flat = jacobian.reshape(int(tf.size(outputs)), -1)
    return (np.square(flat) @ value.variance.numpy().ravel()).reshape(outputs.shape)


def normalization(**options: Any) -> Any:
    layer = L.BatchNormalization(**options)
    layer.build((None, 4, 4, 2))
    rng = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 2, weight.shape))
    return layer


LINEAR: dict[str, Callable[[], Any]] = {
    "normalization": normalization,
    "normalization without scale": lambda: normalization(scale=False),
    "rescaling": lambda: L.Rescaling(-0.5, 3.0),
    "depthwise": lambda: L.DepthwiseConv2D(3, depth_multiplier=2, bias_initializer="normal"),
    "depthwise with strides": lambda: L.DepthwiseConv2D(2, strides=2, padding="same"),
    "flatten": L.Flatten,
    "padding": lambda: L.ZeroPadding2D(1),
    "permute": lambda: L.Permute((3, 1, 2)),
    "dropout": lambda: L.Dropout(0.5),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_square_their_factors(name: str) -> None:
    layer, value = LINEAR[name](), spread((2, 4, 4, 2))
    layer(value.mean)  # builds it
    outputs = through(layer, [value])
    np.testing.assert_allclose(outputs.mean, layer(value.mean), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.variance, linear_variance(layer, value), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["MaxPooling2D", "AveragePooling2D", "GlobalMaxPooling2D", "GlobalAveragePooling2D"])
def test_pooling_keeps_the_mean_variance_of_its_window(name: str) -> None:
    layer, value = getattr(L, name)(), spread((2, 4, 4, 3))
    outputs = through(layer, [value])
    variance = value.variance.numpy()
    windows = variance.mean((1, 2)) if name.startswith("Global") else variance.reshape(2, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(outputs.mean, layer(value.mean), rtol=1e-6)
    np.testing.assert_allclose(outputs.variance, windows, rtol=1e-5)


def test_branches_add_and_join_with_certain_ones() -> None:
    one, two = spread((3, 4)), Value(tf.ones((3, 4)))
    added, joined = through(L.Add(), [one, spread((3, 4), 1)]), through(L.Concatenate(), [two, one])
    np.testing.assert_allclose(added.variance, one.variance + spread((3, 4), 1).variance)
    np.testing.assert_allclose(joined.mean, np.concatenate([two.mean, one.mean], 1))
    np.testing.assert_allclose(joined.variance, np.concatenate([np.zeros((3, 4)), one.variance], 1))


def test_target_units_scale_the_variance() -> None:
    layer, value = GaussianOutput(5.0, 3.0, noise=0.5), spread((4, 1))
    outputs = through(layer, [value])
    np.testing.assert_allclose(outputs.mean, layer(value.mean), rtol=1e-6)
    np.testing.assert_allclose(outputs.variance, np.concatenate([9 * value.variance, np.zeros((4, 1))], 1), rtol=1e-6)


def network(*layers: Any, inputs: tuple[int, ...] = (20,), scale: float = 0.08, seed: int = 1) -> Any:
    """With means as they are after training, of a size that keeps activations in range, and one scale for all."""
    for number, layer in enumerate(layers):
        layer._name = f"layer_{number}"  # draws go by layers' names, which go by what was built before
    model = classifier(keras.Sequential([keras.Input(inputs), *layers]))
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for q in layer.posteriors.values() if isinstance(layer, Variational) else ():
            fan_in = np.prod(q.shape[:-1]) if len(q.shape) > 1 else 1
            q.loc_variable.assign(rng.normal(size=q.shape) * np.sqrt(2 / fan_in))
            q.rho_variable.assign(np.full(q.shape, np.log(np.expm1(scale))))
    return model


def predicted(model: Any, x: np.ndarray, *arguments: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in Predictor(model, *arguments).predict(tf.constant(x)).items()}


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)


def test_one_layer_agrees_with_draws(x: np.ndarray) -> None:
    model = network(DenseFlipout(5), scale=0.2)
    q = model.layers[0].kernel_posterior
    draws, rng = 4000, np.random.default_rng(0)
    # Each row of x on its own: logits are normal and independent, with exactly these moments.
    logits = x @ q.loc.numpy() + rng.normal(size=(draws, 60, 5)) * np.sqrt(x**2 @ q.scale.numpy() ** 2)
    each = tf.nn.softmax(logits).numpy()
    # By the central limit theorem the mean of the draws is within z standard errors of its expectation, in all 300
    # entries at once but with probability FALSE_ALARM. The 64 points stand for the integral with an error of their
    # own, at most 64^-1/2 of the spread of one draw; they fill space evenly, which makes it less than half.
    z = stats.norm.isf(FALSE_ALARM / (2 * each[0].size))
    bound = z * each.std(0) / np.sqrt(draws) + 0.5 * each.std(0) / np.sqrt(64)
    found = predicted(model, x, "moments")
    assert (np.abs(found["probabilities"] - each.mean(0)) <= bound).all()
    entropies = answers.entropy(each).numpy().mean(0)
    np.testing.assert_allclose(found["aleatoric"].mean(), entropies.mean(), rtol=0.01)


def two_hidden() -> Any:
    return network(DenseFlipout(24, activation="relu"), DenseFlipout(24, activation="relu"), DenseFlipout(5))


def test_what_hidden_units_have_in_common_counts(x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_hidden()
    drawn = predicted(model, x, "sampled", 2000)

    def differences() -> tuple[float, float]:
        found = predicted(model, x, "moments")
        probabilities = np.abs(found["probabilities"] - drawn["probabilities"]).mean()
        return probabilities, abs(found["epistemic"].mean() / drawn["epistemic"].mean() - 1)

    probabilities, information = differences()
    assert probabilities < 0.003
    assert information < 0.05
    whole = covariance.covariance

    def alone(*arguments: Any) -> Any:
        rows = whole(*arguments)
        return [[value * float(i == j) for j, value in enumerate(row)] for i, row in enumerate(rows)]

    monkeypatch.setattr(covariance, "covariance", alone)
    probabilities_alone, information_alone = differences()
    assert probabilities_alone > 1.3 * probabilities
    assert information_alone > max(2 * information, 0.05)


def convolutional(bayesian_bias: bool) -> Any:
    layers = [
        Conv2DFlipout(6, 3, activation="relu", bayesian_bias=bayesian_bias),
        L.AveragePooling2D(2),
        Conv2DFlipout(6, 2, activation="relu", bayesian_bias=bayesian_bias),
        L.Flatten(),
        DenseFlipout(5),
    ]
    return network(*layers, inputs=(8, 8, 1), scale=0.15)


@pytest.mark.parametrize("bayesian_bias", [False, True])
def test_convolutions_are_close_to_draws(bayesian_bias: bool) -> None:
    images = np.random.default_rng(0).normal(size=(40, 8, 8, 1)).astype(np.float32)
    model = convolutional(bayesian_bias)
    found, drawn = predicted(model, images, "moments"), predicted(model, images, "sampled", 1000)
    # Weights of 0.15 are noisy for kernels of 9: beyond the first order, to which covariances are followed.
    assert np.abs(found["probabilities"] - drawn["probabilities"]).mean() < 0.015
    np.testing.assert_allclose(found["epistemic"].mean(), drawn["epistemic"].mean(), rtol=0.25)


@pytest.mark.parametrize("granularity", [None, "unit"])
def test_many_classes_after_global_pooling_are_not_taken_for_uncertain(granularity: Any) -> None:
    layers = [Conv2DFlipout(12, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()]
    layers += [Conv2DFlipout(12, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()]
    model = network(*layers, L.GlobalAveragePooling2D(), DenseFlipout(10), inputs=(10, 10, 2), scale=0.03)
    model = prune(model, sparsity=0.5, granularity="unit")[0] if granularity else model
    images = np.random.default_rng(0).normal(size=(20, 10, 10, 2)).astype(np.float32)
    found, drawn = predicted(model, images, "moments"), predicted(model, images, "sampled", 400)
    # Positions that see other pixels are moved apart by the noise, which a variance for each does not know: 2.9 and 2.4
    # times too much where it is all that most logits are drawn by. What noise does beyond the first order stays unknown.
    assert 0.75 < found["epistemic"].mean() / drawn["epistemic"].mean() < 1.4
    assert np.abs(found["probabilities"] - drawn["probabilities"]).mean() < 0.001


def test_a_noise_that_meets_noise_is_known_to_the_second_order() -> None:
    """Two convolutions of one position each are dense layers: then nothing is left out."""
    layers = [Conv2DFlipout(6, 4, use_bias=False), Conv2DFlipout(6, 1, use_bias=False), L.Flatten(), L.Dense(3)]
    model = network(*layers, inputs=(4, 4, 1), scale=0.5)
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    first, second = (layer.kernel_posterior for layer in model.layers[:2])
    flat, mu, s = images.reshape(3, 16), second.loc.numpy()[0, 0], second.scale.numpy()[0, 0] ** 2
    mean, variance = flat @ first.loc.numpy().reshape(16, 6), flat**2 @ first.scale.numpy().reshape(16, 6) ** 2
    hidden = np.einsum("bh,hi,hj->bij", variance, mu, mu) + np.einsum("bi,ij->bij", (mean**2 + variance) @ s, np.eye(6))
    top = model.layers[-1].kernel.numpy()
    assert_covariance(model, images, np.einsum("bij,ik,jl->bkl", hidden, top, top))


def test_the_noise_of_a_convolutions_bias_is_common_to_all_positions() -> None:
    model = network(Conv2DFlipout(2, 3, bayesian_bias=True), L.Flatten(), L.Dense(3), inputs=(6, 6, 1))
    images = np.zeros((1, 6, 6, 1), np.float32)  # so that the bias is all the noise there is
    convolution, dense = model.layers[0], model.layers[-1]
    shared = dense.kernel.numpy().reshape(16, 2, 3).sum(0)
    expected = shared.T @ (shared * convolution.bias_posterior.scale.numpy()[:, None] ** 2)
    assert_covariance(model, images, expected[None])


def assert_covariance(model: Any, x: np.ndarray, expected: np.ndarray) -> None:
    """Holds the covariance of all logits to `expected` [batch, classes, classes]."""
    found: list[Any] = []
    whole = covariance.covariance

    def noted(logits: Any, chosen: Any, sources: Any) -> Any:
        every = tf.tile(tf.eye(logits.mean.shape[-1])[None], [tf.shape(logits.mean)[0], 1, 1])
        rows = whole(logits, every, sources)
        found.append([rows[max(i, j)][min(i, j)] for i in range(len(rows)) for j in range(len(rows))])
        return whole(logits, chosen, sources)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance, "covariance", noted)
        body = Predictor(model, "moments").predict.python_function
        outputs = tf.function(lambda x: (body(x), found[-1])[1])(tf.constant(x))
    np.testing.assert_allclose(np.stack(outputs, -1).reshape(expected.shape), expected, rtol=1e-3, atol=1e-6)


def test_two_linear_layers_have_the_covariance_of_the_formula() -> None:
    model = network(DenseFlipout(6), DenseFlipout(3), inputs=(4,), scale=0.3)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    first, second = (layer.kernel_posterior for layer in model.layers)
    hidden_mean = x @ first.loc.numpy()
    hidden_variance = x**2 @ first.scale.numpy() ** 2
    mu = second.loc.numpy()
    # The first layer's noise reaches all logits through mu; the second's is each logit's own.
    expected = np.einsum("bh,hi,hj->bij", hidden_variance, mu, mu)
    own = (hidden_mean**2 + hidden_variance) @ second.scale.numpy() ** 2
    assert_covariance(model, x, expected + np.einsum("bi,ij->bij", own, np.eye(3)))


def test_regression_knows_the_spread_of_its_weights(x: np.ndarray) -> None:
    hidden = [DenseFlipout(24, activation="relu") for _ in range(2)]
    model = network(*hidden, DenseFlipout(1), GaussianOutput(5.0, 3.0, noise=1.0))
    found, drawn = predicted(model, x, "moments"), predicted(model, x, "sampled", 4000)
    assert set(found) == set(drawn) == {"mean", "noise_std", "weights_std"}
    np.testing.assert_allclose(found["noise_std"], 1, rtol=1e-5)
    # A standard deviation from 4,000 draws is off by 1 / sqrt(8000) = 1.1 % itself, most of what is allowed for.
    assert np.abs(np.log(found["weights_std"] / drawn["weights_std"])).mean() < 0.02
    assert (np.abs(found["mean"] - drawn["mean"]) < 0.15 * drawn["weights_std"]).all()
    certain = network(L.Dense(3), L.Dense(1), GaussianOutput(0.0, 1.0))
    assert (predicted(certain, x, "moments")["weights_std"] == 0).all()


@pytest.mark.parametrize("bayesian", [False, True])
@pytest.mark.parametrize("end", ["softmax", "layer", "activation layer", "nested"])
def test_ends_in_softmax_are_one_and_the_same(x: np.ndarray, end: str, bayesian: bool) -> None:
    dense: Any = DenseFlipout if bayesian else L.Dense
    logits = network(dense(8, activation="tanh", name="hidden"), dense(4, name="top"))
    ends = {"layer": [L.Softmax()], "activation layer": [L.Activation("softmax")]}.get(end, [])
    top = dense(4, activation="softmax" if end == "softmax" else None, name="top")
    model = network(dense(8, activation="tanh", name="hidden"), top, *ends)
    model.set_weights(logits.get_weights())
    if end == "nested":
        model = keras.Sequential([keras.Input((20,)), keras.Sequential(model.layers[:1]), keras.Sequential([top])])
        model = classifier(model)
    found, expected = predicted(model, x, "moments"), predicted(logits, x, "moments")
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert (found["epistemic"].mean() > 1e-3) == bayesian
    if not bayesian:
        np.testing.assert_allclose(found["epistemic"], 0, atol=1e-6)


@pytest.mark.parametrize("layer", [L.LayerNormalization(), L.Activation("softmax"), L.Softmax()])
@pytest.mark.parametrize("kernels", ["dense", "sparse"])
def test_layers_without_a_rule_are_refused_by_name(x: np.ndarray, layer: Any, kernels: Any) -> None:
    model = network(DenseFlipout(4), layer, DenseFlipout(3))
    with pytest.raises(ExportError, match=rf"layer '{layer.name}' .* no rule carries .* use the predictive 'sampled'"):
        predicted(model, x, "moments", 2, 0, Lowering(kernels))


OPERATIONS: dict[str, Function] = {
    "x * 2 + 1": lambda h, x: h * 2 + 1,
    "(1 - x) / 4": lambda h, x: (1 - h) / 4,
    "times what is certain": lambda h, x: tf.math.multiply(x[:, :1], h),
    "Multiply": lambda h, x: L.Multiply()([h, L.Dense(8, name="factor")(x)]),
    "Average": lambda h, x: L.Average()([h, L.Dense(8, name="other")(x)]),
    "Subtract": lambda h, x: L.Subtract()([L.Dense(8, name="other")(x), h]),
    "reshape": lambda h, x: tf.reshape(tf.reshape(h, (tf.shape(h)[0], 2, 4)), (-1, 8)),
    "slices": lambda h, x: h[:, ::2],
    "split and concat": lambda h, x: tf.concat([*tf.split(h, 2, -1)[::-1], x], -1),
    "stack": lambda h, x: tf.reduce_sum(tf.stack([h, tf.zeros_like(h)], 2), 2),
    "pad": lambda h, x: tf.pad(h, [[0, 0], [1, 2]], constant_values=5.0),
    "mean of features": lambda h, x: tf.reduce_mean(h, -1, keepdims=True),
    "transpose": lambda h, x: tf.squeeze(tf.transpose(h[:, None], [0, 2, 1]), 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_linear_operations_carry_what_they_should(x: np.ndarray, name: str) -> None:
    inputs = keras.Input((20,))
    noisy, top = DenseFlipout(8, rho_init=-1.0), L.Dense(3, name="top")
    outputs = top(OPERATIONS[name](noisy(inputs), inputs))
    model = classifier(keras.Model(inputs, outputs))
    rest = keras.Model([noisy.output, inputs], [outputs, tf.identity(inputs)])
    with tf.GradientTape() as tape:
        hidden = tf.constant(x[:5] @ noisy.kernel_posterior.loc.numpy())
        tape.watch(hidden)
        made, _ = rest([hidden, tf.constant(x[:5])])
    slopes = tape.batch_jacobian(made, hidden).numpy()
    variance = x[:5] ** 2 @ noisy.kernel_posterior.scale.numpy() ** 2
    assert_covariance(model, x[:5], np.einsum("bih,bh,bjh->bij", slopes, variance, slopes))
    mean = predicted(model, x[:5], "mean")["probabilities"]
    np.testing.assert_allclose(mean, tf.nn.softmax(made), atol=1e-5)


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("way", ["activation", "operation", "layer"])
def test_activations_are_matched_however_they_are_written(x: np.ndarray, way: str, slope: float) -> None:
    def written(x: Any) -> Any:
        if way == "activation":
            return DenseFlipout(6, activation=L.LeakyReLU(slope), rho_init=-1.0, name="hidden")(x)
        hidden = DenseFlipout(6, rho_init=-1.0, name="hidden")(x)
        return L.LeakyReLU(slope)(hidden) if way == "layer" else tf.nn.leaky_relu(hidden, slope)

    inputs = keras.Input((20,))
    hidden = written(inputs)
    model = keras.Model(inputs, L.Dense(1, kernel_initializer="ones")(hidden))
    model.compile("sgd", "mse")
    q = model.get_layer("hidden").kernel_posterior
    mean, variance = x @ q.loc.numpy(), x**2 @ q.scale.numpy() ** 2
    first, second, _ = rectified(tf.constant(mean), tf.constant(variance), slope)
    found = predicted(model, x, "moments")
    # By quadrature the kink of an operation is met to some per cent.
    tolerance = 0.05 if way == "operation" else 1e-3
    np.testing.assert_allclose(found["mean"], tf.reduce_sum(first, 1), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found["weights_std"] ** 2, tf.reduce_sum(second, 1), rtol=tolerance)


@pytest.mark.parametrize("way", ["activation", "layer"])
def test_slopes_of_each_number_are_kept(x: np.ndarray, way: str) -> None:
    slopes = np.linspace(-0.5, 0.9, 6).astype(np.float32)
    inputs, prelu = keras.Input((20,)), L.PReLU()
    dense = DenseFlipout(6, prelu if way == "activation" else None, rho_init=-1.0, name="hidden")
    hidden = dense(inputs) if way == "activation" else prelu(dense(inputs))
    model = keras.Model(inputs, L.Dense(1, kernel_initializer="ones")(hidden))
    model.compile("sgd", "mse")
    prelu.set_weights([slopes])
    q = dense.kernel_posterior
    mean, variance = x @ q.loc.numpy(), x**2 @ q.scale.numpy() ** 2
    units = [rectified(tf.constant(mean[:, i]), tf.constant(variance[:, i]), float(s)) for i, s in enumerate(slopes)]
    found = predicted(model, x, "moments")
    # By quadrature the kink is met to some per cent.
    np.testing.assert_allclose(found["mean"], sum(first for first, *_ in units), rtol=0.05, atol=0.05)
    np.testing.assert_allclose(found["weights_std"] ** 2, sum(second for _, second, _ in units), rtol=0.05)


def test_a_layer_as_activation_that_is_not_of_each_number_is_refused() -> None:
    model = keras.Sequential([keras.Input((20,)), DenseFlipout(4, L.Softmax(), name="hidden"), L.Dense(2, "softmax")])
    with pytest.raises(ExportError, match="'hidden' has a Softmax as its activation"):
        Predictor(model, "moments")


UNKNOWN: dict[str, Function] = {
    "a product of two": lambda h, x: L.Multiply()([h, DenseFlipout(8)(x)]),
    "tf.math.multiply": lambda h, x: h * h,
    "tf.math.truediv": lambda h, x: 1 / h,
    "tf.linalg.matmul": lambda h, x: tf.matmul(h, tf.ones((8, 2))),
    "LayerNormalization": lambda h, x: L.LayerNormalization()(h),
    "Maximum": lambda h, x: L.Maximum()([h, DenseFlipout(8)(x)]),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_linear_in_what_is_uncertain_is_refused(x: np.ndarray, name: str) -> None:
    inputs = keras.Input((20,))
    model = classifier(keras.Model(inputs, DenseFlipout(3)(UNKNOWN[name](DenseFlipout(8)(inputs), inputs))))
    with pytest.raises(ExportError, match=r"^layer '.*' is a .*, through which no rule carries .*: use the predictive"):
        predicted(model, x, "moments")
