"""Recalibration of batch normalization: against the statistics computed by hand, for the mean and for draws."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Split
from tfp_bprune.layers import DenseFlipout, GaussianOutput, StatelessDropout
from tfp_bprune.training.residuals import measure_noise

RNG = np.random.default_rng(0)
N, FEATURES, UNITS = 1000, 6, 5
X = RNG.normal(1.0, 2.0, (N, FEATURES)).astype(np.float32)


def network(scale: float = 0.5, dropout: bool = False) -> Any:
    inputs = keras.Input((FEATURES,))
    x = StatelessDropout(0.5, name="drop")(inputs) if dropout else inputs
    x = DenseFlipout(UNITS, rho_init=float(np.log(np.expm1(scale))), name="first")(x)
    x = keras.layers.BatchNormalization(name="norm_1")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Dense(UNITS, name="second")(x)
    return keras.Model(inputs, keras.layers.BatchNormalization(name="norm_2")(x))


def moments(model: Any, name: str = "norm_1") -> tuple[np.ndarray, np.ndarray]:
    layer = model.get_layer(name)
    return layer.moving_mean.numpy(), layer.moving_variance.numpy()


@pytest.mark.parametrize("size", [N, 100, 300])
def test_the_statistics_of_the_mean_are_those_of_all_batches_together(size: int) -> None:
    model = network(dropout=True)
    before = [w.numpy() for w in model.weights]
    batches = [(X[i : i + size], np.zeros(len(X[i : i + size]))) for i in range(0, N, size)]
    mean, variance = moments(bp.recalibrate(model, batches))
    z = X @ bp.strip(model).get_layer("first").kernel.numpy()
    np.testing.assert_allclose(mean, z.mean(0), rtol=1e-4, atol=1e-4)
    # Keras divides a batch's squares by its size less one.
    np.testing.assert_allclose(variance, z.var(0), rtol=2 / size + 1e-4)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True))


def test_after_it_every_normalization_gives_mean_0_and_variance_1() -> None:
    model = bp.strip(bp.recalibrate(network(), [X]))
    parts = keras.Model(model.input, [model.get_layer("norm_1").output, model.output])
    for name, out in zip(("norm_1", "norm_2"), parts(X), strict=True):
        _, variance = moments(model, name)
        np.testing.assert_allclose(out.numpy().mean(0), 0.0, atol=1e-3)
        # 1 but for the epsilon that Keras adds to the variance.
        np.testing.assert_allclose(out.numpy().var(0), variance / (variance + 1e-3), rtol=2 / N)


def test_for_draws_the_variance_of_the_weights_is_in_it() -> None:
    model, draws = network(scale=0.5), 4000
    calibrated = bp.recalibrate(model, [X[:50]] * draws, predictive="sampled", batches=draws)
    layer = model.get_layer("first")
    loc, scale = layer.kernel_posterior.loc.numpy(), layer.kernel_posterior.scale.numpy()
    z = X[:50] @ loc
    # Within a batch each example has a kernel of its own, half of whose deviations (the signs) are independent.
    second = (z**2).mean(0) + (X[:50, :, None] ** 2 * scale**2).sum(1).mean(0)
    expected = second - z.mean(0) ** 2
    _, variance = moments(calibrated)
    _, of_mean = moments(bp.recalibrate(model, [X[:50]]))
    # The relative deviation of a mean of `draws` such variances is below 3 / sqrt(draws); 5 of those is beyond 1e-6.
    np.testing.assert_allclose(variance, expected, rtol=15 / np.sqrt(draws))
    assert (of_mean < 0.9 * expected).all()


def test_a_network_without_normalization_comes_back_equal() -> None:
    model = keras.Sequential([keras.Input((FEATURES,)), DenseFlipout(3)])
    copy = bp.recalibrate(model, X)
    assert copy is not model
    assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(model.weights, copy.weights, strict=True))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(bp.BpruneError, match="recalibrate got no data"):
        bp.recalibrate(network(), [])
    with pytest.raises(bp.BpruneError, match="layer 'norm_1' gets activations that are NaN or infinite"):
        bp.recalibrate(network(), np.full((10, FEATURES), np.nan, np.float32))
    with pytest.raises(bp.BpruneError, match="predictive must be 'mean' or 'sampled', got 'moments'"):
        bp.recalibrate(network(), X, predictive="moments")  # type: ignore[arg-type]
    with pytest.raises(bp.BpruneError, match="batches must be at least 1, got 0"):
        bp.recalibrate(network(), X, batches=0)


class Batches(keras.utils.Sequence):  # type: ignore[misc]
    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        return X[100 * i : 100 * i + 100], np.zeros(100)


FORMS: dict[str, Any] = {
    "tensor": lambda: tf.constant(X),
    "rows": lambda: X.tolist(),
    "list of rows": lambda: list(X),
    "pair": lambda: (X, np.zeros(N)),
    "triple": lambda: (tf.constant(X), np.zeros(N), np.ones(N)),
    "one": lambda: (X,),
    "float64": lambda: X.astype(np.float64),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(X).batch(100),
    "dataset of pairs": lambda: tf.data.Dataset.from_tensor_slices((X, np.zeros(N))).batch(100),
    "generator": lambda: (X[i : i + 100] for i in range(0, N, 100)),
    "list of pairs": lambda: [(X[i : i + 100], np.zeros(100)) for i in range(0, N, 100)],
    "tuple of pairs": lambda: tuple((X[i : i + 100], np.zeros(100)) for i in range(0, N, 100)),
    "sequence": Batches,
    "split": lambda: Split("train", X, np.zeros(N)),
}


@pytest.fixture(scope="module")
def calibrated() -> tuple[Any, Any]:
    model = network()
    return model, moments(bp.recalibrate(model, X))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_gives_the_statistics_of_the_array(calibrated: Any, form: str) -> None:
    model, expected = calibrated
    for ours, theirs in zip(moments(bp.recalibrate(model, FORMS[form]())), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def two_inputs(names: bool) -> Any:
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    out = keras.layers.BatchNormalization(name="norm_1")(keras.layers.Subtract()([a, b]))
    return keras.Model({"a": a, "b": b} if names else [a, b], out)


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {"b": b, "a": a},
        lambda a, b: ([a, b], np.zeros(N)),
        lambda a, b: ({"a": tf.constant(a), "b": b}, np.zeros(N)),
        lambda a, b: [([a[:500], b[:500]], np.zeros(500)), ([a[500:], b[500:]], np.zeros(500))],
        lambda a, b: tf.data.Dataset.from_tensor_slices(((a, b), np.zeros(N))).batch(100),
        lambda a, b: tf.data.Dataset.from_tensor_slices({"a": a, "b": b}).batch(100),
    ],
)
def test_several_inputs(names: bool, form: Any) -> None:
    a, b = X[:, :3], 2 * X[:, 3:]
    mean, variance = moments(bp.recalibrate(two_inputs(names), form(a, b)))
    np.testing.assert_allclose(mean, (a - b).mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, (a - b).var(0), rtol=0.03)  # Keras divides by the batch's size less one


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tf.data.Dataset.from_tensor_slices(X), r"batch with shape \(6,\) for input .*expected \(None, 6\)"),
        ([X, np.zeros(N)], r"list of arrays of shapes \(1000, 6\), \(1000,\).*tuple \(x, y\)"),
        ((X, np.zeros(3)), "arrays of 3 and 1000 examples: expected equal numbers"),
        ((X, X, X, X), r"tuple of 4: expected \(x, y\)"),
        ([X, X[:, :3]], r"batch with shape \(1000, 3\)"),
        ({"wrong": X}, r"inputs named \['wrong'\]: expected"),
        ("images", "got a str"),
        (3, "got a int"),
        ([[X, X]], r"batch with shape \(1, 2, 1000, 6\)"),
    ],
)
def test_what_is_not_certain_is_refused(calibrated: Any, data: Any, message: str) -> None:
    with pytest.raises(bp.BpruneError, match=message) as error:
        bp.recalibrate(calibrated[0], data)
    assert "\n" not in str(error.value)


TARGETS = X @ np.arange(1.0, FEATURES + 1) + RNG.normal(0, 3.0, N)


def regression(scale: float, noise: float | None = None) -> Any:
    inputs = keras.Input((FEATURES,))
    x = DenseFlipout(1, rho_init=float(np.log(np.expm1(scale))), name="line")(inputs)
    model = keras.Model(inputs, GaussianOutput(2.0, 5.0, noise, name="noise")(x))
    model.get_layer("line").kernel_posterior.loc_variable.assign(np.arange(1.0, FEATURES + 1)[:, None] / 5)
    return model


def test_the_noise_is_the_root_mean_square_residual() -> None:
    model = regression(0.01)
    pruned, _ = bp.prune(model, sparsity=0.5)
    for network in (model, pruned):
        calibrated = bp.recalibrate(network, (X, TARGETS[:, None]))
        mean, noise = bp.strip(calibrated)(X).numpy().T
        np.testing.assert_allclose(noise, np.sqrt(np.mean((TARGETS - mean) ** 2)), rtol=1e-4)
        for data in (X, tf.data.Dataset.from_tensor_slices(X).batch(50)):  # no targets
            assert float(bp.strip(bp.recalibrate(network, data))(X)[0, 1]) == float(bp.strip(network)(X)[0, 1])
    fixed = bp.recalibrate(regression(0.01, noise=7.0), (X, TARGETS))
    np.testing.assert_allclose(bp.strip(fixed)(X)[:, 1], 7.0, rtol=1e-5)


def test_for_draws_the_noise_and_the_weights_make_the_residuals_together() -> None:
    model = regression(0.1)
    mean = bp.strip(model)(X).numpy()[:, 0]
    spread = 5**2 * np.mean((X**2).sum(1)) * 0.1**2
    expected = np.sqrt(np.mean((TARGETS - mean) ** 2) - spread)
    noise = float(bp.recalibrate(model, (X, TARGETS), predictive="sampled").layers[-1](tf.zeros((1, 1)))[0, 1])
    # About 20 draws of 6 weights for each of 10 batches: the spread, a fifth of the squares, is off by 10 % at 5 deviations
    # and with it the noise by 2 %.
    np.testing.assert_allclose(noise, expected, rtol=0.05)


def test_targets_that_do_not_fit_are_refused() -> None:
    with pytest.raises(bp.BpruneError, match=r"targets of shape \(100, 2\) for means of shape \(100, 1\)"):
        bp.recalibrate(regression(0.01), (X, np.zeros((N, 2))))


def test_the_noise_is_what_the_unbiased_variance_of_draws_leaves() -> None:
    random, calls, layer = np.random.default_rng(0), tf.Variable(-1), GaussianOutput(loc=1.0, scale=2.0)
    layer.build((None, 1))
    draws, y = random.normal(size=(3, 8)).astype(np.float32), 4 * random.normal(size=8)

    class Drawn:
        """A network that gives the draws, one after the other."""

        outputs = (SimpleNamespace(_keras_history=SimpleNamespace(layer=layer)),)

        def __call__(self, x: Any, training: bool) -> Any:
            mean = tf.gather(tf.constant(draws), calls.assign_add(1))[:, None]
            return tf.concat([mean, tf.ones_like(mean)], -1)

    measure_noise(Drawn(), [(tf.zeros([8, 1]), y)], 3)
    squares, spread = np.mean((y - draws.mean(0)) ** 2), np.mean(draws.var(0, ddof=1))
    assert 2 * float(tf.math.softplus(layer.noise_rho)) == pytest.approx(
        np.sqrt(squares - (1 + 1 / 3) * spread), rel=1e-5
    )
