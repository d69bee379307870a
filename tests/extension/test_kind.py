"""A kind of layer from outside of the package, trained, kept, resumed, pruned, exported and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.extension.kind import SCALE, ChannelScale, ChannelScaleFlipout
from tfp_bprune._keras import keras
from tfp_bprune._registry import extensions
from tfp_bprune.graphs import compact
from tfp_bprune.layers import bayesian, kind_of, variational_layers, weights_of

L = keras.layers


def plain() -> Any:
    start = keras.initializers.GlorotUniform
    layers = [
        L.Dense(12, activation="relu", kernel_initializer=start(1), name="first"),
        ChannelScale(name="scale"),
        L.Dense(10, activation="softmax", kernel_initializer=start(2), name="last"),
    ]
    return keras.Sequential([keras.Input((8, 8), name="images"), L.Flatten(name="flat"), *layers], name="scaled")


@pytest.fixture(scope="module")
def data() -> Any:
    return bp.load("digits", batch_size=100)


@pytest.fixture(scope="module")
def trained(data: Any, tmp_path_factory: Any) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("kind") / "run"
    model = bp.bayesianize(plain(), strict=True)
    bp.fit(model, data, settings=bp.Settings(epochs=2), out=out, progress=False)
    return model, out


class Dark(keras.callbacks.Callback):
    """An end in the second epoch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise RuntimeError("the lights went out")


def test_the_layer_is_made_bayesian_and_comes_back() -> None:
    before, x = plain(), np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    model = bp.bayesianize(before, rho_init=-30.0, strict=True)
    assert type(model.get_layer("scale")) is ChannelScaleFlipout
    np.testing.assert_allclose(model(x), before(x), rtol=1e-5, atol=1e-6)
    assert type(bp.strip(model).get_layer("scale")) is ChannelScale
    np.testing.assert_array_equal(bp.strip(model)(x), before(x))


def test_a_run_resumes_to_the_same_bits(trained: Any, data: Any, tmp_path: Path) -> None:
    model, _ = trained
    out = tmp_path / "run"
    settings = bp.Settings(epochs=2)
    with pytest.raises(RuntimeError, match="the lights went out"):
        bp.fit(
            bp.bayesianize(plain(), strict=True), data, settings=settings, out=out, callbacks=[Dark()], progress=False
        )
    again = bp.bayesianize(plain(), strict=True)
    bp.fit(again, data, settings=settings, out=out, resume=True, progress=False)
    for one, other in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_it_is_pruned_compacted_stored_exported_and_read_again(
    trained: Any, data: Any, granularity: Any, tmp_path: Path
) -> None:
    model, out = trained
    loaded = bp.load_model(out)
    loaded = getattr(loaded, "model", loaded)
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    pruned, report = bp.prune(loaded, sparsity=0.6, granularity=granularity)
    assert report.sparsity >= 0.6 - 1 / report.prunable
    small = compact(pruned)
    if granularity == "unit":
        units = int(weights_of(pruned.get_layer("scale"))["kernel"].mask.sum())
        assert small.get_layer("scale").kernel.shape == (units,)
        assert units < 12
    x = data.examples("valid").x[:50].reshape(-1, 8, 8)
    expected = bp.strip(pruned)(x).numpy()
    bp.export(pruned, tmp_path / "mean", predictive="mean")
    bp.export(pruned, tmp_path / "sampled", predictive="sampled", samples=200)
    mean, sampled = bp.reload([tmp_path / "mean", tmp_path / "sampled"], x)
    np.testing.assert_allclose(mean.outputs["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(sampled.outputs["probabilities"] - expected).max() < 0.5
    with pytest.raises(bp.BpruneError, match="layer 'scale' is of a kind"):
        bp.export(pruned, tmp_path / "moments", predictive="moments")


def test_a_new_process_would_import_it_and_another_layer_cannot_take_its_place() -> None:
    assert "tests.extension.kind" in extensions()

    class Other(ChannelScaleFlipout):
        """A layer from elsewhere under the same name."""

    with pytest.raises(
        bp.BpruneError, match=r"there is a layer 'ChannelScale\.flipout' already, of tests\.extension\.kind"
    ):
        bayesian(SCALE, "flipout")(Other)


def test_the_package_knows_it_by_its_declaration_alone(trained: Any) -> None:
    model, _ = trained
    assert [kind_of(layer).name for layer in variational_layers(model)] == ["Dense", "ChannelScale", "Dense"]  # type: ignore[union-attr]
