"""What users of other libraries for Bayesian and for pruned networks reported, done with this package.

Each test says what happened to them, and where they told it; what is held is what should have happened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bounds import assert_mean, assert_normal_variance
from tests.prediction.test_answers import predicted
from tfp_bprune import GradualPruning, bayesianize, fit, from_arrays, prune, save_model, strip
from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.exports import export
from tfp_bprune.layers import Conv2DFlipout, Conv3DReparameterization, DenseFlipout, set_train_size, variational_layers
from tfp_bprune.types import BpruneError

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype(np.float32)
LABELS = (np.arange(24) % 3).astype(np.int32)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype(np.float32)


def sequential(shape: tuple[int | None, ...], *layers: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


def kernels(model: Any) -> list[Any]:
    return [layer.kernel_posterior for layer in variational_layers(model)]


def zeros(model: Any) -> int:
    """Weights of the posterior means that are exactly 0; none starts there."""
    return sum(int((q.loc.numpy() == 0).sum()) for q in kernels(model))


def agree(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# The divergence


@pytest.mark.parametrize("batch", [1, 7, 24])
def test_the_divergence_in_the_loss_is_that_of_the_data_whatever_the_batch(batch: int) -> None:
    """It was unclear by what the KL has to be divided, the batch, the batches or the examples.

    Sources: tensorflow/probability #651, #396 and #1526.
    """
    model = sequential((6,), DenseFlipout(3, prior="normal"))
    set_train_size(model, 24)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    layer = model.layers[0]
    model(X[:batch])
    q = layer.kernel_posterior
    expected = np.sum(-np.log(q.scale) + (q.scale.numpy() ** 2 + q.loc.numpy() ** 2 - 1) / 2) / 24
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)


def test_calls_in_a_row_do_not_pile_up_divergences() -> None:
    """In eager mode each call added to the list of losses, or none was there at all.

    Sources: tensorflow/probability #127, #567 and #885.
    """
    model = sequential((6,), DenseFlipout(4, prior="normal"), DenseFlipout(3, prior="normal"))
    set_train_size(model, 24)
    first, second = ([float(loss) for loss in (model(X), model.losses)[1]] for _ in range(2))
    assert len(first) == 2
    np.testing.assert_allclose(first, second, rtol=1e-6)  # a normal prior has a closed form: no noise in it


@pytest.mark.parametrize("eager", [False, True])
def test_means_and_deviations_have_gradients(eager: bool) -> None:
    """Optimizers warned of variables without gradients, above all the scales, and the loss stayed where it was.

    Sources: tensorflow/probability #409, #467 and #1305.
    """
    model = sequential((6,), DenseFlipout(5, "relu", bayesian_bias=True), DenseFlipout(3, bayesian_bias=True))
    set_train_size(model, 24)

    def gradients() -> list[Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(X, training=True) ** 2) + sum(model.losses)
        return tape.gradient(loss, model.trainable_weights)

    found = (gradients if eager else tf.function(gradients))()
    assert len(found) == 8  # two of each kernel and of each bias
    assert all(np.any(value.numpy() != 0) for value in found)


def test_the_deviation_is_a_property_and_not_the_raw_variable() -> None:
    """The variable beside the means holds negative numbers, which were taken for standard deviations.

    Source: tensorflow/probability #258.
    """
    layer = DenseFlipout(2, rho_init=-3.0)
    layer.build((None, 4))
    q = layer.kernel_posterior
    assert (q.rho_variable.numpy() < 0).all()
    np.testing.assert_allclose(q.scale, np.log1p(np.exp(q.rho_variable.numpy())), rtol=1e-5)
    np.testing.assert_allclose(q.distribution.stddev(), q.scale, rtol=1e-6)


def test_means_put_in_by_hand_reach_the_draws() -> None:
    """Weights that were assigned to a built layer did not arrive at its sampler.

    Source: piEsposito/blitz-bayesian-deep-learning #39.
    """
    model = sequential((2,), DenseFlipout(1, use_bias=False, rho_init=-1.0))
    q = kernels(model)[0]
    q.loc_variable.assign([[3.0], [-2.0]])
    q.rho_variable.assign([[0.0], [-2.0]])
    x = np.array([[1.0, 2.0]], np.float32)
    calls = tf.function(lambda: tf.map_fn(lambda _: model(x)[0], tf.range(2000), tf.float32, parallel_iterations=1))
    draws, scale = calls().numpy(), np.log1p(np.exp([0.0, -2.0]))
    variance = scale[0] ** 2 + 4 * scale[1] ** 2
    assert_mean(draws, -1.0, np.sqrt(variance))
    assert_normal_variance(draws, -1.0, variance)


# Layers


def test_mixed_bfloat16_trains_and_serves() -> None:
    """Flipout layers refused half precision: a float32 kernel met float16 inputs.

    Sources: tensorflow/probability #1315, keras-team/keras-io #1860.
    """
    layers = [DenseFlipout(8, "relu", dtype="mixed_bfloat16"), DenseFlipout(3, dtype="mixed_bfloat16")]
    model = sequential((6,), *layers, L.Activation("softmax", dtype="float32"))
    set_train_size(model, 24)
    model.compile("sgd", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(X, LABELS, epochs=1, verbose=0).history["loss"]).all()
    assert {weight.dtype for weight in model.trainable_weights} == {tf.float32}
    assert layers[1](layers[0](X)).dtype == tf.bfloat16
    mean = strip(model)
    (w, b, v, c) = mean.get_weights()
    expected = tf.nn.softmax(np.maximum(X @ w + b, 0) @ v + c)
    agree(predicted(model, "mean", X)["probabilities"], expected)
    np.testing.assert_allclose(mean(X), expected, atol=0.02)  # bfloat16 has 8 bits


@pytest.mark.parametrize("size", [(1, 7), (5, 2)])
def test_kernels_that_are_not_square(size: tuple[int, int]) -> None:
    """A conversion read one side of the kernel for both.

    Source: IntelLabs/bayesian-torch #32.
    """
    convolution = L.Conv2D(4, size, strides=(1, 2), padding="same", activation="relu")
    plain = sequential((8, 8, 3), convolution, L.Flatten(), L.Dense(2))
    model = bayesianize(plain, rho_init=-40.0)
    assert kernels(model)[0].shape == (*size, 3, 4)
    agree(model(IMAGES), plain(IMAGES))
    agree(strip(model)(IMAGES), plain(IMAGES))
    agree(predicted(model, "moments", IMAGES, task="regression")["mean"], plain(IMAGES))


def test_a_recurrent_layer_stays_and_what_follows_it_is_bayesian() -> None:
    """A conversion of a network with an LSTM failed, and pruning refused a bidirectional one.

    Sources: IntelLabs/bayesian-torch #14, tensorflow/model-optimization #374, tensorflow/probability #394.
    """
    plain = sequential((5, 3), L.Bidirectional(L.LSTM(4), name="both"), L.Dense(4, "relu"), L.Dense(1))
    with pytest.warns(UserWarning, match="left as they are.*both"):
        model = bayesianize(plain, rho_init=-40.0)
    with pytest.raises(BpruneError, match="both"):
        bayesianize(plain, strict=True)
    x = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    agree(model(x), plain(x))
    pruned, report = prune(model, sparsity=0.5)
    assert report.prunable == 8 * 4 + 4
    assert report.pruned == zeros(pruned) == 18
    for predictive in ("mean", "moments"):  # as one number a row
        agree(predicted(pruned, predictive, x, task="regression")["mean"], strip(pruned)(x)[:, 0])


def test_dense_connections_between_bayesian_layers() -> None:
    """Outputs of probabilistic layers were to be concatenated, as in a densely connected network for regression.

    Sources: tensorflow/tensorflow #44706, tensorflow/probability #263.
    """
    inputs = keras.Input((6,))
    every, h = [inputs], inputs
    for i in range(3):
        every.append(DenseFlipout(4, "relu", name=f"hidden{i}", rho_init=-2.0)(h))
        h = L.Concatenate()(every)
    model = keras.Model(inputs, DenseFlipout(1, name="loc", rho_init=-2.0)(h))
    for granularity in ("weight", "unit"):
        pruned, report = prune(model, sparsity=0.5, granularity=granularity)
        assert report.sparsity >= 0.5
        assert report.pruned == zeros(pruned)
        agree(predicted(pruned, "mean", X, task="regression")["mean"], strip(pruned)(X)[:, 0])


def test_channels_first_has_the_signs_of_flipout_on_its_channels() -> None:
    """Flipout multiplied its signs onto the last axis, where channels were first.

    Source: tensorflow/probability #154.
    """
    first = Conv2DFlipout(5, 3, data_format="channels_first", rho_init=-2.0, name="c", use_bias=False)
    last = Conv2DFlipout(5, 3, rho_init=-2.0, name="c", use_bias=False)
    first.build((None, 3, 8, 8))
    last.build((None, 8, 8, 3))
    first.set_weights(last.get_weights())
    flipped = np.transpose(IMAGES, (0, 3, 1, 2))
    # A graph, for a CPU computes channels first only where TensorFlow may turn the arrays around.
    a = tf.function(first)(flipped).numpy()
    agree(np.transpose(a, (0, 2, 3, 1)), tf.function(last)(IMAGES))


def test_three_dimensions_saved_and_loaded(tmp_path: Path) -> None:
    """A model with a layer for volumes was saved as HDF5 and could not be loaded: functions had become strings.

    Sources: tensorflow/probability #1402, #516, #289, #325 and #1363.
    """
    layers = [Conv3DReparameterization(3, 2, activation="relu"), L.MaxPooling3D(2), L.Flatten(), DenseFlipout(2)]
    model = sequential((5, 5, 5, 1), *layers)
    x = RNG.normal(size=(2, 5, 5, 5, 1)).astype(np.float32)
    for file in ("model.h5", "model.keras"):
        model.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
        agree(strip(loaded)(x), strip(model)(x))
    again = keras.models.model_from_json(model.to_json())
    assert [type(layer) for layer in again.layers] == [type(layer) for layer in model.layers]


# Outputs


def test_several_binary_labels_after_recurrent_branches() -> None:
    """Branches with GRUs ended in a Flipout layer with sigmoids, of which confidences were wanted.

    Source: tensorflow/probability #870.
    """
    inputs = keras.Input((6, 1))
    branches = [L.GRU(4)(inputs), L.GRU(3)(L.Conv1D(4, 1, activation="relu")(inputs))]
    model = keras.Model(inputs, DenseFlipout(5, "sigmoid", rho_init=-1.0)(L.Concatenate()(branches)))
    x = X[..., None]
    mean = predicted(model, "mean", x)
    agree(mean["probabilities"], strip(model)(x))
    p = mean["probabilities"].astype(np.float64)
    agree(mean["entropy"], -p * np.log(p) - (1 - p) * np.log1p(-p))
    sampled = predicted(model, "sampled", x, samples=400)
    assert sampled["probabilities"].shape == (24, 5)
    assert (sampled["epistemic"] > 0).all()
    # The mean of a sigmoid of z ~ N(m, s^2), by Gauss-Hermite quadrature, within the bound of 400 draws.
    hidden = keras.Model(inputs, model.layers[-1].input)(x).numpy().astype(np.float64)
    q, nodes = kernels(model)[0], np.polynomial.hermite_e.hermegauss(60)
    m, s = hidden @ q.loc.numpy() + strip(model).layers[-1].bias.numpy(), np.sqrt(hidden**2 @ q.scale.numpy() ** 2)
    values = 1 / (1 + np.exp(-(m[..., None] + s[..., None] * nodes[0])))
    weights = nodes[1] / nodes[1].sum()
    expected, deviation = values @ weights, np.sqrt(np.maximum(values**2 @ weights - (values @ weights) ** 2, 0))
    z = 6.2  # 120 numbers at 1e-6 together would be 5.7 deviations
    assert (np.abs(sampled["probabilities"] - expected) <= z * deviation / 20 + 1e-6).all()


def test_a_distribution_at_the_end_has_its_say_or_is_named() -> None:
    """`DistributionLambda` after Flipout layers gave tensors that lacked what was asked of them.

    Sources: tensorflow/probability #359 and #1350.
    """
    head = tfp.layers.DistributionLambda(lambda t: tfp.distributions.Normal(t, 1.0), name="noise")
    model = keras.Sequential([keras.Input((6,)), tfp.layers.DenseFlipout(1), head])
    with pytest.raises(BpruneError, match="noise") as caught:
        predicted(model, "mean", X)
    assert len(str(caught.value).splitlines()) == 1


def test_flipout_networks_go_to_litert_by_their_mean(tmp_path: Path) -> None:
    """A converted Flipout network needed random operations that the small runtime does not have.

    Sources: tensorflow/tensorflow #41558 and #40119.
    """
    pytest.importorskip("ai_edge_litert")
    model = sequential((6,), DenseFlipout(4, "relu"), DenseFlipout(3, "softmax"))
    manifest = export(model, tmp_path / "mean", format="litert")
    assert manifest["export_format"] == "litert"
    with pytest.raises(BpruneError, match=r"LiteRT has no .*use the predictive 'mean'"):
        export(model, tmp_path / "sampled", predictive="sampled", format="litert")


# Pruning


def block(shape: tuple[int, ...], name: str) -> Any:
    layers = [L.Conv2D(4, 3, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()]
    return keras.Sequential([keras.Input(shape), *layers], name=name)


def test_models_within_models_are_pruned() -> None:
    """Pruning stopped at a model that was a layer of another: its weights stayed, or an error came.

    Sources: tensorflow/model-optimization #155, #40, #656 and #165 (batch normalization within).
    """
    inputs = keras.Input((8, 8, 3))
    inner = keras.Sequential([keras.Input((8, 8, 4)), block((8, 8, 4), "deep"), L.Conv2D(2, 1)], name="inner")
    plain = keras.Model(inputs, L.Dense(3)(L.GlobalAveragePooling2D()(inner(block((8, 8, 3), "first")(inputs)))))
    weights = 3 * 3 * 3 * 4 + 3 * 3 * 4 * 4 + 4 * 2 + 2 * 3
    for model in (plain, bayesianize(plain)):
        pruned, report = prune(model, sparsity=0.75, criterion="magnitude")
        assert report.prunable == weights
        assert report.pruned == round(0.75 * weights)
        means = [w for w in strip(pruned).get_weights() if w.ndim in (2, 4)]
        assert sum(int((w == 0).sum()) for w in means) == report.pruned


def test_operations_on_tensors_do_not_stop_pruning() -> None:
    """A functional model with TensorFlow's operations in it could not be pruned.

    Source: tensorflow/model-optimization #1051.
    """
    inputs = keras.Input((6,))
    h = L.Dense(8, "relu")(inputs)
    h = tf.concat([h * 2.0, tf.math.tanh(h) - 1.0], axis=-1)
    h = tf.reshape(h, (tf.shape(h)[0], 4, 4))
    plain = keras.Model(inputs, L.Dense(2)(tf.reduce_mean(h, axis=1)))
    model = bayesianize(plain, rho_init=-40.0)
    agree(model(X), plain(X))
    pruned, report = prune(model, sparsity=0.5)
    assert report.pruned == zeros(pruned) == (6 * 8 + 4 * 2) // 2
    agree(predicted(pruned, "mean", X, task="regression")["mean"], strip(pruned)(X))


@pytest.mark.parametrize("bayesian", [True, False])
def test_no_small_weights_leak_when_the_schedule_does_not_meet_the_last_step(bayesian: bool) -> None:
    """With a pruning every 100 steps weights drifted off zero between, or nothing was pruned at all.

    Sources: tensorflow/model-optimization #684 and #601.
    """
    layer = DenseFlipout if bayesian else L.Dense
    model = sequential((6,), layer(20, activation="relu"), layer(3))
    set_train_size(model, 24)
    model.compile(keras.optimizers.legacy.Adam(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    callback = GradualPruning(0.7, every=100)
    model.fit(X, LABELS, batch_size=4, epochs=5, verbose=0, callbacks=[callback])  # 30 steps
    model.fit(X, LABELS, batch_size=4, epochs=1, verbose=0, callbacks=[GradualPruning(0.7, every=7)])
    kernel = [w for w in strip(model).get_weights() if w.ndim == 2]
    gone = sum(int((w == 0).sum()) for w in kernel)
    assert gone == round(0.7 * 180)


def test_pruned_exports_are_smaller(tmp_path: Path) -> None:
    """Files were as large after pruning as before, or larger.

    Sources: tensorflow/model-optimization #760, #162 and #570.
    """
    model = sequential((64,), DenseFlipout(256, "relu"), DenseFlipout(256, "relu"), DenseFlipout(4, "softmax"))
    sizes = [
        export(network, tmp_path / str(i))["bytes"]
        for i, network in enumerate(
            (model, prune(model, sparsity=0.95)[0], prune(model, sparsity=0.95, granularity="unit")[0])
        )
    ]
    dense = 4 * (64 * 256 + 256 * 256 + 256 * 4)
    assert sizes[0] > dense
    assert sizes[0] - sizes[1] > 0.8 * dense
    assert sizes[0] - sizes[2] > 0.8 * dense


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_super_resolution_of_any_size_is_pruned_and_served(granularity: Any, tmp_path: Path) -> None:
    """A network that makes images larger, of no fixed size, could not be pruned.

    Source: tensorflow/model-optimization #928.
    """
    inputs = keras.Input((None, None, 1))
    h = L.Conv2D(6, 5, padding="same", activation="relu")(inputs)
    h = L.Conv2D(4, 3, padding="same")(L.Conv2D(6, 3, padding="same", activation="relu")(h))
    plain = keras.Model(inputs, tf.nn.depth_to_space(h, 2))
    model = bayesianize(plain, rho_init=-40.0)
    pruned, report = prune(model, sparsity=0.4, granularity=granularity)
    assert report.pruned == zeros(pruned)
    assert report.sparsity >= 0.4 - 1 / report.prunable
    export(pruned, tmp_path / "out", task="regression")
    serve = tf.saved_model.load(str(tmp_path / "out" / "1")).signatures["serving_default"]
    for side in ((8, 8), (5, 9)):
        x = RNG.normal(size=(2, *side, 1)).astype(np.float32)
        found = serve(inputs=tf.constant(x))["mean"]
        assert found.shape == (2, 2 * side[0], 2 * side[1])  # one number a pixel
        agree(found, strip(pruned)(x)[..., 0])


# Means in place of draws


def test_the_mean_of_a_trained_network_is_as_good_as_its_draws() -> None:
    """With weights frozen at their means for the test a network fell to chance; with draws it had learned.

    Sources: piEsposito/blitz-bayesian-deep-learning #59 and #69.
    """
    x = RNG.normal(size=(300, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] > 0).astype(np.int32)
    layers = [DenseFlipout(16, use_bias=False), L.BatchNormalization(momentum=0.8), L.ReLU(), DenseFlipout(2)]
    model = sequential((6,), *layers)
    set_train_size(model, 3000)
    model.compile(keras.optimizers.Adam(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=8, verbose=0)
    drawn = np.mean(np.argmax(predicted(model, "sampled", x, samples=10)["probabilities"], -1) == y)
    frozen = np.mean(np.argmax(strip(model).predict(x, verbose=0), -1) == y)
    assert drawn > 0.9
    assert frozen > 0.9


# Models of other makes


class Subclassed(keras.Model):  # type: ignore[misc]
    """A network whose graph only its code knows."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = L.Dense(3)

    def call(self, inputs: Any) -> Any:
        return self.hidden(inputs)


def subclassed() -> Any:
    model = Subclassed()
    model(X)
    return model


def of_keras_3() -> Any:
    keras_3 = pytest.importorskip("keras", minversion="3")
    return keras_3.Sequential([keras_3.layers.Input((6,)), keras_3.layers.Dense(3)])


@pytest.mark.parametrize(("make", "said"), [(subclassed, "Subclassed is a subclassed"), (of_keras_3, "tf_keras model")])
def test_models_that_cannot_be_followed_are_refused_before_anything_is_written(
    make: Any, said: str, tmp_path: Path
) -> None:
    """Models of Keras 3 and subclassed ones were told to be no Keras models, or were saved and could not be loaded.

    Sources: tensorflow/model-optimization #1172, #1167 and #155, tensorflow/tensorflow #70164, keras-team/keras #19894.
    """
    model, place = make(), tmp_path / "out"
    data = from_arrays((X, LABELS), (X, LABELS))
    jobs = (
        bayesianize,
        strip,
        lambda m: prune(m, sparsity=0.5),
        lambda m: export(m, place),
        lambda m: save_model(m, place),
        lambda m: fit(m, data, out=place),
    )
    if make is of_keras_3:  # which comes in through these two
        jobs = tuple(job for number, job in enumerate(jobs) if number not in (0, 2))
    for job in jobs:
        with pytest.raises(BpruneError, match=said) as caught:
            job(model)  # type: ignore[operator]
        assert len(str(caught.value).splitlines()) == 1
        assert not place.exists()
