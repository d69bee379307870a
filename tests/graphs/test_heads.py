"""What the outputs of a network mean: certain, noted, said, or refused; never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.graphs.heads import Head, heads_for, heads_of, input_names, note_heads, noted_heads, output_names
from tfp_bprune.types import BpruneError, DataError

L = keras.layers


def ending_in(*layers: Any, width: int = 2) -> Any:
    return keras.Sequential([keras.Input((width,)), *layers])


def functional(end: Any, width: int = 2) -> Any:
    inputs = keras.Input((width,))
    return keras.Model(inputs, end(inputs))


CERTAIN = {
    "sigmoid_of_one": (lambda: ending_in(L.Dense(1, "sigmoid")), Head("binary")),
    "sigmoid_of_several": (lambda: ending_in(L.Dense(3, "sigmoid")), Head("multilabel")),
    "softmax": (lambda: ending_in(L.Dense(3, "softmax")), Head("classification")),
    "softmax_as_activation": (lambda: ending_in(L.Dense(3, L.Softmax())), Head("classification")),
    "sigmoid_as_activation": (lambda: ending_in(L.Dense(3, L.Activation("sigmoid"))), Head("multilabel")),
    "softmax_layer": (lambda: ending_in(L.Dense(3), L.Softmax()), Head("classification")),
    "softmax_then_linear": (
        lambda: ending_in(L.Dense(2, "softmax"), L.Activation("linear")),
        Head("classification"),
    ),
    "softmax_then_reshape": (lambda: ending_in(L.Dense(4, "softmax"), L.Reshape((1, 4))), Head("classification")),
    "softmax_then_dropout": (lambda: ending_in(L.Dense(4, "softmax"), L.Dropout(0.5)), Head("classification")),
    "sigmoid_then_flatten": (lambda: ending_in(L.Dense(4, "sigmoid"), L.Flatten()), Head("multilabel")),
    "softmax_nested": (lambda: ending_in(ending_in(L.Dense(2, "softmax"))), Head("classification")),
    "softmax_operation": (lambda: functional(lambda x: tf.nn.softmax(L.Dense(3)(x))), Head("classification")),
    "sigmoid_operation": (lambda: functional(lambda x: tf.sigmoid(L.Dense(1)(x))), Head("binary")),
    "raw_layer": (lambda: ending_in(tfp.layers.DenseFlipout(2, activation="softmax")), Head("classification")),
    "gaussian": (lambda: ending_in(L.Dense(1), bp.layers.GaussianOutput()), Head("gaussian")),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_the_end_of_a_model_says_is_certain(name: str) -> None:
    build, expected = CERTAIN[name]
    assert list(heads_of(build()).values()) == [expected]


UNCERTAIN = {
    "linear": lambda: ending_in(L.Dense(3)),
    "mean_and_softplus": lambda: functional(lambda x: L.Concatenate()([L.Dense(1)(x), L.Dense(1, "softplus")(x)])),
    "classes_moved_from_the_last_axis": lambda: ending_in(L.Dense(2, "softmax"), L.Reshape((2, 1))),
    "mean_of_probabilities": lambda: functional(
        lambda x: L.GlobalAveragePooling1D()(L.Reshape((1, 2))(L.Softmax()(x)))
    ),
    "softmax_over_another_axis": lambda: keras.Sequential([keras.Input((3, 2)), L.Softmax(axis=1)]),
}


@pytest.mark.parametrize("name", UNCERTAIN)
def test_what_is_not_certain_is_refused(name: str) -> None:
    with pytest.raises(BpruneError, match=r"unclear.*task=") as caught:
        heads_of(UNCERTAIN[name]())
    assert "\n" not in str(caught.value)


LOSSES = [
    ("mse", 1, Head("regression")),
    (keras.losses.Huber(), 2, Head("regression")),
    (keras.losses.SparseCategoricalCrossentropy(from_logits=True), 3, Head("classification", True)),
    (keras.losses.CategoricalCrossentropy(from_logits=True), 3, Head("classification", True)),
    (keras.losses.BinaryCrossentropy(from_logits=True), 1, Head("binary", True)),
    (keras.losses.BinaryCrossentropy(from_logits=True), 3, Head("multilabel", True)),
]


@pytest.mark.parametrize(("loss", "units", "expected"), LOSSES)
def test_the_loss_says_what_a_linear_end_means_and_copies_keep_it(loss: Any, units: int, expected: Head) -> None:
    model = ending_in(L.Dense(units, name="out"))
    model.compile("sgd", loss)
    bayesian = bp.bayesianize(model)
    pruned, _ = bp.prune(bayesian, sparsity=0.5)
    for one in (model, bayesian, pruned, bp.strip(pruned)):
        assert heads_of(one) == {"out": expected}


def test_a_cross_entropy_of_probabilities_does_not_make_probabilities_of_a_linear_end() -> None:
    model = ending_in(L.Dense(3))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(BpruneError, match="unclear"):
        heads_of(model)


SAID = [
    (lambda: ending_in(L.Dense(3)), "classification", None, Head("classification", True)),
    (lambda: ending_in(L.Dense(3)), "multilabel", None, Head("multilabel", True)),
    (lambda: ending_in(L.Dense(1)), "binary", None, Head("binary", True)),
    (lambda: ending_in(L.Dense(1), L.BatchNormalization()), "binary", None, Head("binary", True)),
    (lambda: ending_in(L.Dense(2)), "gaussian", None, Head("gaussian")),
    (lambda: ending_in(L.Dense(2)), "regression", None, Head("regression")),
    (lambda: ending_in(L.Dense(2, "relu")), "classification", False, Head("classification")),
    (lambda: ending_in(L.Dense(2, "sigmoid")), "regression", None, Head("regression")),
]


@pytest.mark.parametrize(("build", "task", "from_logits", "expected"), SAID)
def test_what_is_said_holds(build: Any, task: Any, from_logits: bool | None, expected: Head) -> None:
    assert list(heads_of(build(), task, from_logits).values()) == [expected]


CONTRADICTIONS = [
    (lambda: ending_in(L.Dense(1)), "classification", None, "each class"),
    (lambda: ending_in(L.Dense(2)), "binary", None, "one output"),
    (lambda: ending_in(L.Dense(3)), "gaussian", None, "deviations"),
    (lambda: ending_in(L.Dense(3, "softmax")), "multilabel", None, "sigmoid or logits"),
    (lambda: ending_in(L.Dense(3, "sigmoid")), "classification", None, "softmax or logits"),
    (lambda: ending_in(L.Dense(3, "softmax")), "classification", True, "leave out from_logits"),
    (lambda: ending_in(L.Dense(3, "relu")), "classification", None, "from_logits=True or False"),
    (lambda: ending_in(L.Dense(3)), "ordinal", None, "unknown task 'ordinal'"),
    (lambda: ending_in(L.Dense(3)), {"nowhere": "binary"}, None, "'nowhere'"),
]


@pytest.mark.parametrize(("build", "task", "from_logits", "words"), CONTRADICTIONS)
def test_what_contradicts_the_model_is_refused(build: Any, task: Any, from_logits: bool | None, words: str) -> None:
    with pytest.raises(BpruneError, match=words) as caught:
        heads_of(build(), task, from_logits)
    assert "\n" not in str(caught.value)


DATA = [
    ("classification", 3, lambda: ending_in(L.Dense(3)), Head("classification", True)),
    ("classification", 2, lambda: ending_in(L.Dense(1)), Head("binary", True)),
    ("classification", 2, lambda: ending_in(L.Dense(1, "sigmoid")), Head("binary")),
    ("binary", 2, lambda: ending_in(L.Dense(2, "softmax")), Head("classification")),
    ("multilabel", 3, lambda: ending_in(L.Dense(3)), Head("multilabel", True)),
    ("regression", 1, lambda: ending_in(L.Dense(1)), Head("regression")),
    ("regression", 1, lambda: ending_in(L.Dense(2)), Head("gaussian")),
    ("regression", 2, lambda: ending_in(L.Dense(2)), Head("regression")),
]


@pytest.mark.parametrize(("task", "classes", "build", "expected"), DATA)
def test_data_says_what_a_model_for_it_gives(task: Any, classes: int, build: Any, expected: Head) -> None:
    assert list(heads_for(build(), bp.Info("data", task, (2,), classes)).values()) == [expected]


def test_data_that_a_model_does_not_suit_is_refused() -> None:
    with pytest.raises(DataError, match=r"4 outputs.*needs 3"):
        heads_for(ending_in(L.Dense(4)), bp.Info("data", "classification", (2,), 3))


def test_outputs_of_a_dictionary_go_by_its_keys() -> None:
    one = keras.Input((2,))
    model = keras.Model({"t": one}, {"b": L.Dense(1)(one), "a": L.Dense(2, "softmax")(one)})
    assert (input_names(model), output_names(model)) == (["t"], ["a", "b"])
    assert heads_of(model, {"b": "regression"}) == {"a": Head("classification"), "b": Head("regression")}


def test_a_head_survives_storage(tmp_path: Path) -> None:
    model = note_heads(ending_in(L.Dense(2, name="out")), {"out": Head("gaussian")})
    bp.save_model(model, tmp_path / "saved", config={})
    assert noted_heads(bp.load_model(tmp_path / "saved").model) == {"out": Head("gaussian")}


def test_a_built_network_knows_its_task() -> None:
    for task, classes, expected in (
        ("classification", 3, Head("classification", True)),
        ("binary", 2, Head("binary", True)),
        ("multilabel", 3, Head("multilabel", True)),
        ("regression", 1, Head("gaussian")),
    ):
        model = bp.build("mlp", bp.Info("data", task, (2,), classes), layers="deterministic", options={"hidden": (3,)})
        assert list(heads_of(model).values()) == [expected]
