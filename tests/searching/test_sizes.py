"""What a search takes for the size of a network, and on which examples it may look."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Split
from tfp_bprune.prediction.cost import TYPICAL, Costs
from tfp_bprune.searching.samples import others_parted, parted
from tfp_bprune.trials.size import Sizes
from tfp_bprune.trials.trial import Evaluator


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    """Of a network of a convolution and a dense layer."""
    last = keras.layers.Dense(2, activation="softmax", name="b")
    layers: list[Any] = [keras.layers.Conv2D(4, 3, name="a"), keras.layers.Flatten(), last]
    return Sizes(Evaluator(keras.Sequential([keras.Input((12, 12, 1)), *layers]), "magnitude"))


def test_bytes_are_of_the_smaller_form_and_of_all_else(sizes: Sizes) -> None:
    dense, rest = 10 * 10 * 4 * 2, 4 * (4 + 2)  # entries of the dense kernel; bytes of the biases
    whole = sizes.of({"a/kernel": 36, "b/kernel": dense})
    assert whole["bytes"] == 4 * (36 + dense) + rest
    few = sizes.of({"a/kernel": 36, "b/kernel": 10})
    assert few["bytes"] == pytest.approx(4 * 36 + 5 * 10 + dense / 255 + rest)
    assert (whole["nonzeros"], few["nonzeros"]) == (36 + dense, 46)


def test_convolutions_take_as_long_however_few_of_their_weights_are_left(sizes: Sizes) -> None:
    one, other = (sizes.of({"a/kernel": n, "b/kernel": 800})["latency"] for n in (36, 1))
    assert one == other
    assert one == pytest.approx(Costs().dense(TYPICAL, (36, 1)) + Costs().dense(TYPICAL, (800, 1)), rel=1e-9)


def test_what_is_searched_on_proves_nothing() -> None:
    split = Split("valid", np.arange(31)[:, None], np.arange(31))
    parts = [part.y.tolist() for part in parted(split)]
    assert sorted(parts[0] + parts[1]) == list(range(31))
    assert len(parts[0]) == 10
    thirds = [part.y.tolist() for part in others_parted(split)]
    assert sorted(one for third in thirds for one in third) == list(range(31))
