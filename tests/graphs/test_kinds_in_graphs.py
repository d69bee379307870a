"""Kinds of layers where the graph matters: sizes that are not known, masks, layers called twice or within others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.layers.kinds import L, plain_model, randomize
from tests.layers.test_kinds import CERTAIN, assert_kept
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import variational_layers
from tfp_bprune.types import BpruneError


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "sizes"),
    [
        ("DepthwiseConv2D", {"kernel_size": 2}, (None, None, 3), (4, 5)),
        ("SeparableConv1D", {"filters": 2, "kernel_size": 2}, (None, 3), (5,)),
        ("Conv2DTranspose", {"filters": 2, "kernel_size": 2, "strides": 2}, (None, None, 3), (2, 3)),
        ("EinsumDense", {"equation": "abc,cd->abd", "output_shape": (None, 2)}, (None, 3), (4,)),
        ("Conv1D", {"filters": 4, "kernel_size": 2, "padding": "causal", "groups": 2}, (None, 4), (5,)),
    ],
)
def test_inputs_of_unknown_size(name: str, arguments: dict[str, Any], shape: Any, sizes: tuple[int, ...]) -> None:
    model = plain_model(name, arguments, shape)
    assert_kept(model, np.random.default_rng(0).normal(size=(2, *sizes, shape[-1])).astype(np.float32))


def test_channels_first_where_a_cpu_can() -> None:
    """TensorFlow's kernels for it are on GPUs alone, but for the transposed convolution, which Keras turns."""
    model = plain_model("Conv2DTranspose", {"filters": 3, "kernel_size": 2, "data_format": "channels_first"}, (2, 3, 4))
    assert_kept(model, np.ones((2, 2, 3, 4), np.float32), bayesian_bias=True)


def test_masks_go_from_an_embedding_to_what_heeds_them() -> None:
    ids = keras.Input((4,), dtype="int32")
    embedded = L.Embedding(6, 3, mask_zero=True)(ids)
    model = keras.Model(ids, L.Dense(2)(L.GlobalAveragePooling1D()(embedded)))
    x = np.array([[1, 2, 0, 0], [3, 4, 5, 0], [1, 0, 0, 2]])
    bayesian = assert_kept(model, x)
    np.testing.assert_array_equal(bayesian.layers[1].compute_mask(tf.constant(x)), x != 0)
    assert not np.allclose(bayesian(x), bayesian(np.where(x == 0, 5, x)))


def test_a_layer_called_twice_one_within_a_model_and_one_at_each_step() -> None:
    inner = keras.Sequential([keras.Input((5, 5, 2)), L.SeparableConv2D(2, 2, padding="same"), L.ReLU()], name="inner")
    shared = L.DepthwiseConv2D(2, padding="same", name="shared")
    first, second = keras.Input((5, 5, 2)), keras.Input((3, 5, 5, 2))
    steps = L.TimeDistributed(L.Conv2DTranspose(2, 2), name="steps")(second)
    h = L.Add()([shared(inner(first)), shared(first)])
    model = keras.Model([first, second], [L.Flatten()(h), L.Flatten()(steps)])
    randomize(model)
    random = np.random.default_rng(0)
    x = [random.normal(size=(2, *shape)).astype(np.float32) for shape in ((5, 5, 2), (3, 5, 5, 2))]
    bayesian = bp.bayesianize(model, train_size=10, rho_init=CERTAIN, strict=True)
    for ours, theirs in zip(bayesian(x), model(x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert len(list(variational_layers(bayesian))) == 3


def test_an_equation_whose_outputs_do_not_begin_with_the_examples_is_refused() -> None:
    inputs = keras.Input((2, 4), batch_size=2)
    layer = L.EinsumDense("abc,cd->bad", output_shape=(2, 5), name="turned")
    model = keras.Model(inputs, layer(inputs))
    with pytest.raises(BpruneError, match="no layer to make Bayesian"):
        bp.bayesianize(model, train_size=10, strict=True)
