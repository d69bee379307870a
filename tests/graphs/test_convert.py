"""`strip` and `adopt`, and the copies that they are made by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.graphs import adopt, strip
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.layers import LAYERS, NormalPrior, ScaleMixturePrior, Variational, variational_layers
from tfp_bprune.pruning import prune
from tfp_bprune.types import BpruneError

Build = Callable[..., Any]
SHAPES = {"Dense": (6,), "Conv1D": (6, 2), "Conv2D": (5, 6, 2), "Conv3D": (3, 4, 5, 2)}


def single(kind: str, estimator: str, **arguments: Any) -> Any:
    size = {"units": 3} if kind == "Dense" else {"filters": 3, "kernel_size": 2, "padding": "same", "strides": 2}
    layer = LAYERS[kind, estimator](**size, activation="relu", name="only", **arguments)
    return keras.Sequential([keras.Input(SHAPES[kind]), layer])


@pytest.mark.parametrize(("kind", "estimator"), [key for key in LAYERS if key[0] in SHAPES])
@pytest.mark.parametrize("bias", [{"use_bias": False}, {}, {"bayesian_bias": True}], ids=["none", "plain", "bayesian"])
def test_strip_is_the_mean_to_the_last_bit(kind: str, estimator: str, bias: dict[str, bool]) -> None:
    rng = np.random.default_rng(0)
    model, x = single(kind, estimator, **bias), rng.normal(size=(4, *SHAPES[kind])).astype(np.float32)
    layer = model.get_layer("only")
    model.set_weights(
        [rng.normal(size=w.shape).astype(w.dtype) if w.dtype == np.float32 else w for w in model.get_weights()]
    )
    model, _ = prune(model, sparsity=0.4, include_bias=True)
    layer = model.get_layer("only")
    plain = strip(model)
    assert not any(isinstance(part, Variational) for part in plain.layers)
    stripped = plain.get_layer("only").get_weights()
    np.testing.assert_array_equal(stripped[0], layer.kernel_posterior.loc.numpy())
    # The layer's own arithmetic at its mean: Keras's operation on the same numbers.
    means = {name: q.loc for name, q in layer.posteriors.items()}
    outputs = layer.kind.linear(layer, "kernel", tf.constant(x), means["kernel"])
    if bias.get("use_bias", True):
        outputs = layer.kind.add_bias(layer, outputs, means.get("bias", layer.bias))
    np.testing.assert_array_equal(plain(x), tf.nn.relu(outputs))


def test_strip_leaves_an_ordinary_model_as_it_is(mlp: Build, images: np.ndarray) -> None:
    model = mlp("deterministic")
    np.testing.assert_array_equal(strip(model)(images[:4]), model(images[:4]))


def test_strip_keeps_names_and_shapes_and_forgets_all_else(mlp: Build) -> None:
    model = mlp()
    plain = strip(model)
    assert [layer.name for layer in plain.layers] == [layer.name for layer in model.layers]
    assert plain.count_params() == 64 * 12 + 12 + 12 * 10 + 10
    assert "tfp_bprune" not in plain.to_json()


def raw_model(**arguments: Any) -> Any:
    return keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            tfp.layers.Convolution2DReparameterization(3, 2, activation="relu", name="first", **arguments),
            keras.layers.Flatten(),
            tfp.layers.DenseFlipout(4, name="second", **arguments),
        ]
    )


def test_adopt_takes_posterior_prior_and_arguments() -> None:
    raw = raw_model()
    ours = adopt(raw)
    assert [type(layer).__name__ for layer in variational_layers(ours)] == ["Conv2DReparameterization", "DenseFlipout"]
    for name in ("first", "second"):
        old, new = raw.get_layer(name), ours.get_layer(name)
        q = old.kernel_posterior.distribution
        np.testing.assert_array_equal(new.kernel_posterior.loc, q.loc)
        np.testing.assert_allclose(new.kernel_posterior.scale, q.scale, rtol=1e-5)
        np.testing.assert_array_equal(new.bias, old.bias_posterior.mean())
        assert isinstance(new.prior, NormalPrior)
        assert new.prior.get_config() == {"kind": "normal", "scale": 1.0, "loc": 0.0}
        assert new.activation is old.activation
        assert not new.bayesian_bias


def test_adopt_takes_bayesian_and_missing_biases() -> None:
    q = tfp.layers.default_mean_field_normal_fn()
    ours = adopt(raw_model(bias_posterior_fn=q, bias_prior_fn=tfp.layers.default_multivariate_normal_fn))
    assert all(layer.bayesian_bias for layer in variational_layers(ours))
    none = adopt(raw_model(bias_posterior_fn=None))
    assert not any(layer.use_bias for layer in variational_layers(none))


def test_a_prior_that_is_not_one_normal_becomes_the_default() -> None:
    def spread(dtype: Any, shape: Any, *_: Any) -> Any:
        scales = tf.reshape(tf.range(1.0, 1.0 + float(np.prod(shape))), shape)
        return tfp.distributions.Independent(tfp.distributions.Normal(tf.zeros(shape), scales), len(shape))

    ours = adopt(raw_model(kernel_prior_fn=spread))
    assert all(isinstance(layer.prior, ScaleMixturePrior) for layer in variational_layers(ours))


def test_a_posterior_that_is_not_normal_is_refused_by_layer() -> None:
    point = tfp.layers.default_mean_field_normal_fn(is_singular=True)
    layer = tfp.layers.DenseReparameterization(2, kernel_posterior_fn=point, kernel_divergence_fn=None, name="point")
    with pytest.raises(BpruneError, match=r"layer 'point' has the posterior .* expected independent normals"):
        adopt(keras.Sequential([keras.Input((3,)), layer]))


def test_adopt_gives_back_a_model_without_raw_layers(mlp: Build) -> None:
    model = mlp()
    assert adopt(model) is model


def branched(inner: Any) -> Any:
    """A nested model used inside a graph with a skip connection, and a layer with state of its own."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(6, activation="tanh", name="before")(inputs)
    x = keras.layers.Add()([inner(x), x])
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, LAYERS["Dense", "flipout"](2, name="after")(x))


def nested() -> Any:
    return keras.Sequential([keras.Input((6,)), LAYERS["Dense", "flipout"](6, name="inside"), keras.layers.ReLU()])


def test_rebuild_copies_graph_and_weights_of_nested_models() -> None:
    model, x = branched(nested()), np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    rng = np.random.default_rng(1)
    model.set_weights(
        [rng.uniform(0.1, 1, w.shape).astype(w.dtype) if w.dtype == np.float32 else w for w in model.get_weights()]
    )
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    for old, new in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {id(w) for w in model.weights}.isdisjoint({id(w) for w in copy.weights})
    np.testing.assert_array_equal(strip(copy)(x), strip(model)(x))
    assert not any(isinstance(layer, Variational) for layer in strip(model)._flatten_layers())


def test_rebuild_replaces_layers_inside_nested_models() -> None:
    seen: list[str] = []

    def replace(layer: Any) -> Any:
        return keras.layers.Dense(layer.units, name=layer.name) if isinstance(layer, Variational) else None

    copy = rebuild(branched(nested()), replace, lambda old, new: seen.append(new.name) if new.built else None)
    assert sorted(seen) == ["after", "inside"]
    assert copy.count_params() < branched(nested()).count_params()


def test_rebuild_keeps_a_shared_layer_shared() -> None:
    inputs, layer = keras.Input((4,)), LAYERS["Dense", "reparameterization"](4, name="shared")
    model = keras.Model(inputs, layer(layer(inputs)))
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    assert len(copy.weights) == len(model.weights)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(strip(copy)(x), strip(model)(x))


def test_subclassed_and_unbuilt_models_are_refused() -> None:
    class Mine(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    for model, message in ((Mine(), "subclassed"), (keras.Sequential([keras.layers.Dense(2)]), "no weights yet")):
        for function in (strip, adopt):
            with pytest.raises(BpruneError, match=message):
                function(model)
