"""What went wrong in earlier code of this field, put to the test: pruning that prunes nothing, KL counted twice.

Every one of these bugs leaves a program that runs, trains and prints plausible numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.bounds import assert_mean, assert_normal_variance
from tests.checks import assert_plain
from tfp_bprune import compile_model, from_arrays, prune
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Info
from tfp_bprune.layers import LAYERS, DenseFlipout, DenseReparameterization, variational_layers
from tfp_bprune.layers.posterior import scale_of
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.training import Settings

ESTIMATORS = ("flipout", "reparameterization")
X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


def network(**arguments: Any) -> Any:
    """Two Bayesian layers, one of each estimator."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            DenseFlipout(8, activation="relu", name="hidden", **arguments),
            DenseReparameterization(3, name="logits", **arguments),
        ]
    )


def kernels(model: Any) -> list[Any]:
    """The kernel posteriors of `model`."""
    return [layer.kernel_posterior for layer in variational_layers(model)]


# 1. A pruned weight got rho = 0 and so became N(0, 0.69^2): noisier than before. The draws made the graph grow.


def test_1_pruning_takes_the_noise_of_a_weight_away_too() -> None:
    model = network()
    pruned, report = prune(model, sparsity=0.75)
    for before, after in zip(kernels(model), kernels(pruned), strict=True):
        gone = after.loc.numpy() == 0  # no mean starts at 0
        assert gone.any()
        assert not gone.all()
        for values in (after.loc, after.scale, after.distribution.stddev(), after.sample([1, 2])):
            assert (values.numpy()[gone] == 0).all()
        np.testing.assert_array_equal(after.scale.numpy()[~gone], before.scale.numpy()[~gone])
    assert report.pruned == sum(int(np.count_nonzero(~q.mask.numpy())) for q in kernels(pruned)) == 54


def test_1_inputs_with_no_weight_left_do_not_reach_a_draw() -> None:
    model = network()
    hidden = kernels(model)[0]
    hidden.loc_variable[:3].assign(tf.zeros((3, 8)))  # the lowest SNR of all: 24 of the 72 weights
    pruned, _ = prune(model, sparsity=24 / 72)
    changed = X.copy()
    changed[:, :3] = 100
    outputs = []
    for x in (X, changed):
        for layer in variational_layers(pruned):
            layer.noise_step.assign(5)
        outputs.append(pruned(x).numpy())
    np.testing.assert_array_equal(*outputs)


def test_1_more_draws_do_not_make_a_larger_graph() -> None:
    sizes = [
        len(
            Predictor(network(), "sampled", samples, task="classification")
            .predict.get_concrete_function()
            .graph.get_operations()
        )
        for samples in (2, 20)
    ]
    assert sizes[0] == sizes[1]


# 2. Scores were divided by rho, which is negative, so the largest weights went first; and what was pruned was a copy
#    that the forward pass never read, so accuracy stayed flat.


def test_2_the_weights_of_least_signal_to_noise_go_first() -> None:
    model = network()
    random = np.random.default_rng(1)
    for q in kernels(model):
        q.loc_variable.assign(random.normal(size=q.shape))
        q.rho_variable.assign(random.uniform(-8, -1, q.shape))  # all negative, as after training
    pruned, _ = prune(model, sparsity=0.5)
    ratios = [np.abs(q.loc.numpy()) / np.log1p(np.exp(q.rho_variable.numpy())) for q in kernels(model)]
    masks = [q.mask.numpy() for q in kernels(pruned)]
    gone = max(ratio[~mask].max() for ratio, mask in zip(ratios, masks, strict=True))
    left = min(ratio[mask].min() for ratio, mask in zip(ratios, masks, strict=True))
    assert gone < left


@pytest.mark.parametrize("how", ["call", "predict"])
def test_2_the_forward_pass_reads_the_pruned_weights(how: str) -> None:
    model = network(rho_init=-40.0)  # sigma = 4e-18: draws are the mean, and the outputs are known
    pruned, _ = prune(model, sparsity=0.6, criterion="magnitude")

    def outputs(network: Any) -> np.ndarray:
        return network.predict(X, verbose=0) if how == "predict" else network(X).numpy()

    before = [q.loc.numpy() for q in kernels(model)]
    cut = np.sort(np.abs(np.concatenate([w.ravel() for w in before])))[round(0.6 * 72)]
    first, second = (np.where(np.abs(w) < cut, 0, w) for w in before)
    np.testing.assert_allclose(outputs(pruned), np.maximum(X @ first, 0) @ second, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs(model), np.maximum(X @ before[0], 0) @ before[1], rtol=1e-4, atol=1e-5)


# 3. KL was counted once a batch, or once a worker.


@pytest.mark.parametrize("workers", [1, 2])
def test_3_an_epoch_of_all_workers_counts_the_divergence_once(workers: int) -> None:
    examples = 48
    x = np.random.default_rng(2).normal(size=(examples, 6)).astype(np.float32)
    y = np.arange(examples) % 3
    data = from_arrays((x, y), (x, y), info=Info("toy", "classification", (6,), 3), batch_size=4, validation_fraction=0)
    batches, total = 0, 0.0
    for rank in range(workers):
        shard = data.shard(rank, workers)
        model = compile_model(network(prior="normal"), shard, settings=Settings(epochs=1, learning_rate=1e-12))
        for batch, labels, *weights in shard.train:
            logs = model.train_on_batch(batch, labels, *weights, reset_metrics=True, return_dict=True)
            # A step's loss is a mean over its examples, of all workers: times their number it is a sum.
            total += (logs["loss"] - logs["nll"]) * len(labels)
            batches += 1
    kl = sum(float(layer.last_kl) for layer in variational_layers(model))
    assert batches == 12
    assert total == pytest.approx(kl, rel=1e-4)


# 4. TFP's DenseFlipout hands None to the divergence in place of the draw; a mixture's KL needs the draw.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_4_the_mixtures_divergence_is_taken_at_the_draw_of_the_forward_pass(estimator: str) -> None:
    layer = LAYERS["Dense", estimator](5, use_bias=False, rho_init=-1.0, train_size=10)
    identity = np.eye(4, dtype=np.float32)
    layer.build(identity.shape)
    q = layer.kernel_posterior
    q.loc_variable.assign(tf.zeros(q.shape))
    # Outputs for the identity are the draw, under Flipout with signs changed, of which the density knows nothing.
    draw = layer(identity, training=True).numpy().astype(np.float64)
    log_p = np.logaddexp(stats.norm.logpdf(draw), stats.norm.logpdf(draw, scale=np.exp(-6))) + np.log(0.5)
    expected = np.sum(-stats.norm.entropy(scale=q.scale.numpy()) - log_p)
    assert float(layer.last_kl) == pytest.approx(expected, rel=1e-5)
    assert float(layer.losses[0]) == pytest.approx(expected / 10, rel=1e-5)


# 5. TFP's layers put marshalled byte code into their configs; such files save and do not load.


@pytest.mark.parametrize("file", ["model.keras", "model.h5"])
def test_5_saved_files_hold_no_code_and_load(file: str, tmp_path: Path) -> None:
    model = network(train_size=10)
    for layer in model.layers:
        assert_plain(layer.get_config())
        assert not [key for key in layer.get_config() if key.endswith(("_fn", "_fn_module", "_fn_type"))]
    json.loads(model.to_json())
    model.save(tmp_path / file)
    loaded = keras.models.load_model(tmp_path / file)
    np.testing.assert_array_equal(loaded(X), model(X))


# 6. TFP's posterior adds an epsilon to softplus(rho): no rho makes its sigma 0. A mask does.


@pytest.mark.parametrize("rho", [-1e4, -100.0, -5.0, 0.0, 10.0])
def test_6_a_mask_makes_sigma_exactly_zero_at_any_rho(rho: float) -> None:
    layer = DenseFlipout(2)
    layer.build((None, 2))
    q = layer.kernel_posterior
    q.rho_variable.assign(tf.fill((2, 2), rho))
    q.mask.assign([[True, False], [False, True]])
    for scale in (q.scale.numpy(), q.distribution.stddev().numpy()):
        assert scale[0, 1] == scale[1, 0] == 0
        np.testing.assert_allclose(np.diag(scale), np.logaddexp(0, rho), rtol=1e-5, atol=1e-37)  # subnormals vanish
    assert q.sample([1, 2]).numpy()[0, 1] == 0


def test_6_sigma_has_no_floor() -> None:
    assert scale_of(tf.constant(-50.0)).numpy() == pytest.approx(np.exp(-50.0), rel=1e-5, abs=0)


# 7. Zeros in a dense matrix save no time: what is pruned must be multiplied in another form, or not at all.


def multiplied(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """The products of the mean prediction: the operation, and the shape of the weights that it reads."""
    graph = Predictor(model, "mean", task="classification").predict.get_concrete_function().graph
    found = []
    for operation in graph.get_operations():
        if operation.type == "MatMul":
            found.append(("dense", tuple(operation.inputs[1].shape)))
        if operation.type == "SparseTensorDenseMatMul":
            found.append(("sparse", (int(operation.inputs[1].shape[0]),)))
    return found


def wide() -> Any:
    layers = [DenseFlipout(1024, activation="relu", name="hidden"), DenseFlipout(8, name="logits")]
    return keras.Sequential([keras.Input((1024,)), *layers])


def test_7_weights_that_are_gone_are_not_multiplied() -> None:
    model = wide()
    assert multiplied(model) == [("dense", (1024, 1024)), ("dense", (1024, 8))]
    pruned, _ = prune(model, sparsity=0.99)
    (form, shape), *_ = multiplied(pruned)
    left = int(np.count_nonzero(kernels(pruned)[0].mask.numpy()))
    assert form == "sparse"
    assert 0 < shape[0] <= left < 0.02 * 1024**2  # of those that are left, what leads to no class is gone too


def test_7_units_that_are_gone_make_smaller_dense_products() -> None:
    pruned, _ = prune(wide(), sparsity=0.5, granularity="unit")
    units = int(kernels(pruned)[0].mask.numpy().any(0).sum())
    assert 0 < units < 1024
    assert multiplied(pruned) == [("dense", (1024, units)), ("dense", (units, 8))]


# 8. Flipout's signs were drawn as floats in place of -1 and +1, which changes the variance.


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_8_flipout_has_the_variance_of_plain_reparameterization(estimator: str) -> None:
    layer = LAYERS["Dense", estimator](4, use_bias=False, rho_init=-0.5, name="layer")
    layer.build((None, 6))
    q = layer.kernel_posterior
    mean = X[0] @ q.loc.numpy()
    variance = np.square(X[0]) @ np.square(q.scale.numpy())
    # Independent across calls, and one example of each call: exactly normal under either estimator.
    calls = tf.function(lambda: tf.map_fn(lambda _: layer(X[:1])[0], tf.range(3000), tf.float32, parallel_iterations=1))
    outputs = calls().numpy()
    assert_mean(outputs, mean, np.sqrt(variance))
    assert_normal_variance(outputs, mean, variance)
