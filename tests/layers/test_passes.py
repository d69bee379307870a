"""A forward pass: one draw of each weight and one KL, however often a layer is called in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import LAYERS, StatelessDropout
from tfp_bprune.types import BpruneError

ESTIMATORS = ("flipout", "reparameterization", "local")
N = 10
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def siamese(estimator: str, nested: bool = False) -> tuple[Any, Any]:
    """f(a) - f(b) with one wide-posterior layer f, and that layer."""
    layer = LAYERS["Dense", estimator](3, train_size=N, rho_init=-1.0, bayesian_bias=True, name="shared")
    a, b, c = (keras.Input((4,)) for _ in range(3))
    branch = keras.Model(c, layer(c)) if nested else layer
    return keras.Model([a, b], keras.layers.Subtract()([branch(a), branch(b)])), layer


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_inputs_of_a_siamese_network_see_equal_weights(estimator: str) -> None:
    model, _ = siamese(estimator)
    for function in (model, tf.function(model)):
        np.testing.assert_array_equal(function([X, X]), 0.0)
    np.testing.assert_array_equal(model.predict([X, X], verbose=0), 0.0)


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
def test_so_they_do_where_the_branch_is_a_nested_model(estimator: str) -> None:
    model, layer = siamese(estimator, nested=True)
    np.testing.assert_array_equal(model([X, X]), 0.0)
    assert len(model.losses) == 1
    np.testing.assert_allclose(model.losses[0], layer.last_kl / N, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_kl_is_counted_once_a_pass_and_the_noise_steps_once(estimator: str) -> None:
    model, layer = siamese(estimator)
    step = int(layer.noise_step)
    model([X, 2 * X])
    assert int(layer.noise_step) == step + 1
    [loss] = model.losses
    np.testing.assert_allclose(loss, layer.last_kl / N, rtol=1e-6)
    model.compile("sgd", lambda y, prediction: 0.0 * prediction)
    history = model.fit([X, X], np.zeros((6, 3)), batch_size=6, verbose=0).history
    np.testing.assert_allclose(history["loss"], layer.last_kl / N, rtol=1e-5)


@pytest.mark.parametrize("adam", [keras.optimizers.Adam, keras.optimizers.legacy.Adam])
@pytest.mark.usefixtures("traced_as_keras_does")
def test_a_step_that_keras_traces_twice_draws_and_counts_once(adam: Any) -> None:
    model, layer = siamese("flipout")
    model.compile(adam(1e-3), lambda y, prediction: 0.0 * prediction)
    step, traces, own = int(layer.noise_step), [], model.train_step
    model.train_step = lambda batch: (traces.append(batch), own(batch))[1]
    history = model.fit([X, X], np.zeros((6, 3)), batch_size=6, verbose=0).history
    assert len(traces) == 2  # the first created the optimizer's variables
    assert int(layer.noise_step) == step + 1
    np.testing.assert_allclose(history["loss"], layer.last_kl / N, rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_two_calls_of_a_model_are_two_draws_in_a_function_too(estimator: str) -> None:
    model, layer = siamese(estimator)

    @tf.function
    def twice() -> Any:
        return model([X, 0 * X]), model([X, 0 * X])

    for first, second in (twice(), (layer(X), layer(X)), (model([X, 0 * X]), model([X, 0 * X]))):
        assert np.abs(first - second).max() > 1e-3


def test_a_shared_layer_keeps_the_distribution_of_its_outputs() -> None:
    # w ~ N(mu, sigma^2) for both inputs: f(x) - f(2 x) = -x w has the variance x^2 sigma^2, 5 x^2 sigma^2 for two draws.
    layer = LAYERS["Dense", "flipout"](1, use_bias=False, rho_init=0.0, name="one")
    a, b = keras.Input((1,)), keras.Input((1,))
    model = keras.Model([a, b], keras.layers.Subtract()([layer(a), layer(b)]))
    layer.kernel_posterior.loc_variable.assign([[0.5]])
    layer.kernel_posterior.rho_variable.assign([[0.0]])
    x = np.ones((2, 1), np.float32)
    draw = tf.function(lambda: model([x, 2 * x])[0, 0])
    draws = np.array([draw() for _ in range(2000)])
    # Var of a variance of n normals is 2 sigma^4 / (n - 1): five of its deviations, false alarms below one in a million.
    sigma2 = np.log(2.0) ** 2
    assert abs(draws.var(ddof=1) - sigma2) < 5 * sigma2 * np.sqrt(2 / 1999)


TYPES = ("float64", "mixed_float16", "float16")
KINDS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("Dense", (4,), {"units": 3}),
    ("Dense", (5, 4), {"units": 1, "use_bias": False}),
    ("Conv2D", (6, 6, 2), {"filters": 1, "kernel_size": 3, "use_bias": False}),
    ("Conv1D", (6, 2), {"filters": 2, "kernel_size": 3}),
]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_layer_trains_in_any_type_of_floats_and_takes_any_numbers(dtype: str, estimator: str) -> None:
    policy = keras.mixed_precision.Policy(dtype)
    layers = [LAYERS[kind, estimator](**arguments, train_size=N, dtype=policy) for kind, _, arguments in KINDS]
    shapes = [shape for _, shape, _ in KINDS]
    inputs = [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, [layer(each) for layer, each in zip(layers, inputs, strict=True)])
    x = [np.random.default_rng(1).normal(size=(4, *shape)) for shape in shapes]
    outputs = model(x)
    model.compile("sgd", "mse")
    losses = model.fit(x, [np.zeros(each.shape) for each in outputs], verbose=0).history
    assert len(losses) == 1 + len(KINDS)
    assert np.isfinite([*losses.values()]).all()
    for layer, shape, each in zip(layers, shapes, outputs, strict=True):
        assert each.dtype == policy.compute_dtype
        assert layer.kernel_posterior.loc_variable.dtype == policy.variable_dtype
        assert layer.last_kl.dtype == tf.float32
        for numbers in ("int32", "uint8", "float16", "float32", "float64"):
            assert layer(np.ones((2, *shape), numbers)).dtype == policy.compute_dtype


def test_float64_keeps_the_mean_to_its_last_bits() -> None:
    layer = LAYERS["Dense", "flipout"](3, rho_init=-60.0, dtype="float64")
    plain = keras.layers.Dense(3, dtype="float64")
    x = np.random.default_rng(2).normal(size=(5, 4))
    layer(x), plain(x)
    plain.kernel.assign(layer.kernel_posterior.loc_variable)
    np.testing.assert_allclose(layer(x), plain(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", ["Dense", "Conv1D", "Conv2D", "Conv3D"])
def test_one_unit_without_bias_keeps_its_static_shape(kind: str, estimator: str) -> None:
    rank = 0 if kind == "Dense" else int(kind[4])
    size: dict[str, Any] = {"units": 1} if kind == "Dense" else {"filters": 1, "kernel_size": 2}
    inputs = keras.Input((*[5] * rank, 1))
    outputs = LAYERS[kind, estimator](**size, use_bias=False)(inputs)
    assert outputs.shape.as_list() == [None, *[4] * rank, 1]
    normalized = keras.Model(inputs, keras.layers.BatchNormalization()(outputs))
    traced = tf.function(normalized).get_concrete_function(tf.TensorSpec([None, *[5] * rank, 1]))
    assert traced.output_shapes.as_list() == [None, *[4] * rank, 1]


def masked_tokens(estimator: str) -> tuple[Any, Any]:
    inputs = keras.Input((4,))
    embedded = keras.layers.Embedding(5, 3, mask_zero=True)(inputs)
    dense = LAYERS["Dense", estimator](2, rho_init=-60.0)
    return inputs, dense(embedded)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masks_of_keras_go_through_a_dense_layer(estimator: str) -> None:
    inputs, h = masked_tokens(estimator)
    model = keras.Model(inputs, [h, keras.layers.GlobalAveragePooling1D()(h), keras.layers.LSTM(2)(h)])
    padded, cut = np.array([[1, 2, 0, 0]]), np.array([[1, 2]])
    each, mean, last = (value.numpy() for value in model(padded.astype(np.float32)))
    np.testing.assert_allclose(mean, each[:, :2].mean(1), rtol=1e-6)
    [lstm] = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    np.testing.assert_allclose(last, lstm(each[:, : cut.shape[1]]), rtol=1e-5, atol=1e-6)


def counting(name: str) -> dict[str, Callable[[Any], Any]]:
    """What counts its draws, called on one example [4]."""
    bayesian, dropout = LAYERS["Dense", "flipout"](3, name=name), StatelessDropout(0.5, name=name)
    model = keras.Sequential([keras.Input((4,)), bayesian])
    dropout(X)
    return {
        "layer": lambda x: bayesian(x[None])[0],
        "model": lambda x: model(x[None])[0],
        "function": tf.function(lambda x: model(x[None])[0]),
        "dropout": lambda x: dropout(x[None], training=True)[0],
    }


@pytest.mark.parametrize("kind", ["layer", "model", "function", "dropout"])
def test_vectorized_map_is_refused_and_map_fn_draws_for_each_example(kind: str) -> None:
    call, equal = counting("counts")[kind], tf.ones((5, 4))
    for function in (tf.vectorized_map, tf.function(tf.vectorized_map)):
        with pytest.raises(BpruneError, match=r"layer 'counts' counts its draws, which tf.vectorized_map cannot do"):
            function(call, equal)
    assert len(np.unique(tf.map_fn(call, equal), axis=0)) > 1


def test_a_scope_of_the_vectorizers_name_is_no_vectorizer() -> None:
    layer = LAYERS["Dense", "flipout"](3, name="counts")

    @tf.function
    def named(x: Any) -> Any:
        with tf.name_scope("loop_body"):
            return layer(x)

    assert named(X).shape == (6, 3)
    with tf.GradientTape() as tape:  # whose Jacobian vectorizes the gradient, not the layer
        x = tf.Variable(X)
        outputs = layer(x)
    assert tape.jacobian(outputs, x).shape == (6, 3, 6, 4)
