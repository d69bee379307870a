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
from tfp_bprune.exports.manifest import describe
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
