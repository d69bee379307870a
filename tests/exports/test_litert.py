"""LiteRT files: TensorFlow's answers from builtin operations, pruned kernels stored sparse."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports.networks import NETWORKS, assert_answers_as_tensorflow, classifier, pruned_predictor, run, settled
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import Form, export, litert
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.exports.sparsify import Rows, sparsify
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, Lowering
from tfp_bprune.prediction.unrolling import MOST_STEPS
from tfp_bprune.prediction.written import WRITTEN, softsign
from tfp_bprune.types import ExportError

pytest.importorskip("ai_edge_litert")
L = keras.layers


@pytest.fixture(scope="module", params=NETWORKS)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    """One network, pruned to 80 %."""
    return pruned_predictor(request.param)


@pytest.fixture(scope="module")
def content(predictor: Predictor) -> bytes:
    """It as a LiteRT file."""
    return litert.to_litert(predictor)


@pytest.mark.parametrize("batch", [1, 7])
def test_the_file_answers_as_tensorflow_does(predictor: Predictor, content: bytes, batch: int) -> None:
    assert_answers_as_tensorflow("litert", predictor, content, batch)


def test_the_signature_keeps_its_names_and_takes_any_batch(content: bytes) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["inputs"], "outputs": ["entropy", "probabilities"]}
    }
    (details,) = interpreter.get_input_details()
    assert details["shape_signature"].tolist() == [-1, 8, 8, 1]


def test_nothing_is_logged_on_the_way(tmp_path: Path) -> None:
    """Where standard error is no file, as in a notebook, a log cannot be kept back but by its logger."""
    logger, records = tf.get_logger(), []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        export(settled(NETWORKS["mlp"]()), tmp_path / "export", format="litert")
        assert (logger.level, records) == (logging.INFO, [])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_no_operation_of_tensorflow_is_in_the_file(content: bytes) -> None:
    from ai_edge_litert import schema_py_generated as schema

    codes = schema.ModelT.InitFromPackedBuf(content, 0).operatorCodes
    assert [code.customCode for code in codes] == [None] * len(codes)


def wide() -> Any:
    """A network of which most bytes are kernels, one with inputs that are no multiple of four."""
    layers = [DenseFlipout(201, activation="relu"), DenseFlipout(100, activation="relu"), DenseFlipout(4)]
    model = classifier(keras.Sequential([keras.Input((150,)), *layers]))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        layer.kernel_posterior.keep_only(rng.random(layer.kernel_posterior.loc.shape) > 0.97)
    return model


@pytest.mark.parametrize("float16", [False, True])
def test_pruned_kernels_take_less_and_compute_the_same(monkeypatch: pytest.MonkeyPatch, float16: bool) -> None:
    predictor = Predictor(wide(), "mean", lowering=FOR_CONVERTERS)
    small = litert.to_litert(predictor, float16)
    monkeypatch.setattr(litert, "sparsify", lambda content: content)
    large = litert.to_litert(predictor, float16)
    assert len(small) < 0.3 * len(large)
    for batch in (1, 5, 64):
        x = np.random.default_rng(batch).normal(size=(batch, 150)).astype(np.float32)
        one, other = (run("litert", content, x) for content in (small, large))
        np.testing.assert_array_equal(one["probabilities"], other["probabilities"])
    assert sparsify(small) == small


def test_float16_halves_a_dense_file() -> None:
    model = classifier(keras.Sequential([keras.Input((150,)), DenseFlipout(200)]))
    predictor = Predictor(model, "mean", lowering=FOR_CONVERTERS)
    assert len(litert.to_litert(predictor, float16=True)) < 0.6 * len(litert.to_litert(predictor))


def test_rows_hold_all_that_is_not_zero() -> None:
    kernel = np.zeros((2, 3, 400), np.float32)
    kernel[0, 1, 7], kernel[1, 2, 399], kernel[1, 2, 300] = 1, 2, 3
    rows = Rows(kernel)
    assert (rows.values.tolist(), rows.positions.tolist()) == ([1, 3, 2], [7, 300, 399])
    assert rows.segments.tolist() == [0, 0, 1, 1, 1, 1, 3]
    assert (rows.segments.dtype, rows.positions.dtype) == (np.uint8, np.uint16)
    assert Rows(np.zeros((2, 2))).values.size == 0


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [(("mean", 2, 0, Lowering("sparse", at_load=False)), "Sparse"), (("sampled", 2, 0, FOR_CONVERTERS), "Random")],
)
def test_operations_that_litert_lacks_are_named(arguments: Any, operation: str) -> None:
    with pytest.raises(ExportError, match=rf"^LiteRT has no .*{operation}\w+: use the predictive 'mean' or 'moments'"):
        litert.to_litert(Predictor(NETWORKS["mlp"](), *arguments))


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_the_layer_with_an_operation_that_is_lacking_is_named(format: str, tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = classifier(keras.Model(x, L.Dense(3)(L.Lambda(lambda t: tf.math.igamma(t, t), name="own")(x))))
    with pytest.raises(ExportError, match=r" has no Igamma, which layer 'own' takes: use the format 'savedmodel'$"):
        export(model, tmp_path / "out", format=format)


def test_the_layer_with_an_activation_that_is_lacking_is_named(tmp_path: Path) -> None:
    layers = [L.Dense(3, activation=tf.math.digamma, name="mid"), L.Dense(3)]
    model = classifier(keras.Sequential([keras.Input((4,)), *layers]))
    with pytest.raises(ExportError, match=r"^LiteRT has no Digamma, which layer 'mid' takes: use the format"):
        export(model, tmp_path / "out", format="litert")


SOFTSIGNS: dict[str, Any] = {
    "activation": lambda x: L.Dense(4, "softsign")(x),
    "layer": lambda x: L.Activation(tf.nn.softsign)(L.Dense(4)(x)),
    "operation": lambda x: tf.math.softsign(L.Dense(4)(x)),
    "steps": lambda x: L.LSTM(4, activation="softsign", recurrent_activation="softsign")(L.Reshape((2, 2))(x)),
    "both ways": lambda x: L.Bidirectional(L.GRU(2, activation="softsign"))(L.Reshape((2, 2))(x)),
}


@pytest.mark.parametrize("name", SOFTSIGNS)
def test_what_litert_has_no_operation_for_is_written_as_others(name: str, tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = classifier(keras.Model(x, L.Dense(3, name="last")(SOFTSIGNS[name](x))))
    examples = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32) * 3
    expected = tf.nn.softmax(model(examples))
    export(model, tmp_path / "out", format="litert")
    found = FORMS["litert"].runner(tmp_path / "out" / "model.tflite")({"inputs": examples})
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert set(WRITTEN) == set(FORMS["litert"].lacks)
    functions = [
        getattr(p, key, None)
        for one in model.layers
        for p in one._flatten_layers()
        for key in ("activation", "function")
    ]
    assert softsign not in functions  # the model is as it was


def test_moments_of_what_is_written_otherwise_are_the_same(tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = classifier(keras.Model(x, DenseFlipout(3, name="last")(DenseFlipout(6, activation="softsign")(x))))
    examples = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    export(model, tmp_path / "out", format="litert", predictive="moments")
    found = FORMS["litert"].runner(tmp_path / "out" / "model.tflite")({"inputs": examples})
    for key, value in Predictor(model, "moments").predict(tf.constant(examples)).items():
        np.testing.assert_allclose(found[key], value, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "gelu", pytest.param("tanh", marks=pytest.mark.slow)])
def test_moments_in_whole_numbers_keep_what_is_made_of_variances(activation: str, tmp_path: Path) -> None:
    """Steps of one width make 0 of small ones, and end the process where a sum's are far narrower than its parts'."""
    pytest.importorskip("ai_edge_quantizer")
    tf.keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    hidden = DenseFlipout(6, activation=activation)(DenseFlipout(6, activation=activation)(x))
    model = classifier(keras.Model(x, DenseFlipout(3, name="last")(hidden)))
    examples = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32) * 3
    few: Any = {"precision": "int8", "representative": examples}
    export(model, tmp_path / "out", format="litert", predictive="moments", **few)
    found = FORMS["litert"].runner(tmp_path / "out" / "model.tflite")({"inputs": examples})
    expected = Predictor(model, "moments").predict(tf.constant(examples))
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=0.05)
    ratio = found["epistemic"].mean() / expected["epistemic"].numpy().mean()
    assert 0.9 < ratio < 1.1


RECURRENT: dict[str, Any] = {
    "lstm": lambda x: L.LSTM(3)(x),
    "heeding a mask, both ways": lambda x: L.Bidirectional(L.GRU(3))(L.Masking(0.0)(x)),
    "cells": lambda x: L.RNN([L.LSTMCell(3), L.GRUCell(2)])(x),
    "every step": lambda x: L.Flatten()(L.SimpleRNN(3, return_sequences=True, go_backwards=True)(x)),
}


@pytest.mark.parametrize("options", [{}, {"batch": 2}, {"precision": "int8"}], ids=str)
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_begin_anew_with_every_call(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Of batches of any size too. In whole numbers the state that they begin with is a tensor that is 0 throughout."""
    x = np.random.default_rng(0).normal(size=(5, 6, 2)).astype(np.float32)
    x[:, 4:] = 0
    inputs = keras.Input((6, 2))
    model = classifier(keras.Model(inputs, L.Dense(3)(RECURRENT[name](inputs))))
    few = {"representative": x} if "precision" in options else {}
    export(model, tmp_path / "out", format="litert", **options, **few)
    run_file = FORMS["litert"].runner(tmp_path / "out" / "model.tflite", batch=options.get("batch"))
    expected = tf.nn.softmax(model(x))
    for _ in range(2):
        np.testing.assert_allclose(run_file({"inputs": x})["probabilities"], expected, atol=0.05 if few else 1e-6)
    assert not any(one.unroll for layer in model.layers for one in layer._flatten_layers() if isinstance(one, L.RNN))


@pytest.mark.parametrize("size", [(6, 5, 4), (None, None, 4)], ids=str)
@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"groups": -1, "scale": False}, {"groups": 4, "axis": 3, "center": False}], ids=str
)
def test_groups_are_normalized_in_batches_of_any_size(size: Any, options: dict[str, Any], tmp_path: Path) -> None:
    check_groups(keras.Input(size), options, tmp_path)


def test_groups_of_another_axis_are_normalized(tmp_path: Path) -> None:
    check_groups(keras.Input((6, 5, 4)), {"groups": 3, "axis": 1}, tmp_path)


def check_groups(inputs: Any, options: dict[str, Any], path: Path) -> None:
    layer = L.GroupNormalization(beta_initializer="normal", gamma_initializer="normal", **options)
    model = classifier(keras.Model(inputs, L.Dense(3)(L.GlobalMaxPooling2D()(layer(inputs)))))
    export(model, path / "out", format="litert")
    x = np.random.default_rng(0).normal(size=(3, 6, 5, 4)).astype(np.float32)
    found = FORMS["litert"].runner(path / "out" / "model.tflite")({"inputs": x})
    np.testing.assert_allclose(found["probabilities"], tf.nn.softmax(model(x)), atol=1e-6)


def test_loops_of_many_steps_are_for_batches_of_one_size(tmp_path: Path) -> None:
    x = keras.Input((MOST_STEPS + 1, 1))
    model = classifier(keras.Model(x, L.Dense(3)(L.LSTM(2)(x))))
    with pytest.raises(ExportError, match=r"loops over its steps, .*: give batch=N and inputs of a fixed length"):
        export(model, tmp_path / "out", format="litert")
    assert export(model, tmp_path / "two", format="litert", batch=2)["difference"] < 1e-5


@pytest.mark.parametrize("zeros", ["inside", "everywhere"])
def test_what_no_example_makes_anything_of_has_a_range(zeros: str, tmp_path: Path) -> None:
    """Steps of no width make LiteRT's kernels fail."""
    pytest.importorskip("ai_edge_quantizer")
    x = keras.Input((4,))
    dead = L.Dense(3, "relu", bias_initializer=keras.initializers.Constant(-99.0), name="dead")(x)
    alive = L.Dense(3, "tanh", name="alive")(x)
    model = classifier(keras.Model(x, L.Dense(3)(L.Concatenate()([L.Dense(3)(dead * alive), alive]))))
    examples = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32) * (zeros == "inside")
    export(model, tmp_path / "out", format="litert", precision="int8", representative=examples)
    found = FORMS["litert"].runner(tmp_path / "out" / "model.tflite")({"inputs": examples})
    np.testing.assert_allclose(found["probabilities"], tf.nn.softmax(model(examples)), atol=0.05)


def test_activations_that_overflow_on_an_example_settle_no_range(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_quantizer")
    x = keras.Input((4,))
    large = {"kernel_initializer": keras.initializers.Constant(1e15)}
    model = classifier(keras.Model(x, L.Dense(3)(L.Dense(3, "tanh", **large)(L.Dense(3, **large)(x)))))
    with pytest.raises(
        ExportError, match=r"^representative examples settle .* overflows on them: expected finite activations"
    ):
        export(
            model, tmp_path / "out", format="litert", precision="int8", representative=np.full((9, 4), 1e15, np.float32)
        )


def test_a_quantizer_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = pytest.importorskip("ai_edge_quantizer.quantizer")

    def fails(*_: Any) -> None:
        raise ValueError("Tensor data is null.\nRun allocate_tensors() first")

    monkeypatch.setattr(quantizer.Quantizer, "quantize", fails)
    with pytest.raises(ExportError, match=r"^LiteRT's quantizer failed: Tensor data is null\.; choose precision"):
        export(NETWORKS["mlp"](), tmp_path / "out", format="litert", precision="int8")


def test_wrong_answers_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda x: {"probabilities": np.full((len(x["inputs"]), 4), np.nan), "entropy": np.zeros(len(x["inputs"]))}  # noqa: E731
    monkeypatch.setattr(Form, "runner", lambda form, path, batch=None: wrong)
    with pytest.raises(ExportError, match="'probabilities' of the LiteRT file differs from TensorFlow's by nan"):
        export(NETWORKS["mlp"](), tmp_path / "out", format="litert")


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(ExportError, match=r"^the format 'litert' needs ai_edge_litert, .*'tfp-bprune\[formats\]'$"):
        litert.to_litert(Predictor(NETWORKS["mlp"](), "mean", lowering=FOR_CONVERTERS))
