"""Priors and posteriors from outside: one that learns its scale, and a product of a unit's scale and a weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.bounds import assert_mean
from tests.extension.criterion import capacity
from tests.extension.posterior import Product
from tests.extension.prior import Learned
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports.manifest import parameters_of
from tfp_bprune.layers import LAYERS, CentredPrior, NormalPrior, Prior, ScaleMixturePrior, noise
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.layers.prior import PRIORS, Normals, register_prior

SMALL, COMPILED = (6, 5), (300, 250)


class LearnedExactly(Learned):
    """The same in closed form, with the log of the scale written as anyone would write it."""

    kind = "learned_exactly"
    exact = True

    def kl(self, q: Normals, sample: Any, variables: Any) -> Any:
        log_s = variables["log_s"]
        second = tf.square(q.loc) + tf.square(q.scale)
        return 0.5 * second / tf.exp(2 * log_s) - 0.5 - tf.math.log(q.scale) + log_s


class Plain(ScaleMixturePrior):
    """The mixture, whose pull is left to TensorFlow."""

    pull = Prior.pull


class PlainNormal(NormalPrior):
    """The normal, whose pulls are left to TensorFlow."""

    pulls = Prior.pulls


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What this test alone adds."""
    register_prior(LearnedExactly)
    yield
    PRIORS.remove("learned_exactly")


def normals(shape: Any, prior: Prior, variables: Any = None) -> MaskedNormal:
    random = np.random.default_rng(1)
    values = random.normal(size=shape), random.uniform(-6, 2, shape), random.random(shape) < 0.7
    types = (tf.float32, tf.float32, tf.bool)
    return MaskedNormal(*(tf.Variable(v, dtype=t) for v, t in zip(values, types, strict=True)), prior, variables)


@pytest.mark.parametrize(
    ("ours", "derived"),
    [
        (NormalPrior(0.5, 0.1), PlainNormal(0.5, 0.1)),
        (ScaleMixturePrior(), Plain()),
        (ScaleMixturePrior(0.3, 0.6, 0.4), Plain(0.3, 0.6, 0.4)),
    ],
)
@pytest.mark.parametrize("centred", [False, True])
def test_pulls_by_default_are_those_written_by_hand(ours: Any, derived: Any, centred: bool) -> None:
    q, random = normals(SMALL, ours), np.random.default_rng(2)
    centre = {"prior_loc": tf.constant(random.normal(size=SMALL), tf.float32)} if centred else {}
    priors = [CentredPrior(p) if centred else p for p in (ours, derived)]
    seen, epsilon = Normals(q.loc, q.scale, q.log_scale, q.mask), tf.constant(random.normal(size=SMALL), tf.float32)
    left = q.mask.numpy()
    for one, other in zip(*(prior.pulls(seen, epsilon, centre) for prior in priors), strict=True):
        np.testing.assert_allclose(one.numpy()[left], other.numpy()[left], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("shape", [SMALL, COMPILED])
@pytest.mark.parametrize("family", [Learned, LearnedExactly])
@pytest.mark.parametrize("moment", ["variance", "deviation"])
@pytest.mark.parametrize("every", [True, False])
def test_a_prior_that_learns_gets_the_gradient_that_tensorflow_derives(
    shape: Any, family: Any, moment: Any, every: bool
) -> None:
    prior = family()
    log_s = tf.Variable(np.random.default_rng(3).normal(size=(shape[0], 1)), dtype=tf.float32)
    q, seed = normals(shape, prior, {"log_s": log_s}), noise.seed_pair(1, "stream")
    sources, epsilon = [q.loc_variable, q.rho_variable, log_s], noise.normal(list(shape), seed)
    with tf.GradientTape(persistent=True) as tape:
        ours = 2.5 * q.terms(moment, lambda stream: seed, every).kl
        whole = Normals(q.loc, tf.where(q.mask, q.scale, 1.0), q.log_scale, q.mask)
        each = prior.kl(whole, q.loc + q.scale * epsilon, {"log_s": log_s})
        plain = 2.5 * tf.reduce_sum(tf.where(q.mask, each, 0.0))
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for one, other in zip(tape.gradient(ours, sources), tape.gradient(plain, sources), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).max())


@pytest.fixture
def data() -> Any:
    random = np.random.default_rng(0)
    return random.normal(size=(40, 6)).astype(np.float32), random.integers(0, 3, 40)


def network(estimator: str = "flipout", **options: Any) -> Any:
    dense = LAYERS["Dense", estimator]
    hidden = dense(8, activation="relu", name="hidden", train_size=40, **options)
    return keras.Sequential([keras.Input((6,)), hidden, dense(3, name="logits", train_size=40, **options)])


def trained(model: Any, data: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.legacy.Adam(0.05), loss)
    model.fit(*data, epochs=3, verbose=0)
    return model


@pytest.mark.parametrize(
    "options", [{"prior": Learned.kind}, {"prior": Learned.kind, "own_prior_loc": True}, {"posterior": Product.kind}]
)
@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_what_is_registered_trains_and_is_pruned_stored_and_exported(
    options: Any, granularity: Any, data: Any, tmp_path: Path
) -> None:
    model = network(**options)
    q = model.get_layer("hidden").posteriors["kernel"]
    before = {name: variable.numpy() for name, variable in q.variables.items()}
    trained(model, data)
    for name, variable in q.variables.items():
        assert variable.trainable == (name not in ("mask", "prior_loc"))
        assert np.any(variable.numpy() != before[name]) == variable.trainable
    assert parameters_of(model) == 6 * 8 + 8 + 8 * 3 + 3
    pruned, report = bp.prune(model, sparsity=0.5, granularity=granularity)
    assert 0.5 <= report.sparsity < 1
    assert (
        bp.prune(model, sparsity=0.5, criterion="capacity", granularity=granularity)[1].criterion == capacity.__name__
    )
    assert 0 <= bp.prune(model, granularity=granularity)[1].sparsity <= 1
    bp.save_model(pruned, tmp_path / "run", config={})
    loaded = bp.load_model(tmp_path / "run").model
    for old, new in zip(pruned.weights, loaded.weights, strict=True):
        if not old.name.endswith(("_loc:0", "_rho:0")):
            np.testing.assert_array_equal(old, new)
    expected = bp.strip(pruned)(data[0]).numpy()
    np.testing.assert_array_equal(bp.strip(loaded)(data[0]), expected)
    bp.export(loaded, tmp_path / "export", task="classification", from_logits=True)
    [served] = bp.reload(tmp_path / "export", data[0])
    np.testing.assert_allclose(served.outputs["probabilities"], tf.nn.softmax(expected), atol=1e-5)
    trained(loaded, data)
    assert (loaded.get_layer("hidden").posteriors["kernel"].sample([1, 2]).numpy()[~q_mask(loaded)] == 0).all()


def q_mask(model: Any) -> Any:
    return model.get_layer("hidden").posteriors["kernel"].mask.numpy()


def test_draws_of_a_product_have_its_mean_and_variance() -> None:
    q = network(posterior=Product.kind, rho_init=-1.0).get_layer("hidden").posteriors["kernel"]
    draws = np.stack([q.sample([7, step]).numpy() for step in range(2000)])
    assert_mean(draws, q.loc.numpy(), q.scale.numpy())


def test_a_slice_takes_the_priors_variables_along() -> None:
    small, large = (LAYERS["Dense", "flipout"](3, prior=Learned.kind, own_prior_loc=True) for _ in range(2))
    small.build((None, 2)), large.build((None, 5))
    q, other = small.posteriors["kernel"], large.posteriors["kernel"]
    for variable in other.variables.values():
        if variable.dtype != tf.bool:
            variable.assign(np.arange(variable.shape.num_elements()).reshape(variable.shape))
    q.copy_slice(other, np.ix_([1, 4], range(3)))
    for name, variable in q.variables.items():
        np.testing.assert_array_equal(variable, other.variables[name].numpy()[[1, 4]])


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(bp.BpruneError, match="learned_exactly"):
        LAYERS["Dense", "flipout"](3, prior="nothing")
    with pytest.raises(bp.BpruneError, match="product"):
        LAYERS["Dense", "flipout"](3, posterior="nothing")
