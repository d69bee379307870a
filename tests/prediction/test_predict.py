"""What an export predicts: named outputs, the split of uncertainty, and agreement with draws of the Keras model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from tests.exports.networks import classifier
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import load
from tfp_bprune.graphs import strip
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout
from tfp_bprune.networks import build
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.cost import FORMS, Costs
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.prediction.predict import entropy
from tfp_bprune.pruning import prune
from tfp_bprune.types import BpruneError, ExportError, Kernels

Build = Callable[..., Any]


def predicted(model: Any, x: np.ndarray, *arguments: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in Predictor(model, *arguments).predict(tf.constant(x)).items()}


@pytest.fixture(scope="module")
def uncertain(mlp: Build) -> Any:
    """A pruned network with enough noise to see."""
    return prune(mlp("flipout", hidden=(12,), rho_init=-1.5, bayesian_bias=True), sparsity=0.85)[0]


@pytest.fixture(scope="module")
def x(images: np.ndarray) -> np.ndarray:
    return images[:40]


@pytest.mark.parametrize("kernels", get_args(Kernels))
def test_the_mean_is_the_stripped_network(uncertain: Any, x: np.ndarray, kernels: Any) -> None:
    outputs = predicted(uncertain, x, "mean", 2, 0, Lowering(kernels))
    assert set(outputs) == {"probabilities", "entropy"}
    expected = tf.nn.softmax(strip(uncertain)(x)).numpy()
    np.testing.assert_allclose(outputs["probabilities"], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs["entropy"], entropy(expected), rtol=1e-4, atol=1e-5)


def test_total_uncertainty_is_aleatoric_plus_epistemic(uncertain: Any, x: np.ndarray) -> None:
    outputs = predicted(uncertain, x, "sampled", 12)
    assert set(outputs) == {"probabilities", "entropy", "aleatoric", "epistemic"}
    np.testing.assert_allclose(outputs["entropy"], outputs["aleatoric"] + outputs["epistemic"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(outputs["entropy"], entropy(outputs["probabilities"]), rtol=1e-5, atol=1e-6)
    for name in ("entropy", "aleatoric", "epistemic"):
        assert (outputs[name] >= 0).all()
        assert (outputs[name] <= np.log(10) + 1e-5).all()
    assert outputs["epistemic"].mean() > 1e-3


def test_a_certain_network_has_no_epistemic_uncertainty(mlp: Build, x: np.ndarray) -> None:
    outputs = predicted(mlp(rho_init=-60.0), x, "sampled", 4)
    np.testing.assert_allclose(outputs["epistemic"], 0, atol=1e-6)


def test_sparse_and_dense_kernels_draw_the_same(uncertain: Any, x: np.ndarray) -> None:
    dense, *sparse = (predicted(uncertain, x, "sampled", 5, 3, Lowering(kernels)) for kernels in FORMS)
    for name in dense:
        for one in sparse:
            np.testing.assert_allclose(dense[name], one[name], rtol=1e-3, atol=1e-5)


def test_moments_have_no_compressed_rows(uncertain: Any) -> None:
    """Noise is followed back through kernels the other way round."""
    with pytest.raises(
        ExportError, match="predictive 'moments' has no csr products: expected kernels 'auto', 'dense' or 'sparse'"
    ):
        Predictor(uncertain, "moments", lowering=Lowering("csr"))
    free = Costs(csr_call=1e-9, csr_entry=1e-9, csr_entry_each=1e-9, csr_turn=1e-9)
    for predictive, forms in {"mean": {"csr"}, "moments": {"dense", "sparse"}}.items():
        products = Predictor(uncertain, predictive, lowering=Lowering(costs=free)).products()  # type: ignore[arg-type]
        assert {product["form"] for product in products.values()} <= forms


def test_the_seed_decides_the_draws(uncertain: Any, x: np.ndarray) -> None:
    predictor = Predictor(uncertain, "sampled", 3, 0)
    first, same = (predictor.predict(tf.constant(x))["probabilities"].numpy() for _ in range(2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, predicted(uncertain, x, "sampled", 3, 1)["probabilities"])


def moments_of_draws(model: Any, x: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of softmax over draws of the Keras model, which has one draw a call."""
    forward = tf.function(lambda: tf.nn.softmax(model(x)))
    each = np.stack([forward().numpy() for _ in range(draws)])
    return each.mean(0), each.std(0) / np.sqrt(draws)


def convolutional() -> Any:
    layers = [
        Conv2DFlipout(3, 3, activation="relu", rho_init=-2.0),
        keras.layers.Flatten(),
        DenseFlipout(4, rho_init=-3.0),
    ]
    return classifier(keras.Sequential([keras.Input((6, 6, 1)), *layers]))


@pytest.mark.parametrize("kind", ["dense", "convolution"])
def test_sampled_probabilities_agree_with_draws_of_the_keras_model(uncertain: Any, x: np.ndarray, kind: str) -> None:
    model = uncertain if kind == "dense" else convolutional()
    inputs = x[:3] if kind == "dense" else np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype(np.float32)
    samples = 600
    mean, error = moments_of_draws(model, inputs, samples)
    outputs = predicted(model, inputs, "sampled", samples)
    # Two means of equally many draws; 5.5 standard errors for 30 numbers at once.
    assert (np.abs(outputs["probabilities"] - mean) <= 5.5 * np.sqrt(2) * error + 1e-5).all()


def test_models_that_end_in_softmax_are_not_squashed_twice(x: np.ndarray) -> None:
    layers = [keras.layers.Flatten(), keras.layers.Dense(10)]
    logits = classifier(keras.Sequential([keras.Input((8, 8, 1)), *layers]))
    plain = predicted(logits, x, "mean")["probabilities"]
    by_layer = keras.Sequential([keras.Input((8, 8, 1)), *logits.layers, keras.layers.Softmax()])
    by_activation = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    )
    by_activation.set_weights(logits.get_weights())
    for model in (by_layer, by_activation):
        np.testing.assert_allclose(predicted(model, x, "mean")["probabilities"], plain, rtol=1e-5, atol=1e-7)


def test_regression_has_noise_and_when_sampled_the_spread_of_weights() -> None:
    data = load("diabetes")
    model = build("mlp", data.info, layers="flipout", noise=40.0, options={"hidden": (8,)}, rho_init=-3.0)
    x = data.examples("test").x[:3]
    mean = predicted(model, x, "mean")
    assert set(mean) == {"mean", "noise_std"}
    np.testing.assert_allclose(mean["mean"], strip(model)(x)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(mean["noise_std"], 40, rtol=1e-5)
    sampled = predicted(model, x, "sampled", 600)
    assert set(sampled) == {"mean", "noise_std", "weights_std"}
    np.testing.assert_allclose(sampled["noise_std"], 40, rtol=1e-4)
    forward = tf.function(lambda: model(x)[:, 0])
    draws = np.stack([forward().numpy() for _ in range(600)])
    error = draws.std(0, ddof=1) / np.sqrt(600)
    assert (np.abs(sampled["mean"] - draws.mean(0)) <= 5.5 * np.sqrt(2) * error).all()
    # A standard deviation from 600 draws has a relative error of about 1 / sqrt(1200), twice here.
    np.testing.assert_allclose(sampled["weights_std"], draws.std(0, ddof=1), rtol=0.25)


def test_entropy_knows_that_nothing_times_its_logarithm_is_nothing() -> None:
    np.testing.assert_allclose(entropy(np.array([[1.0, 0.0], [0.5, 0.5]])), [0, np.log(2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("median",), "unknown predictive 'median'"), (("sampled", 1), "samples must be at least 2")],
)
def test_wrong_requests_are_refused(uncertain: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Predictor(uncertain, *arguments)


def test_models_that_cannot_be_served_are_refused() -> None:
    class Mine(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    with pytest.raises(BpruneError, match="subclassed"):
        Predictor(Mine(), "mean")
    with pytest.raises(BpruneError, match="no weights yet"):
        Predictor(keras.Sequential([keras.layers.Dense(2)]), "mean")
    with pytest.raises(BpruneError, match="unclear"):
        Predictor(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), "mean")
