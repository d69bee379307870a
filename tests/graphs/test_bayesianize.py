"""Ordinary Keras models made Bayesian, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bounds import assert_mean
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.exports import export
from tfp_bprune.graphs import compact, strip
from tfp_bprune.graphs.bayesianize import bayesianize
from tfp_bprune.layers import variational_layers
from tfp_bprune.prediction import Predictor
from tfp_bprune.pruning import prune
from tfp_bprune.training import Settings, fit
from tfp_bprune.types import BpruneError

L = keras.layers

DELTA = 0.1


def ordinary() -> Any:
    """A convolutional network with a residual addition and batch normalization."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv_1")(inputs)
    x = keras.layers.BatchNormalization()(x)
    y = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="conv_2")(x)
    x = keras.layers.Flatten()(keras.layers.Add()([x, y]))
    return keras.Model(inputs, keras.layers.Dense(5, name="dense")(x))


def names(bayesian: Any) -> list[str]:
    return [layer.name for layer in variational_layers(bayesian)]


def assert_equal_weights(model: Any, other: Any) -> None:
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("layers", ["flipout", "reparameterization", "local"])
def test_strip_undoes_it_to_the_last_bit(layers: Any) -> None:
    model = ordinary()
    bayesian = bayesianize(model, layers=layers, train_size=10)
    assert [type(layer).__name__ for layer in strip(bayesian).layers] == [
        type(layer).__name__ for layer in model.layers
    ]
    assert_equal_weights(strip(bayesian), model)


def test_moped_puts_sigma_and_prior_at_the_weights() -> None:
    model = ordinary()
    w = model.get_layer("dense").kernel.numpy()
    w[::3] = 0  # a pruned network's: sigma cannot be 0 there
    model.get_layer("dense").kernel.assign(w)
    bayesian = bayesianize(model, moped=DELTA, train_size=10)
    layer, posterior = bayesian.get_layer("dense"), bayesian.get_layer("dense").kernel_posterior
    scale = posterior.scale.numpy()
    np.testing.assert_allclose(scale[w != 0], DELTA * np.abs(w[w != 0]), rtol=2e-5)
    assert ((scale[w == 0] > 0) & (scale[w == 0] < 1e-7)).all()
    np.testing.assert_array_equal(posterior.prior_loc, w)
    bayesian(np.zeros((1, 8, 8, 3), np.float32))
    # KL(N(w, sigma^2) || N(w, 1)), in nats.
    expected = np.sum(np.square(scale, dtype=np.float64) / 2 - 0.5 - np.log(scale, dtype=np.float64))
    np.testing.assert_allclose(layer.last_kl, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ({"include": ["conv*"], "exclude": ["conv_2"]}, ["conv_1"]),
        ({"include": ["conv_[12]", "nothing"]}, ["conv_1", "conv_2"]),
        ({"include": ["DENSE", "conv_1"]}, ["conv_1"]),
        ({"exclude": ["*_?"]}, ["dense"]),
    ],
)
def test_include_and_exclude_choose_layers_by_pattern(patterns: Any, chosen: list[str]) -> None:
    assert names(bayesianize(ordinary(), **patterns)) == chosen


class Doubled(L.Conv2DTranspose):
    """A layer of a user's own, which computes something else than its base."""

    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


UNSUPPORTED: dict[str, tuple[tuple[int, ...], Callable[[], Any]]] = {
    "LSTM": ((5, 4), lambda: L.LSTM(3, name="odd")),
    "LocallyConnected2D": ((8, 8, 4), lambda: L.LocallyConnected2D(4, 3, name="odd")),
    "Doubled": ((8, 8, 4), lambda: Doubled(4, 3, name="odd")),
    "PReLU": ((8, 8, 4), lambda: L.PReLU(name="odd")),
    "Bidirectional": ((5, 4), lambda: L.Bidirectional(L.LSTM(3, name="within"), name="odd")),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_layers_that_cannot_be_bayesian_are_named_and_left_alone(kind: str) -> None:
    shape, layer = UNSUPPORTED[kind]
    model = keras.Sequential([keras.Input(shape), layer(), L.Flatten(), L.Dense(2, name="head")])
    with pytest.warns(UserWarning, match=rf"cannot be Bayesian: odd \({kind}\)$"):
        bayesian = bayesianize(model)
    assert names(bayesian) == ["head"]
    assert type(bayesian.get_layer("odd")) is type(model.get_layer("odd"))
    assert_equal_weights(strip(bayesian), model)
    with pytest.raises(BpruneError, match=rf"cannot be Bayesian: odd \({kind}\); exclude them"):
        bayesianize(model, strict=True)
    assert names(bayesianize(model, exclude=["odd"], strict=True)) == ["head"]


def test_a_string_is_one_name_not_its_letters() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(3, name="a"), L.Dense(3, name="ab"), L.Dense(2, name="logits")]
    )
    for exclude in ("ab", ["ab"], ("ab",), {"ab"}):
        assert names(bayesianize(model, exclude=exclude)) == ["a", "logits"]
    assert names(bayesianize(model, include="a*")) == ["a", "ab"]
    assert names(bayesianize(model, include="a*", exclude="ab")) == ["a"]
    for wrong in (3, ["a", None], b"ab"):
        with pytest.raises(BpruneError, match=r"exclude holds .*: expected names$"):
            bayesianize(model, exclude=wrong)  # type: ignore[arg-type]


def test_contradictions_are_refused() -> None:
    with pytest.raises(BpruneError, match="either rho_init or moped"):
        bayesianize(ordinary(), rho_init=-3.0, moped=DELTA)
    with pytest.raises(BpruneError, match="no layer"):
        bayesianize(ordinary(), include=["nothing"])
    steps = keras.Sequential([keras.Input((3, 4)), L.TimeDistributed(L.Dense(2, name="within"), name="steps")])
    for name in ("within", "steps"):
        with pytest.raises(BpruneError, match="no layer"):
            bayesianize(steps, exclude=[name])
        assert names(bayesianize(steps, include=[name])) == ["within"]


def tower(name: str, *, inner: Any = None, dense: str = "inside") -> Any:
    """A functional model with a residual addition, to be nested in another one."""
    inputs = keras.Input((6,))
    x = L.Dense(6, "tanh", name=dense)(inputs) if inner is None else inner(inputs)
    return keras.Model(inputs, L.Add()([x, inputs]), name=name)


def classifier(body: Callable[[Any], Any], activation: str | None = None) -> Any:
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(3, activation, name="head")(body(inputs)))


def nested_in_sequential() -> Any:
    return keras.Sequential([keras.Input((6,)), tower("tower"), L.BatchNormalization(), L.Dense(3, name="head")])


def nested_in_functional() -> Any:
    return classifier(lambda x: L.Multiply()([tower("tower")(x), x]))


def nested_twice_over() -> Any:
    return classifier(tower("outer", inner=tower("tower")))


NESTED = [nested_in_sequential, nested_in_functional, nested_twice_over]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


@pytest.mark.parametrize("nested", NESTED)
def test_layers_of_nested_models_become_bayesian_and_the_mean_stays(nested: Any, vectors: np.ndarray) -> None:
    model = nested()
    bayesian = bayesianize(model)
    assert sorted(names(bayesian)) == ["head", "inside"]
    assert_equal_weights(strip(bayesian), model)
    np.testing.assert_allclose(strip(bayesian)(vectors), model(vectors), rtol=1e-6, atol=1e-6)
    # As sigma goes to 0 the draws come to the mean: the Bayesian graph, too, is the model's.
    certain = bayesianize(model, rho_init=-30.0)
    np.testing.assert_allclose(certain(vectors, training=False), model(vectors), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nested", NESTED)
def test_nested_models_are_pruned(nested: Any) -> None:
    bayesian = bayesianize(nested())
    pruned, report = prune(bayesian, sparsity=0.5)
    assert sorted(layer.name for layer in report.layers) == ["head/kernel", "inside/kernel"]
    zeros = sum(np.count_nonzero(w == 0) for w in strip(pruned).get_weights() if w.ndim == 2)
    assert zeros == round(0.5 * (6 * 6 + 6 * 3))
    layers = {layer.name for layer in prune(bayesian, sparsity=0.0, granularity="unit")[1].layers}
    assert layers == {"head/kernel", "inside/kernel"}


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_nested_model_is_exported_with_one_softmax(activation: str | None, vectors: np.ndarray) -> None:
    inner = classifier(tower("tower"), activation)
    model = keras.Sequential([keras.Input((6,)), L.Dense(6, "relu", name="first"), inner])
    served = Predictor(bayesianize(model), "mean", task="classification").predict(vectors)["probabilities"]
    given = model(vectors).numpy()
    expected = given if activation else np.exp(given) / np.exp(given).sum(1, keepdims=True)
    np.testing.assert_allclose(served, expected, rtol=1e-5)


def branched() -> Any:
    """Two inputs, two outputs."""
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    x = L.Concatenate()([L.Dense(12, "relu", name="a")(left), L.Dense(12, "relu", name="b")(right)])
    x = L.Dense(16, "relu", name="c")(x)
    return keras.Model([left, right], {"y": L.Dense(2, name="y")(x), "z": L.Dense(3, name="z")(x)})


def test_models_of_several_inputs_and_outputs_train_and_come_back() -> None:
    model, rng = branched(), np.random.default_rng(0)
    bayesian = bayesianize(model, train_size=8)
    assert names(bayesian) == ["a", "b", "c", "y", "z"]
    assert_equal_weights(strip(bayesian), model)
    x = {"left": rng.normal(size=(8, 6)).astype(np.float32), "right": rng.normal(size=(8, 4)).astype(np.float32)}
    y = {"y": np.ones((8, 2), np.float32), "z": np.ones((8, 3), np.float32)}
    bayesian.compile(keras.optimizers.legacy.Adam(), "mse")
    losses = bayesian.fit(x, y, verbose=0).history
    assert np.isfinite([losses["loss"], losses["y_loss"], losses["z_loss"]]).all()
    for name in names(bayesian):
        posterior = bayesian.get_layer(name).kernel_posterior
        assert not np.array_equal(posterior.loc, model.get_layer(name).kernel)
    for name, given in strip(bayesian)(x).items():
        assert given.shape == y[name].shape


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_models_of_several_inputs_and_outputs_are_pruned_and_exported(granularity: Any, tmp_path: Path) -> None:
    pruned, report = prune(bayesianize(branched()), sparsity=0.5, granularity=granularity)
    assert report.sparsity >= 0.5
    masked, rng = strip(pruned), np.random.default_rng(0)
    x = [rng.normal(size=(5, 6)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)]
    smaller = compact(masked)
    for name, expected in masked(x).items():
        np.testing.assert_allclose(smaller(x)[name], expected, rtol=1e-5, atol=1e-6)
    if granularity == "unit":
        assert smaller.count_params() < 0.6 * masked.count_params()
    export(pruned, tmp_path / "export", task={"y": "regression", "z": "classification"})
    serve = tf.saved_model.load(str(tmp_path / "export" / "1")).signatures["serving_default"]
    served = serve(left=tf.constant(x[0]), right=tf.constant(x[1]))
    assert set(served) == {"y_mean", "z_probabilities", "z_entropy"}
    np.testing.assert_allclose(served["y_mean"], masked(x)["y"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(served["z_probabilities"], tf.nn.softmax(masked(x)["z"]), rtol=1e-5, atol=1e-6)


def called_twice(model: Any) -> Callable[[Any], Any]:
    return lambda x: model(model(x))


SHARED: dict[str, Callable[[], Any]] = {
    "layer": lambda: classifier(called_twice(L.Dense(6, name="inside"))),
    "nested model": lambda: classifier(called_twice(tower("tower"))),
    "model around it": lambda: classifier(called_twice(tower("outer", inner=tower("tower")))),
}


def between_models() -> Any:
    layer = L.Dense(6, name="inside")
    one, other = tower("one", inner=layer), tower("other", inner=layer)
    return classifier(lambda x: other(one(x)))


@pytest.mark.parametrize("shared", [*SHARED.values(), between_models], ids=[*SHARED, "layer of two nested models"])
def test_what_is_shared_is_one_bayesian_layer_or_stays_shared_when_excluded(shared: Any, vectors: np.ndarray) -> None:
    model = shared()
    for estimator in ("flipout", "reparameterization", "local"):
        bayesian = bayesianize(model, layers=estimator, rho_init=-30.0, train_size=10)
        assert sorted(names(bayesian)) == ["head", "inside"]
        np.testing.assert_allclose(bayesian(vectors), model(vectors), rtol=1e-5, atol=1e-5)
        assert len(bayesian.losses) == 2
    left = bayesianize(model, exclude=["inside"])
    assert names(left) == ["head"]
    for one in (strip(bayesian), strip(left)):
        assert_equal_weights(one, model)
        np.testing.assert_allclose(one(vectors), model(vectors), rtol=1e-6, atol=1e-6)


def test_layers_of_one_name_in_two_nested_models_are_refused() -> None:
    # Their noise would be the same, and of their masks one would be lost.
    model = classifier(lambda x: tower("one")(tower("other")(x)))
    for request in (bayesianize, lambda m: prune(m, sparsity=0.5), lambda m: Predictor(m, "mean")):
        with pytest.raises(BpruneError, match="several layers named 'inside': expected a name of its own for each"):
            request(model)
    assert len(names(bayesianize(classifier(lambda x: tower("one", dense="first")(tower("other")(x)))))) == 3


def test_a_nested_subclassed_model_is_refused() -> None:
    class Mine(keras.Model):
        def call(self, inputs: Any) -> Any:
            return 2 * inputs

    for request in (bayesianize, strip, lambda m: prune(m, sparsity=0.5)):
        with pytest.raises(BpruneError, match="Mine is a subclassed model"):
            request(classifier(Mine()))


@pytest.fixture(scope="module")
def trained(mlp: Callable[..., Any], digits: Splits) -> Any:
    """A deterministic network that knows most digits."""
    model = mlp("deterministic", hidden=(32,))
    fit(model, digits, settings=Settings(epochs=8, learning_rate=0.01), progress=False)
    return model


@pytest.mark.parametrize("layers", ["flipout", "reparameterization", "local"])
@pytest.mark.parametrize("delta", [0.01, 0.05])
def test_draws_near_a_trained_network_are_as_accurate(trained: Any, digits: Splits, layers: Any, delta: float) -> None:
    x, y = digits.examples("test").x.astype(np.float32), digits.examples("test").y
    accuracy = np.mean(trained(x).numpy().argmax(1) == y)
    assert accuracy > 0.85
    bayesian = bayesianize(trained, layers=layers, moped=delta)
    # One image a batch, so that each has weights of its own and the images are right or wrong independently. The number
    # right then has a variance of at most n a (1 - a), whatever the chance of each, if they are right with a on average.
    right = bayesian.predict(x, batch_size=1, verbose=0).argmax(1) == y
    assert_mean(right.astype(np.float64), accuracy, np.sqrt(accuracy * (1 - accuracy)))


def test_draws_far_from_a_trained_network_are_not(trained: Any, digits: Splits) -> None:
    x, y = digits.examples("test").x.astype(np.float32), digits.examples("test").y
    accuracy = np.mean(trained(x).numpy().argmax(1) == y)
    right = bayesianize(trained, moped=2.0).predict(x, batch_size=1, verbose=0).argmax(1) == y
    with pytest.raises(AssertionError, match="mean off"):
        assert_mean(right.astype(np.float64), accuracy, np.sqrt(accuracy * (1 - accuracy)))
