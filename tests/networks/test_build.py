"""Networks by name: one body with five kinds of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Info, Splits, load
from tfp_bprune.layers import DenseFlipout, DenseReparameterization, NormalPrior, StatelessDropout, variational_layers
from tfp_bprune.networks import LayerFactory, build
from tfp_bprune.types import BpruneError

Build = Callable[..., Any]
LAYERS = ("flipout", "reparameterization", "local", "deterministic", "dropout")
KERNELS, BIASES = 64 * 12 + 12 * 10, 12 + 10


def trainable(model: Any) -> int:
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("bayesian_bias", [False, True])
def test_a_bayesian_network_has_one_scale_more_for_each_bayesian_weight(
    mlp: Build, layers: str, bayesian_bias: bool
) -> None:
    bayesian = layers in ("flipout", "reparameterization", "local")
    scales = bayesian * (KERNELS + bayesian_bias * BIASES)
    assert trainable(mlp(layers, bayesian_bias=bayesian_bias)) == KERNELS + BIASES + scales


# Trainable parameters at width 1 with 10 classes, and the kernel weights among them.
PUBLISHED: dict[str, tuple[tuple[int, ...], int, int]] = {
    # 784-300-100-10 (LeCun et al. 1998); 267K in Han et al. 2015, table 3.
    "lenet300": ((28, 28, 1), 266_610, 784 * 300 + 300 * 100 + 100 * 10),
    # Caffe's LeNet; 431K in Han et al. 2015, table 4.
    "lenet5": ((28, 28, 1), 431_080, 25 * 20 + 25 * 20 * 50 + 4 * 4 * 50 * 500 + 500 * 10),
    # TensorFlow's tutorial "Deep MNIST for experts".
    "convnet": ((28, 28, 1), 3_274_634, 25 * 32 + 25 * 32 * 64 + 7 * 7 * 64 * 1024 + 1024 * 10),
    # Configuration D of Simonyan and Zisserman 2015 in its CIFAR form: 14,714,688 in convolutions with 4,224 biases,
    # 8,448 in batch normalization, 5,130 in the classifier.
    "vgg16": ((32, 32, 3), 14_714_688 + 8_448 + 5_130, 14_714_688 - 4_224 + 5_120),
    # Basic blocks of He et al. 2016 in their CIFAR form: 9,600 in batch normalization, 10 biases in the classifier.
    "resnet18": ((32, 32, 3), 11_173_962, 11_173_962 - 9_600 - 10),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_size_and_bayesian_ones_a_scale_more_for_each_kernel_weight(name: str) -> None:
    shape, parameters, kernels = PUBLISHED[name]
    info = Info(name, "classification", shape, 10)
    assert trainable(build(name, info, layers="deterministic")) == parameters
    bayesian = build(name, info, layers="flipout")
    assert trainable(bayesian) == parameters + kernels
    for layer in variational_layers(bayesian):
        assert layer.kernel_posterior.rho_variable.shape == layer.kernel_posterior.loc_variable.shape


@pytest.mark.parametrize("layers", LAYERS)
def test_networks_take_raw_images_and_give_logits(mlp: Build, layers: str, images: np.ndarray) -> None:
    model = mlp(layers)
    assert model(images[:3]).shape == (3, 10)
    assert model.name == "mlp"
    assert len([layer for layer in model.layers if isinstance(layer, StatelessDropout)]) == (layers == "dropout")


def test_layers_have_their_estimator(mlp: Build) -> None:
    for layers, kind in (("flipout", DenseFlipout), ("reparameterization", DenseReparameterization)):
        assert [type(layer) for layer in variational_layers(mlp(layers))] == [kind, kind]


def test_layers_of_the_same_shape_start_from_different_values(mlp: Build) -> None:
    model = mlp("flipout", hidden=(64, 64))
    one, other = (model.get_layer(name).kernel_posterior.loc.numpy() for name in ("dense_1", "dense_2"))
    assert one.shape == other.shape
    assert np.abs(one - other).min(axis=0).max() > 0


def test_the_seed_decides_the_initial_values(mlp: Build) -> None:
    for layers in LAYERS:
        first, same, other = (mlp(layers, seed=seed).get_layer("logits").get_weights()[0] for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)


def test_options_of_a_network_reach_the_layers(mlp: Build) -> None:
    model = mlp(prior={"kind": "normal", "scale": 0.3}, rho_init=-3.0, train_size=77)
    for layer in variational_layers(model):
        assert isinstance(layer.prior, NormalPrior)
        assert layer.prior.get_config()["scale"] == 0.3
        assert layer.train_size == 77
        np.testing.assert_allclose(layer.kernel_posterior.rho_variable.numpy().mean(), -3, atol=0.1)


def test_regression_gives_mean_and_noise_in_target_units() -> None:
    info = load("diabetes").info
    for noise, count in ((None, 1), (50.0, 0)):
        model = build("mlp", info, layers="deterministic", noise=noise, options={"hidden": (4,)})
        outputs = model(np.zeros((2, 10), np.float32)).numpy()
        assert outputs.shape == (2, 2)
        np.testing.assert_allclose(outputs[:, 1], noise or info.target_scale / 2, rtol=1e-5)
        assert len(model.get_layer("likelihood").trainable_weights) == count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "transformer"}, "unknown network 'transformer': expected one of mlp"),
        ({"layers": "evil"}, "unknown layers 'evil': expected one of flipout"),
        ({"options": {"depth": 3}}, "cannot be built with"),
        ({"options": {"hidden": ()}}, "one or more positive layer widths"),
        ({"options": {"hidden": (3, 0)}}, "one or more positive layer widths"),
        ({"name": "lenet300", "options": {"sizes": (3,)}}, r"sizes of lenet300 must be 2 positive .* got \[3\]"),
        ({"name": "lenet300", "options": {"sizes": (3, 0)}}, r"sizes of lenet300 must be 2 positive .* got \[3, 0\]"),
        ({"prior": "cauchy"}, "unknown prior 'cauchy'"),
        ({"prior": {"kind": "normal", "scale": -1}}, "scale must be a positive number"),
        ({"layers": "dropout", "dropout_rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_requests_are_one_clear_error(digits: Splits, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BpruneError, match=message):
        build(**{"name": "mlp", "layers": "flipout", "info": digits.info, **arguments})


@pytest.mark.parametrize("layers", [None, "flipout", "deterministic"])
def test_examples_that_are_too_small_for_a_network_are_one_clear_error(digits: Splits, layers: Any) -> None:
    with pytest.raises(
        BpruneError, match=r"'lenet5' cannot be built for examples of shape \[8, 8, 1\]: .*dimension"
    ) as error:
        build("lenet5", digits.info, layers=layers)
    assert "\n" not in str(error.value)
    with pytest.raises(
        BpruneError, match=r"'vgg16' cannot be built .*Negative dimension size .* from 1; take other examples"
    ):
        build("vgg16", digits.info, layers=layers, options={"width": 0.1})


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("lenet300", (28, 28, 1), (97, 71)),
        ("lenet5", (28, 28, 1), (8, 13, 16)),
        ("vgg16", (32, 32, 3), tuple(range(3, 16))),
    ],
)
def test_the_units_of_each_layer_can_be_said(name: str, shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    model = build(name, Info(name, "classification", shape, 10), layers="deterministic", options={"sizes": sizes})
    made = [layer.kernel.shape[-1] for layer in model.layers if hasattr(layer, "kernel")]
    assert made == [*sizes, 10]


def test_plain_networks_hold_plain_layers() -> None:
    assert type(LayerFactory("deterministic").dense(3, "x")) is keras.layers.Dense
    assert LayerFactory("deterministic").dropout("x")("unchanged") == "unchanged"


def test_data_of_several_inputs_or_answers_is_refused() -> None:
    info = Info("several", "classification", (2,), 3)
    for change in ({"inputs": {"a": (2,), "b": (3,)}}, {"positions": (4,)}):
        with pytest.raises(BpruneError, match="'mlp' has one input and one output per example: several has others"):
            build("mlp", replace(info, **change), layers="flipout")
