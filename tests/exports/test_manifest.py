"""What a manifest counts, and what a conversion is held to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports.converting import check_agreement
from tfp_bprune.exports.forms import TOLERANCE_FLOAT16
from tfp_bprune.exports.manifest import describe
from tfp_bprune.exports.sparsify import Rows
from tfp_bprune.exports.warmup import _varint
from tfp_bprune.exports.writing import bytes_of
from tfp_bprune.types import ExportError


def test_counts_are_of_the_network_at_its_mean_and_of_what_is_left() -> None:
    layers = [keras.layers.Dense(5, name="a"), keras.layers.BatchNormalization(), keras.layers.Dense(2, name="b")]
    model = bp.bayesianize(keras.Sequential([keras.Input((4,)), *layers]), bayesian_bias=True)
    pruned, _ = bp.prune(model, sparsity=0.5, scope="layer")
    found = describe(pruned)
    assert (
        found["parameters"] == 4 * 5 + 5 + 4 * 5 + 5 * 2 + 2
    )  # weights, biases, four numbers of each normalized channel
    assert found["layers"]["a"] == {"prunable": 20, "nonzeros": 10, "sparsity": 0.5}
    assert found["layers"]["b"] == {"prunable": 10, "nonzeros": 5, "sparsity": 0.5}
    assert (found["prunable"], found["nonzeros"], found["sparsity"]) == (30, 15, 0.5)


def test_bytes_are_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "1" / "variables").mkdir(parents=True)
    for place, size in (("a", 3), ("1/b", 50), ("1/variables/c", 700)):
        (tmp_path / place).write_bytes(b"\0" * size)
    assert bytes_of(tmp_path) == 753
    assert bytes_of(tmp_path / "a") == 3
    assert bytes_of(tmp_path, compressed=True) < 200


ANSWERS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {
    "not a number": lambda x: {"mean": np.full(len(x), np.nan, np.float32)},
    "wrong": lambda x: {"mean": x[:, 0] + 0.01},
    "wrong for a batch of three": lambda x: {"mean": x[:, 0] if len(x) == 1 else x[::-1, 0]},
    "of another name": lambda x: {"other": x[:, 0]},
    "of another shape": lambda x: {"mean": x[:, :1]},
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_conversion_that_answers_otherwise_is_refused(kind: str) -> None:
    spec = tf.TensorSpec([None, 2], tf.float32, name="inputs")
    predict = tf.function(lambda x: {"mean": x[:, 0]}, input_signature=[spec])
    predictor: Any = SimpleNamespace(predict=predict, inputs={"inputs": spec})
    check_agreement("X", predictor, lambda inputs: {"mean": inputs["inputs"][:, 0]})
    with pytest.raises(ExportError, match="X file"):
        check_agreement("X", predictor, lambda inputs: ANSWERS[kind](inputs["inputs"]))


def test_rounding_of_inputs_that_moves_outputs_is_allowed_for() -> None:
    spec = tf.TensorSpec([None, 1], tf.float32, name="inputs")
    predict = tf.function(lambda x: {"mean": 1e3 * tf.sin(1e4 * x[:, 0]) / 1e3}, input_signature=[spec])
    predictor: Any = SimpleNamespace(predict=predict, inputs={"inputs": spec})

    def close(inputs: Any) -> Any:  # as exact as a network can be whose inputs are rounded in another way
        return {"mean": predict(tf.constant(inputs["inputs"] * (1 + 3e-7)))["mean"].numpy()}

    check_agreement("X", predictor, close)


def test_a_conversion_to_fewer_bits_is_held_to_its_own_tolerance() -> None:
    spec = tf.TensorSpec([None, 2], tf.float32, name="inputs")
    predict = tf.function(lambda x: {"mean": x[:, 0]}, input_signature=[spec])
    predictor: Any = SimpleNamespace(predict=predict, inputs={"inputs": spec})
    check_agreement("X", predictor, lambda x: {"mean": x["inputs"][:, 0] + 0.005}, TOLERANCE_FLOAT16)
    with pytest.raises(ExportError, match="differs from TensorFlow's"):
        check_agreement("X", predictor, lambda x: {"mean": x["inputs"][:, 0] + 0.1}, TOLERANCE_FLOAT16)


def test_rows_at_the_end_without_entries_are_kept() -> None:
    rows = Rows(np.array([[0, 2], [3, 0], [0, 0], [0, 0]], np.float32))
    assert rows.segments.tolist() == [0, 1, 2, 2, 2]
    wide = Rows(np.eye(3, 400, 390, np.float32))
    assert wide.positions.tolist() == [390, 391, 392]


def test_lengths_of_messages_are_in_groups_of_seven_bits() -> None:
    assert [_varint(value).hex() for value in (0, 1, 127, 128, 300, 2**21)] == [
        "00",
        "01",
        "7f",
        "8001",
        "ac02",
        "80808001",
    ]
