"""`fit` takes data, optimizers and callbacks as `model.fit` does, and gives a `History`."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.data import stream
from tfp_bprune.layers import DenseFlipout, GaussianOutput
from tfp_bprune.training.watched import warn_of_divergence
from tfp_bprune.types import DataError, TrainingError

RNG = np.random.default_rng(0)
N = 96
X = RNG.normal(size=(N, 5)).astype(np.float32)
Y = np.argmax(X[:, :3], 1)
C = keras.callbacks


def network(end: int = 3, activation: str | None = "softmax") -> Any:
    return keras.Sequential([keras.Input((5,)), DenseFlipout(end, activation=activation, name="out")])


def gaussian() -> Any:
    return keras.Sequential([keras.Input((5,)), DenseFlipout(1), GaussianOutput(name="noise")])


class Batches(keras.utils.Sequence):  # type: ignore[misc]
    def __init__(self, as_given: Callable[..., Any] = lambda x, y, i: (x, y)) -> None:
        self.as_given = as_given

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        return self.as_given(X[32 * i : 32 * i + 32], Y[32 * i : 32 * i + 32], i)


def generated() -> Any:
    """A dataset that says types and no shapes."""
    return tf.data.Dataset.from_generator(
        lambda: ((X[i : i + 40], Y[i : i + 40]) for i in (0, 40, 80)), (tf.float32, tf.int64)
    )


def ragged(rows: int = len(X)) -> Any:
    return tf.ragged.constant([[1.0] * (1 + i % 3) for i in range(rows)])


def dataset(x: Any = X, y: Any = Y) -> Any:
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(32)


FORMS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "arrays": lambda: (X, Y),
    "lists and one-hot tensors": lambda: ((X.tolist(), tf.constant(np.eye(3)[Y])),),
    "floats, of a softmax": lambda: (X, Y.astype(np.float32)),
    "dataset of one-hot rows": lambda: (dataset(y=np.eye(3)[Y]),),
    "dataset of columns of floats": lambda: (dataset(y=Y[:, None].astype(np.float32)),),
    "sequence": lambda: (Batches(),),
    "sequence without weights": lambda: (Batches(lambda x, y, i: (x, y, None)),),
    "sequence of lists, with weights": lambda: (Batches(lambda x, y, i: ([x], [y], np.ones(len(y)))),),
    "sequence of other types": lambda: (
        Batches(lambda x, y, i: (x.astype("f8" if i else "f4"), y.astype("i4" if i else "i8"))),
    ),
    "dataset without shapes": lambda: (generated(),),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_come_in_any_form(form: str) -> None:
    model = network()
    history = bp.fit(model, *FORMS[form](), epochs=2, progress=False)
    assert isinstance(history, C.History)
    assert len(history) == 2
    assert history.history["nll"] == [row["nll"] for row in history]
    assert history.epoch == [0, 1]
    assert model.layers[-1].train_size == N
    assert history.params["steps"] == 3
    assert history[0]["accuracy"] <= 1


def test_what_is_held_out_is_the_end_as_keras_has_it() -> None:
    by_part = bp.fit(network(), X, Y, epochs=1, validation_split=0.25, progress=False)
    by_hand = bp.fit(network(), X[:72], Y[:72], epochs=1, validation_data=(X[72:], Y[72:]), progress=False)
    assert by_part == by_hand
    assert "val_nll" in by_part.history
    streamed = bp.fit(network(), dataset(), epochs=1, validation_data=dataset(X[:32], Y[:32]), progress=False)
    assert "val_nll" in streamed[0]
    also = bp.fit(network(), dataset(), epochs=1, validation_data=(X[:32], np.eye(3)[Y[:32]]), progress=False)
    assert set(also[0]) == set(streamed[0])


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "no targets": ((X,), {}, "got examples of type ndarray and no targets: expected arrays x and y, splits"),
    "both": ((X, Y), {"validation_split": 0.1, "validation_data": (X, Y)}, "both validation_data and validation_split"),
    "part": ((X, Y), {"validation_split": 10}, r"validation_split must be in \[0, 1\), got 10"),
    "classes": ((X, Y + 1), {}, "needs 4, logits or by a softmax"),
    "shape": ((X[:, :4], Y), {}, r"examples of shape \(4,\): model '.*' expects \(5,\)"),
    "unbatched": ((tf.data.Dataset.from_tensor_slices((X, Y)),), {}, "elements of one example: expected batches"),
    "endless": ((dataset().repeat(),), {}, "endless: expected one epoch"),
    "no pairs": ((tf.data.Dataset.from_tensor_slices(X).batch(32),), {}, r"expected batches \(x, y\)"),
    "named": (
        (tf.data.Dataset.from_tensor_slices({"image": X, "label": Y}).batch(32),),
        {},
        r"one\['image'\], one\['label'\]",
    ),
    "ragged": ((ragged(), Y), {}, "ragged .*to_tensor"),
    "ragged batches": ((tf.data.Dataset.from_tensor_slices((ragged(), Y)).batch(32),), {}, "ragged .*to_tensor"),
    "sparse": ((csr_array(X), Y), {}, "examples that are sparse .*toarray"),
    "sparse tensor": ((tf.sparse.from_dense(X), Y), {}, "examples that are sparse .*to_dense"),
    "masked": ((np.ma.masked_greater(X, 1), Y), {}, "some are masked: fill them"),
    "a list of examples": (([*X], Y), {}, "list of 96 arrays, .* np.stack"),
    "other batches": (
        (Batches(lambda x, y, i: (x[:, :, None] if i else x, y)),),
        {},
        "expected the same arrays in all",
    ),
    "classes to validate on": (
        (dataset(),),
        {"validation_data": dataset(y=Y + 5)},
        "validation dataset has classes from 5",
    ),
    "width to validate on": (
        (dataset(),),
        {"validation_data": dataset(X[:, :4])},
        r"validation dataset has examples of shape \(4,\)",
    ),
    "NaN to validate on": (
        (dataset(),),
        {"validation_data": dataset(y=Y * np.nan)},
        "validation dataset has targets that are NaN",
    ),
    "twice": ((dataset(), Y), {}, "has its own y: leave y out"),
    "batch": ((X, Y), {"batch_size": 0}, "batch_size must be at least 1"),
    "validation": ((X, Y), {"validation_data": X}, r"validation_data is a ndarray: expected a pair \(x, y\)"),
    "weights": ((X, Y), {"validation_data": (X, Y, Y)}, "validation_data is a tuple of 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(name: str) -> None:
    data, options, message = REFUSED[name]
    with pytest.raises(DataError, match=message) as error:
        bp.fit(network(), *data, **options, epochs=1, progress=False)
    assert "\n" not in str(error.value)


def test_batches_of_other_lengths_are_trained_on_but_not_joined() -> None:
    def texts() -> Any:
        lengths = ((8, 3), (8, 5))
        made = ((np.ones(shape, np.int64), np.arange(8) % 3) for shape in lengths)
        return made

    layers = [keras.layers.Embedding(9, 4), keras.layers.GlobalAveragePooling1D(), DenseFlipout(3)]
    model = keras.Sequential([keras.Input((None,), dtype="int64"), *layers])
    data = tf.data.Dataset.from_generator(texts, (tf.int64, tf.int64))
    assert len(bp.fit(model, data, epochs=2, progress=False)) == 2
    with pytest.raises(DataError, match="batches of different shapes, which cannot be joined: expected accumulate=1"):
        bp.fit(model, data, settings=bp.Settings(accumulate=2), progress=False)


def test_counting_a_dataset_that_may_have_no_end_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_PATIENCE", 0.0)
    with pytest.warns(
        UserWarning, match=r"does not say .*: it is read once to count them; if it has no end, .*take\(STEPS\)"
    ):
        bp.fit(network(), generated(), epochs=1, progress=False)


def test_an_optimizer_belongs_to_one_model() -> None:
    optimizer = keras.optimizers.Adam()
    model = network()
    for _ in range(2):
        bp.fit(model, X, Y, epochs=1, optimizer=optimizer, progress=False)
    with pytest.raises(bp.BpruneError, match="optimizer Adam has been used for another model"):
        bp.fit(network(), X, Y, epochs=1, optimizer=optimizer, progress=False)


def test_classes_without_an_example_are_the_models() -> None:
    model = network(5)
    bp.fit(model, X, Y, epochs=1, progress=False)
    assert bp.predict(model, X[:2], predictive="mean").probabilities.shape == (2, 5)


def test_splits_have_their_own(digits: Any, mlp: Callable[..., Any]) -> None:
    for options in ({"y": Y}, {"batch_size": 3}, {"validation_split": 0.1}, {"task": "binary"}):
        with pytest.raises(DataError, match="digits comes as splits, which have their own"):
            bp.fit(mlp(), digits, **options)
    with pytest.raises(TrainingError, match="a dataset of batches cannot be resumed"):
        bp.fit(network(), dataset(), resume=True, out="nowhere")


@pytest.mark.parametrize(
    ("y", "model", "task"),
    [
        (Y.astype(np.float32), lambda: network(3, None), "classification"),
        (Y.astype(np.float32), lambda: network(1, None), "regression"),
        ((Y > 1).astype(np.float32), lambda: network(1, "sigmoid"), "binary"),
        (Y[:, None].astype(np.float64), lambda: gaussian(), "gaussian"),
    ],
)
def test_floats_are_what_the_model_makes_certain(y: np.ndarray, model: Any, task: str) -> None:
    made = model()
    bp.fit(made, X, y, epochs=1, progress=False)
    [head] = bp.predict(made, X[:2], predictive="mean").heads.values()
    assert head.task == task


def test_floats_without_fractions_are_no_regression_in_silence() -> None:
    floats = Y.astype(np.float32)
    for y in (floats, floats + 1):
        with pytest.raises(DataError, match=r"floats without fractions, from \d to \d: say task='classification' or"):
            bp.from_arrays((X, y), (X, y))
    assert bp.from_arrays((X, floats + 0.5), (X, floats)).info.task == "regression"
    counts = 25.0 + 3 * np.arange(N)
    assert bp.from_arrays((X, counts), (X, counts)).info.task == "regression"


@pytest.mark.parametrize(
    "given", ["sgd", lambda: keras.optimizers.SGD(0.1), lambda: keras.optimizers.legacy.RMSprop(0.1)]
)
def test_an_optimizer_of_ones_own(given: Any, tmp_path: Path) -> None:
    model, optimizer = network(), given if isinstance(given, str) else given()
    plateau = C.ReduceLROnPlateau("nll", factor=0.5, patience=1, min_delta=1e9)
    bp.fit(model, X, Y, epochs=3, optimizer=optimizer, callbacks=[plateau], progress=False, out=tmp_path / "run")
    assert isinstance(model.optimizer, keras.optimizers.SGD if given == "sgd" else type(optimizer))
    assert float(keras.backend.get_value(model.optimizer.lr)) == pytest.approx({"sgd": 0.01}.get(str(given), 0.1) / 4)
    with pytest.raises(TrainingError, match=r"optimizer is a builtins\.int: expected one of tf_keras"):
        bp.fit(model, X, Y, optimizer=3)
    with pytest.raises(TrainingError, match="there is no optimizer 'adamant' in Keras"):
        bp.fit(model, X, Y, optimizer="adamant")


TASKS: dict[str, tuple[Any, Callable[[], Any]]] = {
    "classes": (Y, lambda: network(3, None)),
    "labels": (np.eye(3)[Y][:, :2] + 0, lambda: network(2, "sigmoid")),
    "regression": (X[:, 0] + 0.5, lambda: network(1, None)),
}


@pytest.mark.parametrize("name", ["classes", "labels", "regression"])
def test_every_callback_of_keras(name: str, tmp_path: Path) -> None:
    y, make = TASKS[name]
    model = make()
    callbacks = [
        C.EarlyStopping("val_nll", patience=5, restore_best_weights=True),
        C.ReduceLROnPlateau("val_nll", factor=0.5, patience=1),
        C.CSVLogger(str(tmp_path / "log.csv")),
        C.ModelCheckpoint(str(tmp_path / "best.keras"), "val_nll", save_best_only=True),
    ]
    history = bp.fit(model, X, y, epochs=2, validation_split=0.25, callbacks=callbacks, progress=False)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_nll"]) for row in rows] == pytest.approx(history.history["val_nll"], rel=1e-5)
    again = keras.models.load_model(tmp_path / "best.keras")
    scores = again.evaluate(X[72:], y[72:], verbose=0, return_dict=True)
    assert set(scores) >= {"loss", "nll"}
    best = bp.predict(again, X, predictive="mean", task="multilabel" if name == "labels" else None)
    assert len(best) == N


def test_a_loss_with_the_kl_in_it_is_not_monitored_in_silence(tmp_path: Path) -> None:
    best = C.ModelCheckpoint(str(tmp_path / "best.keras"), save_best_only=True)
    for callback, said in ((C.EarlyStopping(), "val_nll"), (C.ReduceLROnPlateau("loss"), "nll"), (best, "val_nll")):
        with pytest.warns(UserWarning, match=f"which is mostly the KL of the weights: monitor='{said}'"):
            warn_of_divergence(network(), [callback])
    assert not warned(lambda: warn_of_divergence(network(), [C.EarlyStopping("val_nll"), C.ModelCheckpoint("x.keras")]))
    plain = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    assert not warned(lambda: warn_of_divergence(plain, [C.EarlyStopping()]))


def warned(act: Callable[[], None]) -> list[Any]:
    with warnings.catch_warnings(record=True) as found:
        act()
    return found


def test_data_say_in_a_line_what_they_are(digits: Any) -> None:
    assert repr(digits) == (
        "Splits(digits: classification of 10 classes, examples (8, 8, 1); train 1,294, valid 144, test 359; batches of 200)"
    )
    assert repr(digits.examples("test")) == "Split('test': 359 examples (8, 8, 1), targets ())"


NO_NUMBERS: dict[str, Callable[[], Any]] = {
    "epochs must be a whole number, got 1.5": lambda: bp.Settings(epochs=1.5),  # type: ignore[arg-type]
    "epochs must be a whole number, got '3'": lambda: bp.fit(network(), X, Y, epochs="3"),  # type: ignore[arg-type]
    "learning_rate must be a number, got None": lambda: bp.Settings(learning_rate=None),  # type: ignore[arg-type]
    "accumulate must be a whole number, got nan": lambda: bp.Settings(accumulate=np.nan),  # type: ignore[arg-type]
    "kl must be one of 'warmup', .*, got 'none'": lambda: bp.Settings(kl="none"),  # type: ignore[arg-type]
    "settings is a dict": lambda: bp.fit(network(), X, Y, settings={"epochs": 1}),  # type: ignore[arg-type]
    "batch_size must be a whole number, got 2.5": lambda: bp.fit(network(), X, Y, batch_size=2.5),  # type: ignore[arg-type]
    "seed must be a whole number, got 'a'": lambda: bp.fit(network(), X, Y, seed="a"),  # type: ignore[arg-type]
    "validation_split must be a number": lambda: bp.fit(network(), X, Y, validation_split="a"),  # type: ignore[arg-type]
    "from_logits must be True or False": lambda: bp.fit(network(), X, Y, from_logits="no"),  # type: ignore[arg-type]
    "distributor is a int": lambda: bp.fit(network(), X, Y, distributor=2),
    "among callbacks is the class .*EarlyStopping": lambda: bp.fit(network(), X, Y, callbacks=[C.EarlyStopping]),
    "among callbacks is a builtins.int": lambda: bp.fit(network(), X, Y, callbacks=3),
    "train_size, .*, must be at least 1, got -3": lambda: DenseFlipout(3, train_size=-3),
    "train_size must be a whole number, got nan": lambda: DenseFlipout(3, train_size=np.nan),
    "rho_init must be finite, got nan": lambda: DenseFlipout(3, rho_init=np.nan),
    "batches must be a whole number": lambda: bp.recalibrate(network(), X, batches=1.5),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("message", NO_NUMBERS)
def test_what_is_no_number_is_refused_by_name(message: str) -> None:
    with pytest.raises(bp.BpruneError, match=message) as error:
        NO_NUMBERS[message]()
    assert "\n" not in str(error.value)


def test_callbacks_are_given_as_keras_takes_them() -> None:
    stop = C.EarlyStopping("nll", patience=0, min_delta=100)
    assert len(bp.fit(network(), X, Y, epochs=4, callbacks=stop, progress=False)) == 2
    assert len(bp.fit(network(), X, Y, epochs=1, callbacks=None, progress=False)) == 1
