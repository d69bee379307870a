"""What Keras hands from layer to layer beside tensors arrives in exports too: masks, flags, nested arguments, types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tensorflow.python.autograph.impl import conversion

from tests.bounds import FALSE_ALARM
from tests.prediction.test_answers import predicted
from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.graphs import strip
from tfp_bprune.layers import Conv1DFlipout, DenseFlipout
from tfp_bprune.prediction import Predictor
from tfp_bprune.types import BpruneError, ExportError

L = keras.layers
TOKENS = np.array([[1, 2, 0, 0], [3, 1, 2, 4], [4, 0, 0, 0]], np.int32)
REGRESSION: dict[str, Any] = {"task": "regression"}
LOGITS: dict[str, Any] = {"task": "classification", "from_logits": True}


def tokens(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((4,), dtype="int32"), L.Embedding(5, 3, mask_zero=True), *layers])


def attended() -> Any:
    inputs = keras.Input((4,), dtype="int32")
    x = L.Dense(4)(L.Embedding(5, 3, mask_zero=True)(inputs))
    y = L.Add()([x, L.MultiHeadAttention(2, 2)(x, x)])
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(L.LayerNormalization()(y))))


def explicit_mask() -> Any:
    inputs = keras.Input((4,), dtype="int32")
    mask = tf.not_equal(inputs, 0)
    x = L.Dense(3)(L.Embedding(5, 3)(inputs))
    return keras.Model(inputs, L.Dense(2)(L.LSTM(4)(x, mask=mask)))


def nested_and_masked() -> Any:
    inputs, inside = keras.Input((4,), dtype="int32"), keras.Input((4, 3))
    inner = keras.Model(inside, L.Dense(3)(inside))
    x = inner(L.Embedding(5, 3, mask_zero=True)(inputs))
    return keras.Model(inputs, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


MASKED: dict[str, Any] = {
    "pooled": lambda: tokens(L.Dense(4), L.GlobalAveragePooling1D(), L.Dense(2)),
    "recurrent": lambda: tokens(L.Dense(4, "tanh"), L.LSTM(3), L.Dense(2)),
    "both ways": lambda: tokens(L.Dense(4), L.Dropout(0.5), L.Bidirectional(L.GRU(3)), L.Dense(2)),
    "convolution drops it": lambda: tokens(L.Conv1D(4, 2), L.GlobalAveragePooling1D(), L.Dense(2)),
    "noise and activation": lambda: tokens(
        L.Dense(4), L.GaussianNoise(1.0), L.AlphaDropout(0.1), L.ReLU(), L.LSTM(3), L.Dense(2)
    ),
    "masking": lambda: tokens(L.Dense(4, "relu"), L.Masking(0.0), L.LSTM(3), L.Dense(2)),
    "time distributed": lambda: tokens(L.TimeDistributed(L.Dense(3)), L.LSTM(3), L.Dense(2)),
    "attended": attended,
    "explicit": explicit_mask,
    "nested": nested_and_masked,
}


@pytest.mark.parametrize("predictive", ["mean", "sampled"])
@pytest.mark.parametrize("name", MASKED)
def test_masks_arrive_as_in_keras(name: str, predictive: Any) -> None:
    keras.utils.set_random_seed(0)
    model = MASKED[name]()
    found = predicted(model, predictive, TOKENS, **REGRESSION)
    np.testing.assert_allclose(found["mean"], model.predict(TOKENS, verbose=0), rtol=1e-4, atol=1e-5)
    # Padding that is not masked would change the answer: so that there is something to lose.
    padded = np.where(TOKENS == 0, 1, TOKENS)
    assert not np.allclose(model.predict(padded, verbose=0), found["mean"], atol=1e-3)


def test_moments_pool_without_the_padding() -> None:
    """One layer at four tokens of which two are padding: its noise is that of the mean token."""
    layer = DenseFlipout(3, name="token", rho_init=-1.0)
    model = tokens(layer, L.GlobalAveragePooling1D())
    embedded = model.layers[0].embeddings.numpy()[TOKENS]
    kept = (TOKENS != 0).astype(np.float32)
    pooled = np.einsum("bt,bti->bi", kept / kept.sum(1, keepdims=True), embedded)
    found = predicted(model, "moments", TOKENS, **REGRESSION)
    q = layer.kernel_posterior
    np.testing.assert_allclose(found["mean"], pooled @ q.loc.numpy() + layer.bias.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["weights_std"], np.sqrt(pooled**2 @ q.scale.numpy() ** 2), rtol=1e-4)
    with pytest.raises(ExportError, match=r"layer 'r' is a LSTM that heeds a mask.*use the predictive 'sampled'"):
        Predictor(tokens(DenseFlipout(3), L.LSTM(2, name="r")), "moments", **REGRESSION)


def test_masks_are_repeated_with_the_draws() -> None:
    """Behind a draw that is made on vectors: three tokens of one layer's noise, pooled without the padding."""
    layer = DenseFlipout(6, name="drawn", rho_init=-1.0)
    inputs, numbers = keras.Input((4,), dtype="int32"), keras.Input((2,))
    x = L.Embedding(5, 3, mask_zero=True)(inputs)
    y = L.RepeatVector(4)(L.Dense(3)(layer(numbers)))
    model = keras.Model([inputs, numbers], L.Dense(2)(L.GlobalAveragePooling1D()(L.Add()([x, y]))))
    x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    found = predicted(model, "sampled", [TOKENS, x], samples=2000, **REGRESSION)
    mean = strip(model).predict([TOKENS, x], verbose=0)  # all behind the draw is linear
    error = found["weights_std"] / np.sqrt(2000)
    assert (np.abs(found["mean"] - mean) <= stats.norm.isf(FALSE_ALARM / 12) * error + 1e-5).all()


def functional(body: Any, shape: tuple[Any, ...] = (4,)) -> Any:
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))


class Doubled(L.Layer):
    """A layer of the user's own."""

    def call(self, inputs: Any, more: Any = None) -> Any:
        return 2 * inputs + (0 if more is None else more["a"][0])


OPERATIONS: dict[str, Any] = {
    "reshape by the batch": lambda h: L.Dense(2)(tf.reshape(h, (tf.shape(h)[0], 2, 2))[:, 0]),
    "arithmetic": lambda h: L.Dense(2)(h * 2 + 1 - h / 3),
    "slices": lambda h: L.Dense(2)(tf.concat([h[:, 1:3], h[:, ::2], h[..., :1]], axis=-1)),
    "relu of tf": lambda h: L.Dense(2)(tf.nn.relu(h) + tf.math.maximum(h, 0.1)),
    "lambda": lambda h: L.Dense(2)(L.Lambda(lambda t: tf.square(t))(h)),
    "keywords": lambda h: L.Dense(2)(tf.reshape(tensor=h, shape=[-1, 4])),
    "nested keywords": lambda h: L.Dense(2)(Doubled()(h, more={"a": [h]})),
    "stack": lambda h: L.Dense(2)(tf.stack([h, 2 * h], axis=1)[:, 1]),
    "matmul": lambda h: tf.matmul(h[:, :, None], h[:, None, :])[:, 0, :2],
    "one argument of two": lambda h: L.Dense(2)(tf.reduce_sum(tf.stack([h, h], 1), axis=1)),
}


@pytest.mark.parametrize("predictive", ["mean", "sampled"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_in_the_graph_get_their_arguments(name: str, predictive: Any) -> None:
    first = DenseFlipout(4, name="first", rho_init=-30.0)
    model = functional(lambda x: OPERATIONS[name](first(x)))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    expected = strip(model).predict(x, verbose=0)
    np.testing.assert_allclose(predicted(model, predictive, x, **REGRESSION)["mean"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["reshape by the batch", "arithmetic", "nested keywords"])
def test_operations_take_the_examples_that_are_left(name: str) -> None:
    """Three classes alike, and examples that are settled at once: later draws are of some rows alone."""
    first = DenseFlipout(4, name="first", rho_init=-1.0)
    model = functional(lambda x: L.Dense(2, use_bias=False, kernel_initializer="ones")(OPERATIONS[name](first(x))))
    model = keras.Model(model.input, L.Subtract()([model.output, L.Reshape((2,))(model.input[:, :2])]))
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    x[::2, 0] += 20
    x[1::2, 0] = x[1::2, 1]  # level in every draw
    found = predicted(model, "sampled", x, samples=40, error_rate=0.1, **LOGITS)
    assert set(found["draws"][::2]) != {40}
    assert set(found["draws"][1::2]) >= {40}
    whole = predicted(model, "sampled", x, samples=40, **LOGITS)
    rows = found["draws"] == 40
    np.testing.assert_allclose(found["probabilities"][rows], whole["probabilities"][rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"], whole["probabilities"], atol=0.2)


def dropped(layer: Any, training: Any = True) -> Any:
    """Logits 0 and the sum of two numbers behind dropout: 4, 2 or 0 with probabilities 1/4, 1/2, 1/4 at rate .5."""
    top = L.Dense(2, name="top", use_bias=False)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, top(layer(inputs, training=training)))
    top.kernel.assign([[0.0, 1.0], [0.0, 1.0]])
    return model


ONES = np.ones((3, 2), np.float32)


def nested_dropout(training: bool) -> Any:
    inner = functional(lambda x: L.Dropout(0.5)(x), (2,))
    return dropped(inner, training)


@pytest.mark.parametrize(
    "make", [lambda: dropped(L.Dropout(0.5)), lambda: nested_dropout(True)], ids=["layer", "model"]
)
def test_monte_carlo_dropout_is_drawn(make: Any) -> None:
    model, samples = make(), 4000
    p = 1 / (1 + np.exp(-np.array([0.0, 2.0, 4.0])))
    h = -p * np.log(p) - (1 - p) * np.log1p(-p)
    weights = np.array([0.25, 0.5, 0.25])
    mean, aleatoric = p @ weights, h @ weights
    total = -mean * np.log(mean) - (1 - mean) * np.log1p(-mean)
    assert (round(mean, 3), round(total - aleatoric, 3)) == (0.811, 0.106)
    found = predicted(model, "sampled", ONES, samples=samples, **LOGITS)
    z = stats.norm.isf(FALSE_ALARM / 4) / np.sqrt(samples)
    np.testing.assert_allclose(found["probabilities"][:, 1], mean, atol=z * np.sqrt((p - mean) ** 2 @ weights))
    np.testing.assert_allclose(found["aleatoric"], aleatoric, atol=z * np.sqrt((h - aleatoric) ** 2 @ weights))
    np.testing.assert_allclose(found["epistemic"], total - aleatoric, atol=0.02)
    assert np.ptp(found["probabilities"], 0).max() < 1e-6  # a draw's mask is that of all examples
    # Moments take the sum of the two kept or dropped inputs for normal: mean 2, variance 2 (1 - q) / q.
    normal = stats.norm(2, np.sqrt(2))
    near = normal.expect(lambda z: 1 / (1 + np.exp(-z)))
    carried = predicted(model, "moments", ONES, **LOGITS)
    np.testing.assert_allclose(carried["probabilities"][:, 1], near, atol=2e-3)
    assert abs(near - mean) < 0.01  # the two are as close as that even here
    np.testing.assert_allclose(carried["epistemic"], total - aleatoric, rtol=0.15)
    at_mean = Predictor(model, "mean", **LOGITS)
    assert len(at_mean.dropout) == 1
    np.testing.assert_allclose(at_mean.predict(tf.constant(ONES))["probabilities"][:, 1], p[1], rtol=1e-5)


def test_each_call_of_dropout_has_a_mask_of_its_own() -> None:
    inputs, drop = keras.Input((2,)), L.Dropout(0.5)
    difference = L.Subtract()([drop(inputs, training=True), drop(inputs, training=True)])  # 0 under one mask
    model = keras.Model(inputs, L.Dense(1, use_bias=False, kernel_initializer="ones", name="line")(difference))
    found = predicted(model, "sampled", ONES, samples=40, task="regression")
    assert found["weights_std"].min() > 0.5  # of 2 in each of two numbers; chance of all alike: below 1e-15


@pytest.mark.parametrize("training", [False, None])
def test_dropout_that_was_not_asked_for_is_off(training: bool | None) -> None:
    for model in (dropped(L.Dropout(0.5), training), dropped(functional(lambda x: L.Dropout(0.5)(x), (2,)), training)):
        found = predicted(model, "sampled", ONES, **LOGITS)
        np.testing.assert_allclose(found["probabilities"][:, 1], 1 / (1 + np.exp(-2)), rtol=1e-5)


# (layer, mean and variance of what it makes of a row of ones, correlation of two positions of one channel)
NOISES: dict[str, tuple[Any, float, float, float]] = {
    "dropout": (lambda: L.Dropout(0.2), 1.0, 0.25, 0.0),
    "spatial": (lambda: L.SpatialDropout1D(0.2), 1.0, 0.25, 1.0),
    "noise shape": (lambda: L.Dropout(0.2, noise_shape=(None, 1, None)), 1.0, 0.25, 1.0),
    "gaussian dropout": (lambda: L.GaussianDropout(0.2), 1.0, 0.25, 0.0),
    "gaussian noise": (lambda: L.GaussianNoise(0.5), 1.0, 0.25, 0.0),
}


@pytest.mark.parametrize("name", NOISES)
def test_every_kind_of_noise_has_its_moments(name: str) -> None:
    make, mean, variance, correlation = NOISES[name]
    inputs = keras.Input((2, 3))
    y = make()(inputs, training=True)
    outputs = {"each": L.Flatten()(y), "sum": tf.reduce_sum(y, axis=1)}
    samples = 3000
    found = predicted(keras.Model(inputs, outputs), "sampled", np.ones((2, 2, 3), np.float32), samples, **REGRESSION)
    z = stats.norm.isf(FALSE_ALARM / 30)
    np.testing.assert_allclose(found["each_mean"], mean, atol=z * np.sqrt(variance / samples))
    # The variance of squares is at most 4 times the square of the variance for these laws; the sum of two is alike.
    np.testing.assert_allclose(found["each_weights_std"] ** 2, variance, rtol=z * 2 / np.sqrt(samples))
    np.testing.assert_allclose(
        found["sum_weights_std"] ** 2, 2 * variance * (1 + correlation), rtol=z * 2 / np.sqrt(samples)
    )


def test_alpha_dropout_keeps_mean_and_variance_and_takes_keras_values() -> None:
    layer, samples = L.AlphaDropout(0.3), 2000
    model = functional(lambda x: layer(x, training=True), (1,))
    x = np.full((1, 1), 0.7, np.float32)
    found = predicted(model, "sampled", x, samples, **REGRESSION)
    keras_draws = layer(np.full((200, 1), 0.7, np.float32), training=True).numpy()
    low, high = keras_draws.min(), keras_draws.max()  # the two values that there are
    mean, deviation = 0.3 * low + 0.7 * high, (high - low) * np.sqrt(0.21)
    z = stats.norm.isf(FALSE_ALARM / 4)
    np.testing.assert_allclose(found["mean"], mean, atol=z * deviation / np.sqrt(samples))
    np.testing.assert_allclose(found["weights_std"], deviation, rtol=z / np.sqrt(samples))


class AlwaysDropped(L.Dropout):
    """The books' Monte-Carlo dropout."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return super().call(inputs, training=True)


class Holder(L.Layer):
    """Holds a Bayesian layer where the model cannot see it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = DenseFlipout(3, name="hidden_away")

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


REFUSED: dict[str, tuple[Any, str]] = {
    "class of its own": (lambda x: AlwaysDropped(0.5, name="mc")(x), "layer 'mc' draws random numbers"),
    "lambda": (lambda x: L.Lambda(lambda t: t + tf.random.normal(tf.shape(t)), name="noisy")(x), "layer 'noisy' draws"),
    "operation": (lambda x: x + tf.random.normal(tf.shape(x)), r"layer 'tf\.random\.normal\w*' draws"),
    "recurrent": (lambda x: L.LSTM(2, dropout=0.5, name="r")(L.Reshape((4, 1))(x), training=True), "layer 'r' draws"),
    "augmentation": (lambda x: L.RandomFlip(name="f")(L.Reshape((2, 2, 1))(x), training=True), "layer 'f' draws"),
    "batch statistics": (
        lambda x: L.BatchNormalization(name="bn")(x, training=True), "layer 'bn' is a batch normalization called with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("predictive", ["mean", "sampled"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_random_outside_training_is_refused_by_name(name: str, predictive: Any) -> None:
    body, words = REFUSED[name]
    with pytest.raises(ExportError, match=words) as caught:
        Predictor(functional(body), predictive, **REGRESSION)
    assert "\n" not in str(caught.value)


def test_a_bayesian_layer_within_a_layer_is_the_mean_or_refused() -> None:
    model = functional(lambda x: Holder(name="holder")(x))
    with pytest.raises(BpruneError, match=r"'holder'"):
        Predictor(model, "sampled", **REGRESSION)


def test_augmentation_is_off_in_exports() -> None:
    layers = [L.RandomFlip(), L.RandomRotation(0.2), L.RandomCrop(2, 2), L.Flatten(), L.Dense(2)]
    model = keras.Sequential([keras.Input((4, 4, 1)), *layers])
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    found = predicted(model, "mean", x, **REGRESSION)
    np.testing.assert_allclose(found["mean"], model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"task": "regression"}, {**LOGITS, "error_rate": 0.1}], ids=["all", "settled"])
@pytest.mark.parametrize("kind", ["dense", "convolution", "dropout"])
def test_an_answer_does_not_depend_on_its_batch(kind: str, options: dict[str, Any]) -> None:
    layers: dict[str, list[Any]] = {
        "dense": [DenseFlipout(5, activation="relu", rho_init=-1.0)],
        "convolution": [L.Reshape((6, 1)), Conv1DFlipout(2, 3, rho_init=-1.0), L.Flatten()],
        "dropout": [DenseFlipout(5, activation="relu", rho_init=-1.0)],
    }
    inputs = keras.Input((6,))
    x = keras.Sequential([keras.Input((6,)), *layers[kind]])(inputs)
    x = L.Dropout(0.3)(x, training=True) if kind == "dropout" else x
    model = keras.Model(inputs, DenseFlipout(2, name="top", rho_init=-1.0)(x))
    predict = Predictor(model, "sampled", 30, **options).predict
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    order = np.random.default_rng(1).permutation(500)
    whole = {name: value.numpy() for name, value in predict(tf.constant(x)).items()}
    for rows in (np.arange(1), np.arange(7), np.arange(136), np.arange(137), order):
        for name, value in predict(tf.constant(x[rows])).items():
            np.testing.assert_allclose(value, whole[name][rows], rtol=1e-3, atol=1e-4, err_msg=name)


def siamese(nested: bool) -> Any:
    """The difference of what one layer makes of two inputs: with one draw of its weights for both, exactly 0 for equals."""
    branch: Any = DenseFlipout(3, name="shared", rho_init=0.0)
    if nested:
        branch = keras.Sequential([keras.Input((2,)), branch])
    a, b = keras.Input((2,), name="a"), keras.Input((2,), name="b")
    return keras.Model([a, b], L.Subtract()([branch(a), branch(b)]))


@pytest.mark.parametrize("nested", [False, True])
def test_a_shared_layer_has_one_draw_for_all_of_its_calls(nested: bool) -> None:
    model, samples = siamese(nested), 2000
    x, y = np.random.default_rng(0).normal(size=(2, 4, 2)).astype(np.float32)
    equal = predicted(model, "sampled", [x, x], samples=20, **REGRESSION)
    np.testing.assert_allclose(equal["weights_std"], 0, atol=1e-6)
    found = predicted(model, "sampled", [x, y], samples, **REGRESSION)
    [layer] = [one for one in model._flatten_layers() if one.name == "shared"]
    q = layer.kernel_posterior
    deviation = np.sqrt((x - y) ** 2 @ q.scale.numpy() ** 2)
    z = stats.norm.isf(FALSE_ALARM / 48)
    assert (np.abs(found["mean"] - (x - y) @ q.loc.numpy()) <= z * deviation / np.sqrt(samples)).all()
    np.testing.assert_allclose(found["weights_std"], deviation, rtol=z / np.sqrt(2 * samples) * 1.1)
    with pytest.raises(ExportError, match=r"layer 'shared' is called more than once.*use the predictive 'sampled'"):
        Predictor(model, "moments", **REGRESSION)


def steps_apart(**options: Any) -> Any:
    layer = DenseFlipout(2, name="inner", rho_init=-1.0, **options)
    return keras.Sequential([keras.Input((3, 4)), L.TimeDistributed(layer, name="steps")]), layer


@pytest.mark.parametrize("predictive", ["mean", "sampled", "moments"])
def test_a_bayesian_layer_at_each_step_has_one_draw_for_all(predictive: Any) -> None:
    model, layer = steps_apart()
    model = keras.Model(model.input, {"each": model.output, "sum": L.GlobalAveragePooling1D()(model.output)})
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    loc, scale = layer.kernel_posterior.loc.numpy(), layer.kernel_posterior.scale.numpy()
    found = predicted(model, predictive, x, samples=2000, **REGRESSION)
    spread = {"each": np.sqrt(x**2 @ scale**2), "sum": np.sqrt(x.mean(1) ** 2 @ scale**2)}
    z = stats.norm.isf(FALSE_ALARM / 40) if predictive == "sampled" else 1e-4
    for name, mean in (("each", x @ loc), ("sum", x.mean(1) @ loc)):
        np.testing.assert_array_less(np.abs(found[f"{name}_mean"] - mean), z * spread[name] / np.sqrt(2000) + 1e-5)
        if predictive != "mean":
            np.testing.assert_allclose(found[f"{name}_weights_std"], spread[name], rtol=1.1 * z / np.sqrt(4000) + 1e-4)


def test_the_activation_of_a_layer_at_each_step_counts() -> None:
    model, layer = steps_apart(activation="softmax")
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    expected = tf.nn.softmax(x @ layer.kernel_posterior.loc.numpy())
    np.testing.assert_allclose(predicted(model, "mean", x)["probabilities"], expected, rtol=1e-5)
    np.testing.assert_allclose(predicted(model, "sampled", x, samples=50)["probabilities"], expected, atol=0.3)


UNKNOWN: dict[str, tuple[Any, str]] = {
    "stateful": (
        lambda: keras.Sequential([keras.Input((3, 2), batch_size=1), L.LSTM(2, stateful=True, name="s")]),
        "layer 's' is stateful",
    ),
    "ragged": (
        lambda: keras.Sequential([keras.Input((None, 2), ragged=True, name="r"), L.GlobalAveragePooling1D()]),
        "input 'r' .* is no dense tensor, but a RaggedTensorSpec",
    ),
    "distribution": (
        lambda: functional(lambda x: tfp.layers.DistributionLambda(lambda t: tfp.distributions.Normal(t, 1.0), name="d")(x)),
        r"layer 'd' \(DistributionLambda\) gives a distribution",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_no_export_knows_is_refused_by_name(name: str) -> None:
    build, words = UNKNOWN[name]
    with pytest.raises(BpruneError, match=words) as caught:
        Predictor(build(), "mean", **REGRESSION)
    assert "\n" not in str(caught.value)


def test_an_activation_with_weights_keeps_them() -> None:
    dense = L.Dense(3, activation=L.PReLU(alpha_initializer="ones"))
    model = functional(lambda x: L.Dense(2)(dense(x)))
    dense.activation.alpha.assign([0.1, -2.0, 3.0])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    predictor = Predictor(model, "mean", **REGRESSION)
    np.testing.assert_allclose(predictor.predict(tf.constant(x))["mean"], model(x), rtol=1e-5, atol=1e-6)
    assert any(variable is dense.activation.alpha or variable.shape == (3,) for variable in predictor.variables)


DROPPED: dict[str, Callable[[], Any]] = {
    "Dropout": lambda: L.Dropout(0.3),
    "GaussianDropout": lambda: L.GaussianDropout(0.3),
    "GaussianNoise": lambda: L.GaussianNoise(0.7),
}


@pytest.mark.parametrize("kind", DROPPED)
def test_moments_carry_the_noise_of_dropout_exactly_through_linear_layers(kind: str) -> None:
    keras.backend.reset_uids()
    inputs = keras.Input((6,))
    x = DROPPED[kind]()(DenseFlipout(5, rho_init=-1.0)(inputs), training=True)
    model = keras.Model(inputs, L.Dense(1)(x))
    model.compile("sgd", "mse")
    given = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    layer, kernel = model.layers[1], model.layers[-1].kernel.numpy()[:, 0]
    mean = given @ layer.kernel_posterior.loc.numpy()
    variance = given**2 @ layer.kernel_posterior.scale.numpy() ** 2
    factor = 0.3 / 0.7
    noise = 0.49 if kind == "GaussianNoise" else (mean**2 + variance) * factor
    found = predicted(model, "moments", given)
    np.testing.assert_allclose(found["mean"], mean @ kernel, atol=1e-4)
    np.testing.assert_allclose(found["weights_std"], np.sqrt((variance + noise) @ kernel**2), rtol=1e-4)


@pytest.mark.parametrize("layer", [L.AlphaDropout(0.3), L.Dropout(0.3, noise_shape=(None, 1))])
def test_moments_refuse_dropout_that_is_not_of_each_number(layer: Any) -> None:
    with pytest.raises(ExportError, match="does not drop each number by itself"):
        Predictor(dropped(layer), "moments", **LOGITS)


class Turned(L.Layer):  # type: ignore[misc]
    """A layer whose code branches on a number of the batch, as AutoGraph allows it."""

    def call(self, inputs: Any) -> Any:
        if tf.reduce_sum(inputs) > 0:  # noqa: SIM108  AutoGraph takes no conditional expression
            outputs = inputs
        else:
            outputs = -3.0 * inputs
        return outputs


@pytest.mark.parametrize("predictive", ["mean", "sampled"])
def test_layers_of_users_are_rewritten_by_autograph_and_functions_of_the_package_are_not(predictive: Any) -> None:
    model = keras.Sequential([keras.Input((3,)), DenseFlipout(2, rho_init=-40.0, train_size=2), Turned()])
    predictor = Predictor(model, predictive, samples=2, **REGRESSION)
    kernel = model.layers[0].kernel_posterior.loc.numpy()
    for x in (np.ones((2, 3), np.float32), -np.ones((2, 3), np.float32)):
        linear = x @ kernel
        expected = linear if linear.sum() > 0 else -3 * linear
        np.testing.assert_allclose(predictor.predict(tf.constant(x))["mean"], expected, rtol=1e-5, atol=1e-6)
    assert conversion.is_allowlisted(type(predictor).__init__)
    assert not conversion.is_allowlisted(Turned.call)
