"""Each kind of layer: the plain layer's function at its mean, the distribution of its draws, and everything that follows."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs import compact
from tfp_bprune.layers import LAYERS, kind_of, kinds, variational_layers, weights_of
from tfp_bprune.layers.posterior import rho_of
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.prediction.lower import LoweredPositions
from tfp_bprune.prediction.value import Value

L = keras.layers
CASES: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "Dense": ((4,), lambda: L.Dense(3, name="it")),
    "Dense at positions": ((3, 4), lambda: L.Dense(3, name="it")),
    "Conv1D": ((6, 2), lambda: L.Conv1D(3, 2, strides=2, name="it")),
    "Conv1D causal": ((6, 2), lambda: L.Conv1D(3, 2, padding="causal", dilation_rate=2, name="it")),
    "Conv2D": ((4, 4, 2), lambda: L.Conv2D(3, 2, padding="same", name="it")),
    "Conv2D in groups": ((4, 4, 4), lambda: L.Conv2D(6, 2, groups=2, padding="same", name="it")),
    "Conv3D": ((3, 3, 3, 2), lambda: L.Conv3D(2, 2, name="it")),
    "DepthwiseConv1D": ((6, 3), lambda: L.DepthwiseConv1D(2, depth_multiplier=2, name="it")),
    "DepthwiseConv2D": ((5, 5, 3), lambda: L.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same", name="it")),
    "SeparableConv1D": ((6, 2), lambda: L.SeparableConv1D(3, 2, padding="causal", depth_multiplier=2, name="it")),
    "SeparableConv2D": ((5, 5, 2), lambda: L.SeparableConv2D(3, 3, strides=2, depth_multiplier=2, name="it")),
    "Conv1DTranspose": ((4, 2), lambda: L.Conv1DTranspose(3, 3, strides=2, name="it")),
    "Conv2DTranspose": ((3, 3, 2), lambda: L.Conv2DTranspose(3, 3, strides=2, padding="same", name="it")),
    "Conv3DTranspose": ((2, 2, 2, 2), lambda: L.Conv3DTranspose(2, 2, name="it")),
    "EinsumDense": ((3, 4), lambda: L.EinsumDense("abc,cd->abd", (None, 3), bias_axes="d", name="it")),
    "EinsumDense into heads": ((3, 4), lambda: L.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="it")),
    "EinsumDense over the middle": ((3, 4), lambda: L.EinsumDense("abc,bd->adc", (2, 4), name="it")),
    "EinsumDense of any rank": ((3, 4), lambda: L.EinsumDense("...x,xy->...y", 3, bias_axes="y", name="it")),
    "Embedding": ((5,), lambda: L.Embedding(7, 3, name="it")),
}  # fmt: skip
CHANCE = 1e-6  # of a false alarm in one test


def network(name: str, seed: int = 0) -> tuple[Any, np.ndarray]:
    """A model with the layer alone, its weights drawn, and two equal examples and one more."""
    shape, make = CASES[name]
    rng = np.random.default_rng(seed)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, make()(inputs))
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    x = rng.normal(size=(2, *shape)).astype(np.float32)
    if name == "Embedding":
        x = rng.integers(0, 7, (2, *shape)).astype(np.float32)
    return model, x[[0, 0, 1]]


def test_every_kind_is_tried() -> None:
    tried = {kind_of(make()).name for _, make in CASES.values()}  # type: ignore[union-attr]
    ours = {kind.name for kind in kinds() if kind.kernels and type(kind).__module__.startswith("tfp_bprune.")}
    assert tried == ours
    assert all(
        (kind.name, estimator) in LAYERS for kind in kinds() for estimator in ("flipout", "reparameterization", "local")
    )


@pytest.mark.parametrize("bayesian_bias", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_certain_weights_compute_what_the_plain_layer_does_and_come_back(name: str, bayesian_bias: bool) -> None:
    plain, x = network(name)
    for estimator in ("flipout", "reparameterization", "local"):
        model = bp.bayesianize(plain, layers=estimator, rho_init=-30.0, bayesian_bias=bayesian_bias, strict=True)
        np.testing.assert_allclose(model(x), plain(x), rtol=1e-5, atol=1e-5)
        stripped = bp.strip(model)
        assert type(stripped.get_layer("it")) is type(plain.get_layer("it"))
        for one, other in zip(stripped.get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(stripped(x), plain(x))


SINGLE = [(name, kernel) for name in CASES for kernel in kind_of(CASES[name][1]()).kernels]  # type: ignore[union-attr]


@pytest.mark.parametrize("estimator", ["flipout", "reparameterization"])
@pytest.mark.parametrize(("name", "kernel"), SINGLE, ids=lambda part: part)
def test_draws_have_the_distribution_of_a_draw_of_the_weights(name: str, kernel: str, estimator: Any) -> None:
    # With one uncertain kernel outputs are linear in it, so any sum u of an example's outputs is normal, with a variance
    # that their derivatives by the weights give: the sample's mean and variance have known distributions. Sums over
    # positions see whether all of them read one draw.
    plain, x = network(name)
    model = bp.bayesianize(plain, layers=estimator, rho_init=-30.0)
    layer, rng, draws = model.get_layer("it"), np.random.default_rng(1), 1000
    scale = rng.uniform(0.1, 0.5, weights_of(layer)[kernel].loc.shape).astype(np.float32)
    layer.posteriors[kernel].rho_variable.assign(rho_of(scale))
    variable, size = getattr(plain.get_layer("it"), kernel), int(np.prod(plain.output_shape[1:]))
    directions = tf.constant(rng.normal(size=(size, 4)), tf.float32)
    mean = variable.numpy()

    def summed(values: np.ndarray) -> np.ndarray:
        variable.assign(values.reshape(mean.shape))
        return (tf.reshape(plain(x), [len(x), size]) @ directions).numpy()

    sums, nothing = summed(mean), summed(np.zeros_like(mean))
    derivatives = np.stack([summed(unit) - nothing for unit in np.eye(mean.size, dtype=np.float32)], -1)
    deviation = np.sqrt(np.square(derivatives * scale.ravel()).sum(-1))

    @tf.function
    def sampled() -> Any:
        def draw(_: Any) -> Any:
            return tf.reshape(model(x), [len(x), size]) @ directions

        return tf.map_fn(draw, tf.range(draws), fn_output_signature=tf.float32)

    found = sampled().numpy()
    tests = 2 * found[0].size
    z = (found.mean(0) - sums) / (deviation / np.sqrt(draws))
    assert np.abs(z).max() < stats.norm.isf(CHANCE / 2 / tests)
    ratio = found.var(0, ddof=1) / np.square(deviation) * (draws - 1)
    low, high = stats.chi2.ppf([CHANCE / 2 / tests, 1 - CHANCE / 2 / tests], draws - 1)
    assert low < ratio.min()
    assert ratio.max() < high
    equal = np.isclose(found[:, 0], found[:, 1], rtol=1e-4, atol=1e-4).all(1)
    assert equal.all() if estimator == "reparameterization" else equal.mean() < 0.9


def classifier(name: str, hidden: bool = True) -> tuple[Any, np.ndarray]:
    shape, make = CASES[name]
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape)
    h = make()(inputs)
    outputs = L.Dense(3, activation="softmax", name="head")(L.Flatten()(L.Activation("relu")(h)))
    model = keras.Model(inputs, outputs)
    model.set_weights([0.5 * rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    x = rng.integers(0, 7, (6, *shape)) if name == "Embedding" else rng.normal(size=(6, *shape))
    return model, x.astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_trains_is_pruned_kept_and_read_again(name: str, tmp_path: Path) -> None:
    plain, x = classifier(name)
    model = bp.bayesianize(plain, train_size=6)
    before = {n: w.loc for n, w in weights_of(model.get_layer("it")).items()}
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(6) % 3, batch_size=6, epochs=1, verbose=0)
    after = weights_of(model.get_layer("it"))
    assert all((before[n] != after[n].loc).any() for n in before)
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
    read = bp.load_model(tmp_path / "model")
    read = getattr(read, "model", read)
    for one, other in zip(read.get_weights(), pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(compact(bp.strip(pruned))(x), bp.strip(pruned)(x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_units_go_whole_where_channels_are_followed(name: str) -> None:
    shape, make = CASES[name]
    rng = np.random.default_rng(0)
    inputs = keras.Input(shape)
    h = inputs if name == "Embedding" else L.Dense(shape[-1], activation="relu", name="before")(inputs)
    outputs = L.Dense(2, name="after")(L.Flatten()(L.Activation("relu")(make()(h))))
    plain = keras.Model(inputs, outputs)
    plain.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in plain.weights])
    x = rng.integers(0, 7, (5, *shape)) if name == "Embedding" else rng.normal(size=(5, *shape))
    layer = plain.get_layer("it")
    kind = kind_of(layer)
    assert kind is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned, report = bp.prune(bp.bayesianize(plain), sparsity=0.5, granularity="unit")
    small = compact(pruned)
    followed = kind.flow(layer) != "unknown"
    assert (small.count_params() < pruned.count_params()) == followed
    assert (report.pruned > 0) == followed
    np.testing.assert_allclose(bp.strip(small)(x), bp.strip(pruned)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "kernel"), SINGLE, ids=lambda part: part)
def test_noise_on_a_kernel_is_carried_forward_and_followed_back_exactly(name: str, kernel: str) -> None:
    # Outputs are linear in one kernel: by their derivatives its variances give theirs, and what any two sums have in common.
    plain, x = network(name)
    layer, rng = plain.get_layer("it"), np.random.default_rng(2)
    kind = kind_of(layer)
    assert kind is not None
    if not kind.moments(layer):
        assert name == "EinsumDense over the middle"  # which reads a weight at several places
        return
    model = bp.bayesianize(plain, rho_init=-30.0)
    scale = rng.uniform(0.1, 0.5, getattr(layer, kernel).shape).astype(np.float32)
    model.get_layer("it").posteriors[kernel].rho_variable.assign(rho_of(scale))
    steps = LoweredPositions(model.get_layer("it"), Lowering("dense")).steps
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
    slopes = slopes.reshape(len(x), -1, scale.size)
    np.testing.assert_allclose(own.numpy().reshape(len(x), -1), slopes**2 @ (scale.ravel() ** 2), rtol=1e-4, atol=1e-6)
    sums = [np.einsum("bo,bow->bw", part.numpy().reshape(len(x), -1), slopes) for part in (one, other)]
    np.testing.assert_allclose(common, (sums[0] * sums[1]) @ (scale.ravel() ** 2), rtol=1e-3, atol=1e-4)


def test_a_bias_of_any_shape_is_followed_back() -> None:
    plain, x = network("EinsumDense into heads")
    model = bp.bayesianize(plain, rho_init=-30.0, bayesian_bias=True)
    scale = np.random.default_rng(0).uniform(0.1, 0.5, (2, 3)).astype(np.float32)
    model.get_layer("it").posteriors["bias"].rho_variable.assign(rho_of(scale))
    step, slopes = LoweredPositions(model.get_layer("it"), Lowering("dense")), np.random.default_rng(1)
    one, other = (tf.constant(slopes.normal(size=(len(x), 3, 2, 3)), tf.float32) for _ in range(2))
    expected = (scale**2 * one.numpy().sum(1) * other.numpy().sum(1)).sum((1, 2))
    np.testing.assert_allclose(step.common([tf.constant(x)], one, other), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["Conv2D in groups", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "Embedding"]
)
def test_what_is_exported_is_the_mean_and_draws_and_moments(name: str) -> None:
    plain, x = classifier(name)
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


def attending() -> tuple[Any, np.ndarray]:
    """A model with masks, two attentions, and what stands around them in a transformer."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((6,), dtype="int32")
    e = L.Embedding(11, 6, mask_zero=True, name="words")(inputs)
    h = L.MultiHeadAttention(2, 3, name="one")(e, e, use_causal_mask=True)
    h = L.LayerNormalization()(L.Add()([e, h]))
    h = L.Add()([h, L.MultiHeadAttention(2, 3, dropout=0.1, name="two")(h, e)])
    model = keras.Model(inputs, L.Dense(3, activation="softmax", name="head")(L.GlobalAveragePooling1D()(h)))
    model.set_weights([0.5 * rng.normal(size=w.shape).astype(np.float32) for w in model.weights])
    return model, rng.integers(0, 11, (5, 6)).astype(np.int32)


def test_attention_has_bayesian_projections_and_is_pruned_kept_stripped_and_exported(tmp_path: Path) -> None:
    plain, x = attending()
    for estimator in ("flipout", "reparameterization"):
        certain = bp.bayesianize(plain, layers=estimator, rho_init=-30.0, bayesian_bias=True, strict=True)
        np.testing.assert_allclose(certain(x), plain(x), rtol=1e-5, atol=1e-6)
        for one, other in zip(bp.strip(certain).get_weights(), plain.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    model = bp.bayesianize(plain, rho_init=-2.0, train_size=5)
    names = [layer.name for layer in variational_layers(model)]
    parts = [f"{name}_{part}" for name in ("one", "two") for part in ("query", "key", "value", "attention_output")]
    assert sorted(names) == sorted(["words", "head", *parts])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(5) % 3, epochs=1, verbose=0)
    pruned, report = bp.prune(model, sparsity=0.5)
    assert report.sparsity == pytest.approx(0.5, abs=0.5 / report.prunable)
    bp.save_model(pruned, tmp_path / "model")
    pruned.save(tmp_path / "model.keras")
    read = bp.load_model(tmp_path / "model")
    for again in (getattr(read, "model", read), keras.models.load_model(tmp_path / "model.keras")):
        for one, other in zip(again.get_weights(), pruned.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    mean = Predictor(pruned, "mean").predict(x)["probabilities"]
    np.testing.assert_allclose(mean, bp.strip(pruned)(x), rtol=1e-4, atol=1e-6)
    # Draws put into the plain layers by hand; means of 1,000 each, off by more than 7 of their deviations once in 1e11.
    sampled = tf.function(Predictor(pruned, "sampled", samples=1000).predict)(x)["probabilities"]
    by_hand = drawn_by_hand(pruned, x, 1000)
    error = np.sqrt(2 * by_hand.var(0) / len(by_hand)) + 1e-6
    assert (np.abs(sampled - by_hand.mean(0)) < 7 * error).all()


def drawn_by_hand(model: Any, x: np.ndarray, draws: int) -> np.ndarray:
    """Outputs of the stripped network under draws of the weights."""
    plain, rng = bp.strip(model), np.random.default_rng(3)
    held = [
        getattr(plain.get_layer(n), f"_{p}_dense") for n in ("one", "two") for p in ("query", "key", "value", "output")
    ]
    targets = [plain.get_layer("words"), *held, plain.get_layer("head")]
    sources = {layer.name: layer for layer in variational_layers(model)}
    order = [
        "words",
        *(f"{n}_{p}" for n in ("one", "two") for p in ("query", "key", "value", "attention_output")),
        "head",
    ]
    pairs = [(weights_of(sources[name]), target) for name, target in zip(order, targets, strict=True)]
    run, found = tf.function(lambda: plain(x)), []
    for _ in range(draws):
        for weights, target in pairs:
            for name, w in weights.items():
                if w.scale is not None:
                    getattr(target, name).assign(w.loc + w.scale * rng.normal(size=w.loc.shape))
        found.append(run().numpy())
    return np.stack(found)
