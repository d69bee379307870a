"""What copies of a model keep: adapted state, activations with weights, constraints, frozen flags, layers within layers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.types import BpruneError, TrainingError

L = keras.layers
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
NO_NOISE = -60.0  # of rho


def sequential(*layers: Any, shape: tuple[int, ...] = (4,)) -> Any:
    return keras.Sequential([keras.Input(shape), *layers])


def copies_of(model: Any) -> dict[str, Any]:
    """Every kind of copy that computes the same function."""
    bayesian = bp.bayesianize(model, rho_init=NO_NOISE)
    return {
        "bayesian": bayesian,
        "stripped": bp.strip(bayesian),
        "pruned": bp.prune(bayesian, sparsity=0.0)[0],
        "plain pruned": bp.prune(model, sparsity=0.0)[0],
    }


def test_a_normalization_keeps_what_it_was_adapted_to(tmp_path: Path) -> None:
    normalization = L.Normalization()
    normalization.adapt(np.array([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]], np.float32))
    model = sequential(normalization, L.Dense(1, kernel_initializer="ones"), shape=(2,))
    x = np.array([[3 + np.sqrt(8 / 3), 30.0]], np.float32)  # one deviation above the mean, and the mean: 1 + 0
    bp.save_model(model, tmp_path / "model")
    for copy in (model, bp.load_model(tmp_path / "model").model, *copies_of(model).values()):
        np.testing.assert_allclose(copy(x), [[1.0]], rtol=1e-6)


PREPROCESSING: dict[str, tuple[Any, Any, list[Any]]] = {
    "bins": (L.Discretization, {"num_bins": 3}, [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]),
    "words": (L.StringLookup, {}, [["a"], ["b"], ["a"], ["c"]]),
    "numbers": (L.IntegerLookup, {}, [[7], [8], [7], [9]]),
    "text": (L.TextVectorization, {"output_sequence_length": 2}, [["a b"], ["b"], ["a a"], ["c b"]]),
    "categories": (lambda **k: L.CategoryEncoding(4, **k), {}, [[0], [1], [3]]),
    "hashes": (lambda **k: L.Hashing(4, **k), {}, [[0], [1], [3]]),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_a_preprocessing_layer_is_copied_and_stored_with_its_state(name: str, tmp_path: Path) -> None:
    make, arguments, rows = PREPROCESSING[name]
    data = tf.constant(rows)
    layer = make(**arguments)
    if name not in ("categories", "hashes"):
        layer.adapt(data)
    inputs = keras.Input((1,), dtype=data.dtype)
    numbers = L.Flatten()(tf.cast(layer(inputs), tf.float32))
    model = keras.Model(inputs, L.Dense(2, bias_initializer="ones")(numbers))
    expected = model(data)
    assert len(np.unique(expected, axis=0)) > 1
    bp.save_model(model, tmp_path / "model")
    for copy in (bp.load_model(tmp_path / "model").model, *copies_of(model).values()):
        np.testing.assert_allclose(copy(data), expected, rtol=1e-5)


def test_a_trained_activation_layer_goes_with_its_dense_layer() -> None:
    model = sequential(L.Dense(3, L.PReLU()), L.Dense(2, L.LeakyReLU()), L.Dense(2, L.PReLU(), name="kept"))
    model.layers[0].activation.set_weights([np.array([0.1, 0.5, 2.0], np.float32)])
    model.layers[2].activation.set_weights([np.array([3.0, -1.0], np.float32)])
    for copy in copies_of(model).values():
        np.testing.assert_allclose(copy(X), model(X), rtol=1e-5, atol=1e-6)
        assert copy.layers[0].activation is not model.layers[0].activation
    raw = sequential(tfp.layers.DenseFlipout(3, activation=L.PReLU()))
    raw.layers[0].activation.set_weights([np.array([0.1, 0.5, 2.0], np.float32)])
    adopted = bp.adopt(raw)
    np.testing.assert_array_equal(adopted.layers[0].activation.get_weights(), raw.layers[0].activation.get_weights())


def test_functions_as_activations_are_kept_in_memory_and_refused_in_files(tmp_path: Path) -> None:
    model = sequential(L.Dense(3, lambda z: z * z), L.Dense(2, lambda z: z + 1, name="plain"))
    for copy in copies_of(model).values():
        np.testing.assert_allclose(copy(X), model(X), rtol=1e-5, atol=1e-6)
    excluded = bp.bayesianize(model, exclude=["plain"], rho_init=NO_NOISE)
    np.testing.assert_allclose(excluded(X), model(X), rtol=1e-5, atol=1e-6)
    with pytest.raises(BpruneError) as caught:
        bp.save_model(model, tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_constraints_regularizers_and_initializers_hold_and_come_back() -> None:
    arguments = {
        "kernel_initializer": keras.initializers.Constant(0.5),
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "kernel_constraint": keras.constraints.NonNeg(),
        "bias_initializer": "ones",
        "bias_regularizer": keras.regularizers.L1(0.2),
        "bias_constraint": keras.constraints.NonNeg(),
        "activity_regularizer": keras.regularizers.L2(0.3),
    }
    for bayesian_bias in (False, True):
        model = sequential(L.Dense(3, **arguments), L.Dense(2))
        bayesian = bp.bayesianize(model, bayesian_bias=bayesian_bias, train_size=10)
        again = type(bayesian).from_config(bayesian.get_config())
        for copy in (bp.strip(bayesian), bp.strip(bp.prune(bayesian, sparsity=0.5)[0]), bp.strip(again)):
            for one, other in zip(copy.layers, model.layers, strict=True):
                assert one.get_config() == other.get_config()
    layer = DenseFlipout(3, train_size=10, **arguments)
    layer(X)
    # 12 weights of .5 squared, 3 biases of 1, and the activity besides the KL.
    values = sorted(float(loss) for loss in layer.losses)
    assert np.isclose(values, 0.1 * 12 * 0.25).any()
    assert np.isclose(values, 0.2 * 3).any()
    assert len(values) == 4
    model = sequential(layer)
    model.compile(keras.optimizers.SGD(10.0), "mse")
    model.fit(X, np.full((5, 3), -50.0), verbose=0)
    assert min(layer.kernel_posterior.loc.numpy().min(), layer.bias.numpy().min()) == 0.0


def test_a_pruned_weight_pays_no_penalty() -> None:
    layer = DenseFlipout(3, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(1.0), use_bias=False)
    layer(X)
    mask = np.zeros((4, 3), bool)
    mask[0] = True
    layer.kernel_posterior.keep_only(mask)
    layer.kernel_posterior.loc_variable.assign(np.ones((4, 3)))  # as an optimizer with momentum would leave it
    [penalty] = layer.losses
    np.testing.assert_allclose(penalty, 3.0)


def test_what_is_frozen_stays_frozen() -> None:
    model = sequential(L.Dense(3), L.BatchNormalization(), sequential(L.Dense(3), L.Dense(3), shape=(3,)), L.Dense(2))
    model.layers[2].trainable = False
    model.layers[2].layers[0].trainable = True  # of no avail within a model that is frozen
    bayesian = bp.bayesianize(model)
    frozen = bp.bayesianize(model)
    frozen.trainable = False
    frozen.layers[0].trainable = True
    for one in (bayesian, frozen):
        wanted = [w.name for w in one.trainable_weights]
        for copy in (bp.prune(one, sparsity=0.5)[0], bp.prune(bp.prune(one, sparsity=0.1)[0], sparsity=0.5)[0]):
            assert [w.name for w in copy.trainable_weights] == wanted
    assert frozen.trainable_weights == bp.strip(frozen).trainable_weights == []
    assert len(bp.strip(bayesian).trainable_weights) == len(model.trainable_weights) == 6


def over_steps(inner: Any) -> Any:
    return sequential(L.TimeDistributed(inner, name="steps"), L.Flatten(), L.Dense(2), shape=(3, 4))


def test_layers_of_a_time_distributed_are_layers_of_the_model(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(5, 3, 4)).astype(np.float32)
    plain = over_steps(L.Dense(6, "relu", name="inner"))
    for copy in copies_of(plain).values():
        np.testing.assert_allclose(copy(x), plain(x), rtol=1e-5, atol=1e-6)
    bayesian = bp.bayesianize(plain, train_size=5)
    assert isinstance(bayesian.get_layer("steps").layer, DenseFlipout)
    bayesian.compile("adam", "mse")
    bayesian.fit(x, np.zeros((5, 2)), verbose=0)
    pruned, report = bp.prune(bayesian, sparsity=0.5)
    assert sorted(layer.prunable for layer in report.layers) == [24, 36]
    assert report.pruned == round(0.5 * report.prunable)
    bp.save_model(pruned, tmp_path / "pruned")
    loaded = bp.load_model(tmp_path / "pruned").model
    np.testing.assert_array_equal(bp.strip(loaded)(x), bp.strip(pruned)(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = over_steps(tfp.layers.DenseFlipout(6, name="inner"))
    assert isinstance(bp.adopt(raw).get_layer("steps").layer, DenseFlipout)


@keras.saving.register_keras_serializable("tests")
class Holder(L.Layer):
    """A layer of a user's that holds another."""

    def __init__(self, inner: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.inner = inner or L.Dense(4, name="plain")

    def call(self, inputs: Any) -> Any:
        return self.inner(inputs)


def test_a_layer_that_hides_a_bayesian_one_is_refused_by_name() -> None:
    for inner in (DenseFlipout(4, name="hidden"), tfp.layers.DenseFlipout(4, name="hidden")):
        model = sequential(Holder(inner, name="holder"), L.Dense(2))
        for action in (bp.strip, bp.adopt, bp.bayesianize):
            with pytest.raises(BpruneError, match=r"layer 'holder' \(Holder\) holds the Bayesian layer 'hidden'"):
                action(model)
        with pytest.raises(BpruneError, match="holder"):
            bp.prune(model, sparsity=0.5)
    plain = sequential(Holder(name="holder"), L.Dense(2))
    assert bp.bayesianize(plain, exclude=["holder"])(X).shape == (5, 2)


def test_an_error_while_training_is_traced_is_its_one_line() -> None:
    model = sequential(DenseFlipout(2, name="lost"))
    model.compile("sgd", "mse")
    with pytest.raises(TrainingError) as caught:
        model.fit(X, np.zeros((5, 2)), verbose=0)
    assert str(caught.value).startswith("layer 'lost' does not know the number of training examples")
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError) as caught:
        model(X, training=True)
    assert str(caught.value).startswith("layer 'lost' does not know")
    assert "\n" not in str(caught.value)
