"""What of the inputs is read: nothing else moves an output, and dense layers are told pixel by pixel."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.branching import NAMES, NETWORKS, built, randomized
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs import compact
from tfp_bprune.graphs.inputs import InputUse, read_inputs
from tfp_bprune.pruning.prune import apply_masks

L = keras.layers
Pruner = Callable[..., Any]


def mask_of(use: InputUse, shape: tuple[int, ...]) -> np.ndarray:
    """Which numbers of an example are read."""
    read = np.zeros(use.of, bool)
    read[list(use.which)] = True
    return np.broadcast_to(read, shape) if use.by == "channel" else read.reshape(shape)


@pytest.mark.parametrize(("shape", "body"), NETWORKS, ids=NAMES)
def test_what_is_not_read_moves_nothing(shape: tuple[int, ...], body: Any, prune_at_random: Pruner) -> None:
    rng = np.random.default_rng(0)
    model = prune_at_random(randomized(built(shape, body), rng), rng, 0.93)
    x = rng.normal(size=(4, *shape)).astype(np.float32)
    for network in (model, compact(model)):
        [use] = read_inputs(network).values()
        other = np.where(mask_of(use, shape), x, rng.normal(size=x.shape).astype(np.float32) * 9)
        np.testing.assert_allclose(network(other), network(x), rtol=1e-5, atol=1e-6)


def of_pixels(*first: Any) -> Any:
    """A network that reads pixels 1, 6 and 11 of an image of 3 x 4, the last by a unit that nothing needs."""
    layers = [*first, L.Flatten(), L.Dense(3, "relu", name="a"), L.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((3, 4, 1)), *layers])
    a, b = np.zeros((12, 3)), np.ones((3, 2))
    a[[1, 6, 11], [0, 1, 2]], b[2] = 1, 0
    model.get_layer("a").set_weights([a, np.ones(3)])
    model.get_layer("b").set_weights([b, np.zeros(2)])
    return model


@pytest.mark.parametrize(
    "first",
    [
        [],
        [L.Rescaling(0.5)],
        [L.Dropout(0.1), L.BatchNormalization(), L.ReLU()],
        [L.Normalization(mean=1.0, variance=2.0)],
        [L.Reshape((12,)), L.Reshape((4, 3))],
    ],
)
def test_pixels_are_told_one_by_one(first: Any) -> None:
    assert list(read_inputs(of_pixels(*first)).values()) == [InputUse("feature", 12, (1, 6))]


def test_pixels_that_were_moved_are_told_where_they_came_from() -> None:
    moved = [L.Permute((2, 1, 3)), L.ZeroPadding2D(((0, 0), (0, 1))), L.Cropping2D(((0, 0), (1, 0)))]
    [use] = read_inputs(of_pixels(*moved)).values()
    # Transposed [4, 3], one column of zeros behind and one gone before: column j holds row j + 1 of the image.
    places = np.arange(12).reshape(3, 4).T[:, 1:]
    seen = np.pad(places, ((0, 0), (0, 1)), constant_values=-1).ravel()
    assert use.which == tuple(sorted(int(p) for p in seen[[1, 6]] if p >= 0))


def test_what_mixes_pixels_is_told_by_channel() -> None:
    model = keras.Sequential([keras.Input((6, 6, 3)), L.MaxPooling2D(), L.Conv2D(2, 2), L.Flatten(), L.Dense(2)])
    kernel = model.layers[1].kernel
    kernel.assign(kernel * np.array([1.0, 0, 1])[:, None])
    assert list(read_inputs(model).values()) == [InputUse("channel", 3, (0, 2))]
    model = keras.Sequential([keras.Input((None, None, 3)), L.Conv2D(2, 2), L.GlobalMaxPooling2D(), L.Dense(2)])
    model.layers[0].kernel.assign(model.layers[0].kernel * np.array([0.0, 1, 0])[:, None])
    assert list(read_inputs(model).values()) == [InputUse("channel", 3, (1,))]
    model = keras.Sequential([keras.Input((4, 4, 2)), L.DepthwiseConv2D(2), L.Flatten(), L.Dense(2)])
    model.layers[0].depthwise_kernel.assign(np.ones((2, 2, 2, 1)) * np.array([0.0, 1])[:, None])
    assert list(read_inputs(model).values()) == [InputUse("channel", 2, (1,))]


def test_branches_and_several_inputs() -> None:
    one, two, three = (keras.Input((4,), name=name) for name in ("one", "two", "three"))
    joined = L.Concatenate()([one, L.Add()([two, three])])
    out = L.Add()([L.Dense(2, name="a")(joined), L.Dense(2, name="b")(one)])
    model = keras.Model([one, two, three], out)
    for name, rows in (("a", [1, 5]), ("b", [3])):
        kernel = np.zeros(model.get_layer(name).kernel.shape)
        kernel[rows] = 1
        model.get_layer(name).kernel.assign(kernel)
    found = {name: use.which for name, use in read_inputs(model).items()}
    assert found == {"one": (1, 3), "two": (1,), "three": (1,)}


@pytest.mark.parametrize(
    "body", [lambda x: L.LSTM(3)(x), lambda x: tf.reduce_sum(x, 1), lambda x: L.LayerNormalization()(x)]
)
def test_what_is_not_known_counts_as_read(body: Any) -> None:
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(body(inputs))))
    assert all(use.whole for use in read_inputs(model).values())


def test_a_report_says_what_is_read(mlp: Callable[..., Any]) -> None:
    model = mlp()
    gone = np.ones((64, 12), bool)
    gone[[0, 7, 56]] = False
    apply_masks(model, {"dense_1/kernel": gone})
    _, report = bp.prune(model, sparsity=0.0)
    [use] = report.inputs.values()
    assert (use.by, use.of) == ("feature", 64)
    assert set(range(64)) - set(use.which) == {0, 7, 56}
    stored = json.loads(json.dumps(report.to_json()["inputs"]))
    assert next(iter(stored.values())) == {"by": "feature", "of": 64, "read": 61, "which": list(use.which)}
    assert report == bp.prune(model, sparsity=0.0)[1]
