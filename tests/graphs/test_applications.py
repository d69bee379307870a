"""Networks of `tf_keras.applications`: made Bayesian, trained, pruned, made smaller, and served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.graphs import compact

pytestmark = pytest.mark.slow
SHAPE, CLASSES, BATCH = (64, 64, 3), 10, 8


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(BATCH, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module", params=["MobileNetV2", "EfficientNetB0", "ResNet50"])
def network(request: pytest.FixtureRequest, images: np.ndarray) -> Any:
    """The network with batch normalization as training leaves it: without its statistics every image gets one answer."""
    keras.utils.set_random_seed(0)  # of some weights half of the units do not tell images apart
    options = {"weights": None, "input_shape": SHAPE, "classes": CLASSES, "classifier_activation": None}
    model, random = getattr(keras.applications, request.param)(**options), np.random.default_rng(0)
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in normalizations:
        layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(random.normal(0, 0.3, layer.beta.shape))
        layer.momentum = 0.0
    model(images, training=True)
    for layer in normalizations:
        layer.momentum = 0.99
    return model


@pytest.fixture(scope="module")
def bayesian(network: Any, images: np.ndarray) -> Any:
    """The network after one step of training as a Bayesian one."""
    model = bp.bayesianize(network, train_size=10**6, strict=True)  # depthwise convolutions too
    for ours, theirs in zip(bp.strip(model).get_weights(), network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.legacy.Adam(1e-4), loss)
    history = model.fit(images, np.arange(BATCH) % CLASSES, batch_size=BATCH, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    return model


def assert_same_answers(logits: Any, expected: np.ndarray) -> None:
    """Equal up to a constant for each image, with errors far below what tells one image from another."""
    centred, wanted = (np.asarray(z) - np.mean(z, axis=1, keepdims=True) for z in (logits, expected))
    np.testing.assert_allclose(centred, wanted, rtol=0, atol=0.01 * wanted.std(axis=0).max())


@pytest.mark.parametrize(("granularity", "sparsity"), [("weight", 0.8), ("unit", 0.5)])
def test_pruned_compacted_and_exported_it_gives_the_same_numbers(
    bayesian: Any, images: np.ndarray, granularity: Any, sparsity: float, tmp_path: Path
) -> None:
    # By layer: of untrained weights all layers are worth as much, and one without any lets no image through.
    scope = "layer" if granularity == "weight" else "global"
    pruned, report = bp.prune(bayesian, sparsity=sparsity, granularity=granularity, scope=scope)
    assert sparsity - 1e-4 < report.sparsity < sparsity + 0.01
    # Else what is left of the depthwise kernels is too weak to tell images apart under the statistics of before.
    pruned = bp.recalibrate(pruned, images)
    masked = bp.strip(pruned)
    for entry in report.layers:
        layer, kernel = entry.name.split("/")
        left = pruned.get_layer(layer).posteriors[kernel].mask.numpy()
        expected = np.where(left, bayesian.get_layer(layer).posteriors[kernel].loc, 0)
        np.testing.assert_array_equal(getattr(masked.get_layer(layer), kernel), expected)
    logits = masked(images, training=False).numpy()
    smaller = compact(masked)
    assert_same_answers(smaller(images, training=False), logits)
    if granularity == "unit":
        assert smaller.count_params() < 0.6 * masked.count_params()
    bp.export(pruned, tmp_path / "export")
    [reloaded] = bp.reload(tmp_path / "export", images)
    assert_same_answers(np.log(reloaded.outputs["probabilities"]), logits)
