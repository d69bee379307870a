"""All Bayesian layers meet the contract of layers, under their several options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.checks import check_layer
from tfp_bprune._keras import keras
from tfp_bprune.layers import LAYERS, DenseFlipout, NormalPrior, set_train_size, variational_layers
from tfp_bprune.types import BpruneError

DENSE = [
    ({"units": 3}, (5,)),
    ({"units": 3, "bayesian_bias": True, "activation": "tanh"}, (2, 5)),  # rank-3 inputs
    ({"units": 3, "use_bias": False, "prior": NormalPrior(0.5, 0.1)}, (5,)),
]
CONVOLUTION: dict[str, list[tuple[dict[str, Any], tuple[int, ...]]]] = {
    "Conv1D": [
        ({"filters": 3, "kernel_size": 3, "padding": "same", "bayesian_bias": True}, (7, 2)),
        ({"filters": 2, "kernel_size": 2, "dilation_rate": 2, "use_bias": False}, (7, 2)),
    ],
    "Conv2D": [
        ({"filters": 3, "kernel_size": 3, "padding": "same", "activation": "relu"}, (6, 5, 2)),
        ({"filters": 2, "kernel_size": (2, 3), "strides": 2, "prior": "normal", "bayesian_bias": True}, (6, 7, 3)),
    ],
    "Conv3D": [
        ({"filters": 2, "kernel_size": 2, "strides": (1, 2, 1), "bayesian_bias": True}, (3, 4, 3, 2)),
        (
            {"filters": 2, "kernel_size": 1, "use_bias": False, "prior": {"kind": "scale_mixture", "pi": 0.25}},
            (2, 2, 2, 3),
        ),
    ],
}
CASES = [("Dense", *case) for case in DENSE] + [(kind, *case) for kind, cases in CONVOLUTION.items() for case in cases]


ESTIMATORS = ("flipout", "reparameterization", "local")
EACH = [  # a layer that stands for two estimators, as Flipout for "local" in convolutions, once
    (estimator, *case)
    for place, estimator in enumerate(ESTIMATORS)
    for case in CASES
    if LAYERS[case[0], estimator] not in [LAYERS[case[0], before] for before in ESTIMATORS[:place]]
]


@pytest.mark.parametrize(("estimator", "kind", "arguments", "input_shape"), EACH)
def test_layer_meets_the_contract(
    estimator: str, kind: str, arguments: dict[str, Any], input_shape: tuple[int, ...]
) -> None:
    first = next(case for case in CASES if case[0] == kind)
    check_layer(LAYERS[kind, estimator], arguments, input_shape, saved_model=(kind, arguments, input_shape) == first)


def test_equal_layers_start_from_different_means() -> None:
    model = keras.Sequential([keras.Input((4,)), DenseFlipout(4, name="a"), DenseFlipout(4, name="b")])
    first, second = (layer.kernel_posterior.loc.numpy() for layer in model.layers)
    assert not np.isclose(first, second).any()


def test_set_train_size_reaches_nested_models_and_traces_anew() -> None:
    inner = keras.Sequential([keras.Input((4,)), DenseFlipout(3, name="inner", prior="normal")], name="nested")
    model = keras.Sequential([keras.Input((4,)), inner, DenseFlipout(2, name="outer", prior="normal")])
    assert [layer.name for layer in variational_layers(model)] == ["inner", "outer"]
    model.compile(keras.optimizers.legacy.SGD(0.0), lambda y, prediction: 0.0 * prediction)
    x = np.zeros((8, 4), np.float32)
    losses = []
    for train_size in (10, 20):  # the second would be ignored by a function traced with the first
        set_train_size(model, train_size)
        losses.append(model.fit(x, x[:, :2], batch_size=8, verbose=0).history["loss"][0])
    kl = sum(float(layer.last_kl) for layer in variational_layers(model))
    np.testing.assert_allclose(losses, [kl / 10, kl / 20], rtol=1e-5)


@pytest.mark.parametrize("prior", ["laplace", {"kind": "normal", "width": 1}, {"kind": "normal", "scale": -1}, 3])
def test_unknown_priors_are_refused(prior: Any) -> None:
    with pytest.raises(BpruneError, match="prior"):
        DenseFlipout(2, prior=prior)
