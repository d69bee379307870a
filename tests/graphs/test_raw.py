"""Layers of tfp.layers, and of classes made from them, as this package reads them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers import DenseFlipout, DenseReparameterization
from tfp_bprune.layers.prior import NormalPrior, ScaleMixturePrior
from tfp_bprune.types import BpruneError

tfd, L = tfp.distributions, keras.layers
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def variables(size: int, dtype: Any) -> Any:
    return tfp.layers.VariableLayer(size, dtype=dtype, initializer=keras.initializers.RandomNormal(seed=size))


def made(parts: int, make: Any) -> Any:
    """A function that gives a DenseVariational a distribution over `parts` numbers for each of its n weights."""

    def distribution(kernel: int, bias: int = 0, dtype: Any = None) -> Any:
        n = kernel + bias
        return keras.Sequential([variables(parts * n, dtype), tfp.layers.DistributionLambda(lambda t: make(t, n))])

    return distribution


def scale(t: Any) -> Any:
    return 1e-5 + tf.nn.softplus(t - 2.0)


POSTERIORS = {
    "independent": lambda t, n: tfd.Independent(tfd.Normal(t[..., :n], scale(t[..., n:])), 1),
    "diagonal": lambda t, n: tfd.MultivariateNormalDiag(t[..., :n], scale(t[..., n:])),
    "batch": lambda t, n: tfd.Normal(t[..., :n], scale(t[..., n:])),
}
PRIOR = made(1, lambda t, n: tfd.Independent(tfd.Normal(tf.zeros(n), 0.7), 1))
TRAINABLE = made(1, lambda t, n: tfd.Independent(tfd.Normal(t, 0.5), 1))


def variational(posterior: Any, prior: Any = PRIOR, **arguments: Any) -> Any:
    layer = tfp.layers.DenseVariational(
        3, posterior, prior, kl_weight=0.1, activation="tanh", name="dense", **arguments
    )
    return keras.Sequential([keras.Input((4,)), layer, L.Dense(2, name="last")])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_dense_variational_is_adopted_with_its_normals(posterior: str, bias: bool) -> None:
    model = variational(made(2, POSTERIORS[posterior]), use_bias=bias)
    raw = model.get_layer("dense")._posterior(X[:1])
    mean, deviation = np.asarray(raw.mean()), np.asarray(raw.stddev())
    adopted = bp.adopt(model)
    layer = adopted.get_layer("dense")
    assert type(layer) is DenseReparameterization
    assert (layer.use_bias, layer.bayesian_bias) == (bias, bias)
    assert layer.prior.get_config() == NormalPrior(np.float32(0.7)).get_config()
    ours = layer.posteriors.values()
    np.testing.assert_array_equal(np.concatenate([np.ravel(q.loc) for q in ours]), mean)
    np.testing.assert_allclose(np.concatenate([np.ravel(q.scale) for q in ours]), deviation, rtol=1e-5)
    h = X @ mean[:12].reshape(4, 3) + (mean[12:] if bias else 0)
    expected = np.tanh(h) @ model.layers[-1].kernel + model.layers[-1].bias
    np.testing.assert_allclose(bp.strip(model)(X), expected, rtol=1e-5, atol=1e-6)
    pruned, report = bp.prune(model, sparsity=0.5)
    assert report.prunable == 12
    np.testing.assert_allclose((pruned.get_layer("dense").kernel_posterior.loc.numpy() == 0).mean(), 0.5)


def test_a_trainable_prior_ends_as_it_is() -> None:
    model = variational(made(2, POSTERIORS["independent"]), TRAINABLE)
    layer = bp.adopt(model).get_layer("dense")
    centre = np.asarray(model.get_layer("dense")._prior(X[:1]).mean())
    assert layer.prior.get_config() == NormalPrior(0.5).get_config()
    np.testing.assert_array_equal(np.ravel(layer.kernel_posterior.prior_loc), centre[:12])
    np.testing.assert_array_equal(layer.bias_posterior.prior_loc, centre[12:])
    mixture = made(2, lambda t, n: tfd.Independent(tfd.Normal(t[..., :n], 1.0 + tf.abs(t[..., n:])), 1))
    spread = bp.adopt(variational(made(2, POSTERIORS["independent"]), mixture))
    assert isinstance(spread.get_layer("dense").prior, ScaleMixturePrior)


OTHERS = {
    "a full covariance": (
        2,
        lambda t, n: tfd.MultivariateNormalTriL(t[..., :n], tf.eye(n)),
        "expected independent normals",
    ),
    "another family": (1, lambda t, n: tfd.Independent(tfd.Laplace(t, 1.0), 1), "expected independent normals"),
    "a point": (1, lambda t, n: tfd.Independent(tfd.Deterministic(t), 1), "expected independent normals"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_posterior_is_refused_by_the_layers_name(other: str) -> None:
    parts, make, message = OTHERS[other]
    for action in (bp.adopt, bp.strip):
        with pytest.raises(BpruneError, match=f"layer 'dense' has the posterior .*{message}"):
            action(variational(made(parts, make)))


def test_a_posterior_of_the_inputs_is_refused() -> None:
    def amortized(kernel: int, bias: int, dtype: Any) -> Any:
        n = kernel + bias
        head = tfp.layers.DistributionLambda(lambda t: tfd.Independent(tfd.Normal(tf.reduce_mean(t, 0), 1.0), 1))
        return keras.Sequential([L.Dense(n, "tanh"), head])

    model = variational(amortized)
    with pytest.raises(BpruneError, match=r"layer 'dense' has distributions that depend on its inputs"):
        bp.strip(model)


HEADS = {
    "normal": lambda: tfp.layers.DistributionLambda(
        lambda t: tfd.Normal(t[..., :1], 1e-3 + tf.nn.softplus(t[..., 1:])), name="head"
    ),
    "own conversion": lambda: tfp.layers.DistributionLambda(
        lambda t: tfd.Normal(t, 1.0), convert_to_tensor_fn=lambda d: 2 * d.mean(), name="head"
    ),
    "class of distributions": lambda: tfp.layers.OneHotCategorical(2, name="head"),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_that_gives_distributions_is_copied_and_not_stripped(head: str, tmp_path: Any) -> None:
    model = keras.Sequential([keras.Input((4,)), L.Dense(2, name="before"), HEADS[head]()])
    bayesian = bp.bayesianize(model, rho_init=-60.0)
    for copy in (bayesian, bp.prune(bayesian, sparsity=0.0)[0]):
        given, wanted = (tfd.Distribution.mean(one(X)) for one in (copy, model))
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)
    for task in (None, "regression"):
        with pytest.raises(
            BpruneError, match=r"layer 'head' .* gives a distribution, .* end the model at the layer before"
        ):
            bp.export(bayesian, tmp_path / "export", predictive="sampled", task=task)
    for action in (bp.strip, lambda one: bp.save_model(one, tmp_path / "model")):
        with pytest.raises(BpruneError) as caught:
            action(bayesian)
        assert "\n" not in str(caught.value)
    cut = keras.Model(bayesian.input, bayesian.layers[-2].output)
    np.testing.assert_allclose(bp.strip(cut)(X), model.get_layer("before")(X), rtol=1e-6)


def test_bayesianize_keeps_the_posteriors_of_tfp() -> None:
    model = variational(made(2, POSTERIORS["independent"]))
    raw = model.get_layer("dense")._posterior(X[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        bayesian = bp.bayesianize(model, rho_init=-60.0)
    assert [type(layer).__name__ for layer in bayesian.layers] == ["DenseReparameterization", "DenseFlipout"]
    kept = bayesian.get_layer("dense").kernel_posterior
    np.testing.assert_array_equal(np.ravel(kept.loc), raw.mean()[:12])
    np.testing.assert_allclose(np.ravel(kept.scale), raw.stddev()[:12], rtol=1e-5)
    np.testing.assert_allclose(bp.strip(bayesian)(X), bp.strip(model)(X), rtol=1e-5, atol=1e-6)


class Named(tfp.layers.DenseFlipout):
    """Arguments of a user's own, and nothing else."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(units, activation="relu", **kwargs)


class Doubled(tfp.layers.DenseFlipout):
    """Not what its base computes."""

    def call(self, inputs: Any) -> Any:
        return 2 * super().call(inputs)


class OursDoubled(DenseFlipout):
    """The same, of this package's layer."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return 2 * super().call(inputs, training)


def test_a_class_made_from_a_bayesian_layer_is_that_layer_if_it_computes_the_same() -> None:
    model = keras.Sequential([keras.Input((4,)), Named(3, name="mine")])
    q = model.layers[0].kernel_posterior
    expected = np.maximum(X @ np.asarray(q.mean()) + model.layers[0].bias_posterior.mean(), 0)
    np.testing.assert_allclose(bp.strip(model)(X), expected, rtol=1e-5, atol=1e-6)
    for other in (Doubled(3, name="mine"), OursDoubled(3, name="mine")):
        model = keras.Sequential([keras.Input((4,)), other])
        with pytest.raises(BpruneError, match=r"layer 'mine' \((Ours)?Doubled\) has its own call"):
            bp.strip(model)


class Unsaid(L.Layer):
    """A layer with an argument that its config does not tell."""

    def __init__(self, factor: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, inputs: Any) -> Any:
        return self.factor * inputs

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def test_what_keras_cannot_copy_is_refused_in_one_line() -> None:
    inputs = keras.Input((4, 4))
    for outputs, message in (
        (Unsaid(2.0, name="unsaid")(inputs), r"layer 'unsaid' \(Unsaid\) cannot be copied"),
        (tf.einsum("bij->bji", inputs), r"model 'whole' cannot be copied: .*tf.einsum"),
    ):
        model = keras.Model(inputs, L.Dense(2)(outputs), name="whole")
        with pytest.raises(BpruneError, match=message) as caught:
            bp.bayesianize(model)
        assert "\n" not in str(caught.value)
