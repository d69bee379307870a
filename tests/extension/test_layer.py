"""Layers without weights from outside of the package: pruned by unit, made smaller, stored, and exported in all three ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tfp_bprune as bp
from tests.bounds import FALSE_ALARM
from tests.extension.layer import ChannelOrder, HardClip
from tests.prediction.test_answers import predicted
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs import compact
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout
from tfp_bprune.layers.rules import LayerRule, rule_for, rule_of
from tfp_bprune.prediction import Predictor
from tfp_bprune.pruning import remove_dead
from tfp_bprune.pruning.prune import apply_masks
from tfp_bprune.types import BpruneError, ExportError

L = keras.layers
REGRESSION: dict[str, Any] = {"task": "regression"}
X = np.random.default_rng(0).normal(size=(4, 5, 5, 2)).astype(np.float32)


def network(*middle: Any, scale: float = -4.0) -> Any:
    """Two Bayesian layers around what is tested."""
    keras.utils.set_random_seed(0)
    first = Conv2DFlipout(8, 2, name="first", rho_init=scale)
    layers = [first, *middle, L.GlobalAveragePooling2D(), DenseFlipout(2, name="top", rho_init=scale)]
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    model.get_layer("first").bias.assign(np.linspace(-1.5, 1.5, 8))
    return model


def shuffled(**options: Any) -> Any:
    return network(HardClip(), ChannelOrder([3, 7, 1, 0, 6, 5, 2, 4], name="order"), **options)


@pytest.fixture(scope="module")
def pruned() -> Any:
    """With half of its units."""
    return bp.prune(shuffled(), sparsity=0.5, granularity="unit")[0]


def test_units_are_pruned_through_them_and_the_smaller_network_is_equal(pruned: Any) -> None:
    plain = bp.strip(pruned)
    small = compact(plain)
    assert (small.get_layer("first").filters, len(small.get_layer("order").order)) == (4, 4)
    np.testing.assert_allclose(small(X), plain(X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predicted(pruned, "mean", X, **REGRESSION)["mean"], plain(X), rtol=1e-5, atol=1e-6)


def test_a_constant_goes_through_them_into_the_bias_of_the_reader() -> None:
    model = shuffled()
    mask = np.ones((2, 2, 2, 8), bool)
    mask[..., 0] = False  # the bias of -1.5 is left, which is clipped to -1 and becomes channel 3
    apply_masks(model, {"first/kernel": mask})
    expected, top = bp.strip(model)(X), model.get_layer("top")
    shift = top.bias.numpy() - top.kernel_posterior.loc.numpy()[3]
    assert remove_dead(model) > 0
    np.testing.assert_allclose(top.bias, shift, rtol=1e-6)
    np.testing.assert_allclose(bp.strip(model)(X), expected, rtol=1e-5, atol=1e-6)


def test_draws_and_moments_go_through_them(pruned: Any) -> None:
    samples = 600
    drawn = predicted(pruned, "sampled", X, samples=samples, **REGRESSION)
    carried = predicted(pruned, "moments", X, **REGRESSION)
    z = stats.norm.isf(FALSE_ALARM / (2 * drawn["mean"].size)) / np.sqrt(samples)
    spread = drawn["weights_std"]
    # Of a clip the quadrature is off by at most .06 deviations of what it clips (`test_moments`), here as many of the output.
    assert (np.abs(carried["mean"] - drawn["mean"]) <= (z + 0.06) * spread).all()
    np.testing.assert_allclose(np.log(carried["weights_std"] / spread), 0, atol=z / np.sqrt(2) + 0.1)
    # Twice derived: the deviation is itself off by a sixth at most.
    keras_draws = np.array([pruned(X).numpy() for _ in range(100)])
    several = z * np.sqrt(samples) * np.sqrt(1 / 100 + 1 / samples)
    assert (np.abs(keras_draws.mean(0) - drawn["mean"]) <= several * 1.2 * spread).all()


def test_they_are_stored_and_exported(pruned: Any, tmp_path: Path) -> None:
    bp.save_model(pruned, tmp_path / "model")
    again = bp.load_model(tmp_path / "model").model
    np.testing.assert_array_equal(bp.strip(again)(X), bp.strip(pruned)(X))
    bp.export(pruned, tmp_path / "served", predictive="moments", **REGRESSION)
    served = tf.saved_model.load(str(tmp_path / "served" / "1")).signatures["serving_default"]
    np.testing.assert_allclose(
        served(tf.constant(X))["mean"], predicted(pruned, "moments", X, **REGRESSION)["mean"], rtol=1e-4
    )


class Unknown(L.Layer):
    """No rule is declared for it."""

    def call(self, inputs: Any) -> Any:
        return inputs - 1.0


class Clipped(HardClip):
    """Computes something of its own: the rule of its base does not hold."""

    def call(self, inputs: Any) -> Any:
        return super().call(inputs) * keras.backend.sum(inputs)


class Named(HardClip):
    """Computes what its base does."""

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


@pytest.mark.parametrize("layer", [Unknown(name="own"), Clipped(name="own")])
def test_without_a_rule_all_stay_and_moments_are_refused_by_name(layer: Any) -> None:
    assert type(rule_of(layer)) is LayerRule
    model = network(layer)
    kernel, bias = bp.strip(model).get_layer("first").get_weights()
    plain = bp.strip(model)
    plain.get_layer("first").set_weights([kernel * (np.arange(8) > 3), bias * (np.arange(8) > 3)])
    assert compact(plain) is plain
    with pytest.raises(ExportError, match=rf"^layer 'own' is a {type(layer).__name__}, through which no rule carries"):
        Predictor(model, "moments", **REGRESSION)


def test_a_class_that_computes_what_its_base_does_has_its_rule() -> None:
    assert rule_of(Named()) is rule_of(HardClip())


KERAS_WITH_ITS_OWN: dict[str, tuple[type, str]] = {
    "Dropout": (L.Dropout, "call"),
    "Add": (L.Add, "_merge_function"),
    "MaxPooling2D": (L.MaxPooling2D, "call"),
    "BatchNormalization": (L.BatchNormalization, "call"),
    "RandomFlip": (L.RandomFlip, "call"),
    "ReLU": (L.ReLU, "__call__"),
}


@pytest.mark.parametrize("name", KERAS_WITH_ITS_OWN)
def test_subclasses_with_a_computation_of_their_own_are_not_taken_for_their_base(name: str) -> None:
    base, method = KERAS_WITH_ITS_OWN[name]
    arguments = [0.5] if name == "Dropout" else []
    assert type(rule_of(base(*arguments))) is not LayerRule
    assert type(rule_of(type("Own", (base,), {})(*arguments))) is not LayerRule
    own = type("Own", (base,), {method: lambda self, inputs, **_: inputs})
    assert type(rule_of(own(*arguments))) is LayerRule


def test_a_second_rule_for_a_class_is_refused() -> None:
    with pytest.raises(
        BpruneError, match=r"there is a rule of a layer 'tests\.extension\.layer\.ChannelOrder' already"
    ):

        @rule_for(ChannelOrder)
        class _Other(LayerRule):
            pass
