"""Convolutions with several columns of pixels as the channels of one: the same numbers, where that takes fewer products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.exports.networks import classifier
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import export
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.layers import Conv2DReparameterization
from tfp_bprune.prediction import Predictor, columns
from tfp_bprune.prediction.columns import columns_of
from tfp_bprune.prediction.kernels import FOR_CONVERTERS

L = keras.layers
BY_COLUMNS = replace(FOR_CONVERTERS, pixel_columns=True)
FILTERS = (1, 3, 24)


def convolution(size: tuple[int, ...], channels: int, **arguments: Any) -> Any:
    """A layer that is built for inputs [batch, *size, channels]."""
    kind = {1: L.Conv1D, 2: L.Conv2D, 3: L.Conv3D}[len(size)]
    layer = kind(**arguments)
    layer.build((None, *size, channels))
    return layer


def found(size: tuple[int, ...], channels: int, few: bool = False, **arguments: Any) -> Any:
    """What is chosen for it."""
    layer = convolution(size, channels, **arguments)
    return columns_of(layer, [(None, *size, channels)], few)


@settings(max_examples=150, deadline=None)
@given(
    size=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    width=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    stride=st.integers(1, 3),
    channels=st.integers(1, 3),
    filters=st.sampled_from(FILTERS),
    padding=st.sampled_from(["valid", "same"]),
    count=st.integers(1, 8),
)
def test_whole_numbers_are_the_same_to_the_bit(
    size: list[int], width: list[int], stride: int, channels: int, filters: int, padding: str, count: int
) -> None:
    """Sums of whole numbers are exact in any order."""
    rank = len(size)
    assume(padding == "same" or all(w <= s for w, s in zip(width, size, strict=False)))
    layer = convolution(
        tuple(size), channels, filters=filters, kernel_size=width[:rank], strides=stride, padding=padding
    )
    way = columns._columns(layer, tuple(size), count)
    assume(columns._fits(way))
    random = np.random.default_rng(0)
    kernel, x = (
        random.integers(-9, 10, shape).astype(np.float32) for shape in (layer.kernel.shape, (2, *size, channels))
    )
    layer.kernel.assign(kernel)
    made = way.apart(way.apply(tf.constant(x), way.kernel(kernel)))
    np.testing.assert_array_equal(made, layer(x))


def test_few_channels_are_grouped_and_many_are_not() -> None:
    """By what fills blocks of 8 inputs, in whole numbers, and of 16 outputs."""
    first = {"filters": 20, "kernel_size": 5}
    assert found((28, 28), 1, few=True, **first).count == 4
    assert found((28, 28), 1, **first) is None  # 1.6 times as many products by zeros would gain nothing
    assert found((28, 28), 1, filters=2, kernel_size=5).count == 4
    assert found((12, 12), 2, few=True, filters=24, kernel_size=5).count > 1
    assert found((32, 32), 64, few=True, filters=64, kernel_size=3) is None
    assert found((32, 32), 3, few=True, filters=8, kernel_size=3) is not None
    assert (
        found((32, 32), 3, few=True, filters=8, kernel_size=3, padding="same") is None
    )  # padding takes what it spares
    assert found((27, 27), 1, few=True, filters=20, kernel_size=5) is None  # 23 columns have no parts of equal size


@pytest.mark.parametrize(("size", "kernel_size", "strides"), [(5, 2, 2), (67, 3, 3), (29, 4, 4), (9, 1, 4)])
def test_columns_at_the_end_that_nothing_reads_are_no_error(size: int, kernel_size: int, strides: int) -> None:
    """Strides that leave some over, as patches of an image of an odd size do."""
    x = keras.Input((size, size, 3), name="image")
    y = L.Conv2D(4, kernel_size, strides=strides, name="patches")(x)
    model = classifier(keras.Model(x, L.Dense(4, name="logits")(L.Flatten()(y))))
    image = tf.constant(np.random.default_rng(0).uniform(size=(2, size, size, 3)), tf.float32)
    one, other = (Predictor(model, "mean", lowering=way).predict(image) for way in (BY_COLUMNS, FOR_CONVERTERS))
    np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"dilation_rate": 2}, {"groups": 2, "filters": 4}, {"data_format": "channels_first"}], ids=str
)
def test_what_is_no_plain_convolution_stays_as_it_is(arguments: dict[str, Any]) -> None:
    first = bool(arguments.get("data_format"))
    layer = L.Conv2D(**{"filters": 4, "kernel_size": 5} | arguments)
    shape = (None, 2, 28, 28) if first else (None, 28, 28, 2)
    layer.build(shape)
    assert columns_of(layer, [shape], few=True) is None


@pytest.mark.parametrize(
    "layer",
    [L.DepthwiseConv2D(5), L.Conv2DTranspose(2, 5), L.SeparableConv2D(2, 5), L.Dense(2)],
    ids=lambda one: one.name,
)
def test_what_only_looks_like_one_stays_as_it_is(layer: Any) -> None:
    layer.build((None, 28, 28, 2))
    assert columns_of(layer, [(None, 28, 28, 2)], few=True) is None
    x = keras.Input((28, 28, 2), name="image")
    model = classifier(keras.Model(x, L.Dense(4)(L.Flatten()(layer(x)))))
    image = tf.constant(np.random.default_rng(0).uniform(size=(2, 28, 28, 2)), tf.float32)
    one, other = (Predictor(model, "mean", lowering=way).predict(image) for way in (BY_COLUMNS, FOR_CONVERTERS))
    np.testing.assert_allclose(one["probabilities"], other["probabilities"], atol=1e-6)


def test_positions_that_are_not_known_or_differ_stay_as_they_are() -> None:
    layer = convolution((28, 28), 1, filters=20, kernel_size=5)
    assert columns_of(layer, [(None, None, None, 1)], few=True) is None
    assert columns_of(layer, [(None, 28, 28, 1), (None, 20, 20, 1)], few=True) is None
    assert columns_of(layer, [(None, 28, 28, 1)] * 2, few=True) is not None


def small() -> Any:
    """A network of few filters, with biases that are not 0."""
    x = keras.Input((28, 28, 1), name="image")
    y = L.MaxPooling2D(2)(L.Conv2D(3, 5, activation="relu", bias_initializer="normal", name="first")(x))
    y = L.MaxPooling2D(2)(L.Conv2D(5, 5, bias_initializer="normal", name="second")(y))
    return classifier(keras.Model(x, L.Dense(4, name="logits")(L.Flatten()(y))))


def test_a_network_answers_as_it_does_without() -> None:
    model, x = small(), np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    one, other = (Predictor(model, "mean", lowering=lowering) for lowering in (BY_COLUMNS, FOR_CONVERTERS))
    kernels = [[linear._locs["kernel"].shape[-1] for linear in made._linears[:2]] for made in (one, other)]
    assert kernels[1] == [3, 5]
    assert all(wide > narrow for wide, narrow in zip(*kernels, strict=True))
    for name, value in other.predict(tf.constant(x)).items():
        np.testing.assert_allclose(one.predict(tf.constant(x))[name], value, atol=1e-6)


def test_moments_pass_convolutions_as_they_are() -> None:
    """Variances go through a plain convolution too, of which the squares would be needed."""
    x = keras.Input((28, 28, 1), name="image")
    y = L.Conv2D(3, 5, name="plain")(Conv2DReparameterization(1, 1, rho_init=0.0)(x))
    model = classifier(keras.Model(x, L.Dense(4, name="logits")(L.Flatten()(L.AveragePooling2D(2)(y)))))
    made = [Predictor(model, "moments", lowering=lowering) for lowering in (BY_COLUMNS, FOR_CONVERTERS)]
    image = tf.constant(np.random.default_rng(0).uniform(size=(3, 28, 28, 1)), tf.float32)
    one, other = (predictor.predict(image) for predictor in made)
    for name, value in other.items():
        np.testing.assert_allclose(one[name], value, atol=1e-6)


@pytest.mark.parametrize("throughout", [False, True])
def test_a_file_in_whole_numbers_answers_as_one_without(
    throughout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter has one scale wherever it stands: weights are rounded to the same numbers."""
    pytest.importorskip("ai_edge_litert")
    model, x = small(), np.random.default_rng(0).uniform(size=(16, 28, 28, 1)).astype(np.float32)
    given: dict[str, Any] = {"representative": x} if throughout else {}
    answers = {}
    for name in ("with", "without"):
        monkeypatch.setattr(columns, "_LESS", {"with": 0.75, "without": 0.0}[name])
        export(model, tmp_path / name, format="litert", precision="int8", **given)
        content = (tmp_path / name / "model.tflite").read_bytes()
        assert (kernel_widths(content)[0] > 3) == (name == "with")
        answers[name] = FORMS["litert"].runner(tmp_path / name / "model.tflite")({"inputs": x})
    for name, value in answers["without"].items():
        np.testing.assert_allclose(answers["with"][name], value, atol=1e-6)


def kernel_widths(content: bytes) -> list[int]:
    """How many filters each convolution of a LiteRT file has."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    graph = model.subgraphs[0]
    of = [one for one in graph.operators if codes[one.opcodeIndex] == schema.BuiltinOperator.CONV_2D]
    return [int(graph.tensors[one.inputs[1]].shape[0]) for one in of]
