"""The way in for arrays: what targets are taken for, by their type and values or as said, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.data.info import Info, info_of
from tfp_bprune.data.splits import from_arrays, load
from tfp_bprune.types import DataError

N = 60
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
BITS = np.arange(N) % 2
CLASSES = np.arange(N) % 3
REAL = np.linspace(-1, 5, N)
LABELS = np.stack([BITS, CLASSES > 0, CLASSES > 1], 1).astype(np.int64)
TAGS = np.arange(N * 5).reshape(N, 5) % 4
MASK = (np.arange(N * 6).reshape(N, 2, 3) % 5) % 2
RINGS = np.arange(N) * 7 + 25  # whole numbers, 25 to 438: an integer regression target


class Column:
    """What `np.asarray` takes and is no array, as a column of pandas is; those with gaps come as objects."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values.astype(dtype or self.values.dtype)


# y, task, then expected: task, classes, positions, targets
READ: dict[str, tuple[Any, Any, tuple[str, int, tuple[int, ...]], Any]] = {
    "integers": (CLASSES, None, ("classification", 3, ()), CLASSES),
    "a_column": (CLASSES[:, None], None, ("classification", 3, ()), CLASSES),
    "one_hot": (np.eye(3)[CLASSES], None, ("classification", 3, ()), CLASSES),
    "one_hot_whose_last_class_is_absent": (np.eye(5)[CLASSES], None, ("classification", 5, ()), CLASSES),
    "booleans": (BITS == 1, None, ("binary", 2, ()), BITS),
    "a_column_of_booleans": ((BITS == 1)[:, None], None, ("binary", 2, ()), BITS),
    "two_integers": (BITS, None, ("classification", 2, ()), BITS),
    "two_integers_said_binary": (BITS, "binary", ("binary", 2, ()), BITS),
    "floats_said_binary": (BITS.astype(np.float32), "binary", ("binary", 2, ()), BITS),
    "one_hot_said_binary": (np.eye(2)[BITS], "binary", ("binary", 2, ()), BITS),
    "floats_said_classes": (CLASSES.astype(np.float32), "classification", ("classification", 3, ()), CLASSES),
    "booleans_said_classes": (BITS == 1, "classification", ("classification", 2, ()), BITS),
    "labels": (LABELS, None, ("multilabel", 3, ()), LABELS),
    "labels_as_floats": (LABELS.astype(np.float32), None, ("multilabel", 3, ()), LABELS),
    "one_hot_said_labels": (np.eye(3)[CLASSES], "multilabel", ("multilabel", 3, ()), np.eye(3)[CLASSES]),
    "one_label": (BITS[:, None], "multilabel", ("multilabel", 1, ()), BITS[:, None]),
    "floats": (REAL, None, ("regression", 1, ()), REAL),
    "a_column_of_floats": (REAL[:, None], None, ("regression", 1, ()), REAL),
    "several_floats": (np.stack([REAL, -REAL], 1), None, ("regression", 2, ()), np.stack([REAL, -REAL], 1)),
    "integers_said_regression": (RINGS, "regression", ("regression", 1, ()), RINGS),
    "booleans_said_regression": (BITS == 1, "regression", ("regression", 1, ()), BITS),
    "many_integers_said_classes": (RINGS, "classification", ("classification", 439, ()), RINGS),
    "a_class_each_step": (TAGS, None, ("classification", 4, (5,)), TAGS),
    "a_class_each_pixel": (MASK + 2 * (MASK > 0), None, ("classification", 4, (2, 3)), MASK + 2 * (MASK > 0)),
    "a_class_each_pixel_in_a_channel": (MASK[..., None], None, ("classification", 2, (2, 3)), MASK),
    "one_hot_each_pixel": (np.eye(2)[MASK], None, ("classification", 2, (2, 3)), MASK),
    "booleans_each_pixel": (MASK == 1, None, ("binary", 2, (2, 3)), MASK),
    "floats_each_pixel_said_binary": (MASK[..., None] / 1, "binary", ("binary", 2, (2, 3)), MASK),
    "a_number_each_step": (np.tile(REAL[:, None, None], (1, 5, 1)), None, ("regression", 5, ()), np.tile(REAL[:, None], 5)),
    "a_list": (CLASSES.tolist(), None, ("classification", 3, ()), CLASSES),
    "a_tensor": (tf.constant(REAL), None, ("regression", 1, ()), REAL),
    "a_column_of_a_table": (Column(CLASSES), None, ("classification", 3, ()), CLASSES),
    "a_column_of_objects": (Column(CLASSES.astype(object)), None, ("classification", 3, ()), CLASSES),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_targets_are_read(name: str) -> None:
    y, task, expected, read = READ[name]
    info = info_of(X, y, task=task)
    assert (info.task, info.classes, info.positions) == expected
    data = from_arrays((X, y), (X, y), task=task, validation_fraction=0.2)
    np.testing.assert_array_equal(data.examples("test").y, read)
    assert data.examples("test").y.dtype.kind in ("iu" if expected[0] != "regression" else "iuf")
    assert (data.info.task, data.info.classes, data.info.positions) == expected
    described = (
        from_arrays((X, y), (X, y), info=data.info, validation_fraction=0.2) if "floats_said" not in name else data
    )
    np.testing.assert_array_equal(described.examples("test").y, read)


REFUSED = {
    "integers_with_many_values": (RINGS, None, "whole numbers from 25 to 438.*task='classification' or task='regression'"),
    "floats_of_zeros_and_ones": (BITS / 1, None, "say task='binary' or task='regression'"),
    "minus_one_and_one": (2 * BITS - 1, "binary", "targets from -1 to 1: a binary task expects 0 and 1"),
    "soft_labels": (np.full((N, 2), 0.5), "classification", "of type float64: expected whole numbers"),
    "counts_said_labels": (np.stack([CLASSES, CLASSES], 1), "multilabel", "multilabel task expects 0 and 1"),
    "a_single_label": (BITS, "multilabel", r"expected \[n, labels\]"),
    "words": (np.array(["cat", "dog"] * 30), None, "targets of type <U3: expected numbers"),
    "ragged": ([[1, 2], [3]] * 30, None, "rows of one length"),
    "unknown_task": (CLASSES, "ordinal", "unknown task 'ordinal'"),
    "unknown_target": (CLASSES, {"age": "regression"}, "'age'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_or_contradicts_itself_is_refused_in_one_line(name: str) -> None:
    y, task, said = REFUSED[name]
    with pytest.raises(DataError, match=said) as caught:
        from_arrays((X, y), (X, y), task=task)
    assert "\n" not in str(caught.value)


def test_a_task_that_contradicts_the_info_is_refused() -> None:
    with pytest.raises(DataError, match="leave one of them out"):
        from_arrays((X, CLASSES), (X, CLASSES), info=Info("mine", "classification", (3,), 3), task="regression")
    with pytest.raises(DataError, match=r"targets of shape \(5,\) per example: expected \(\)"):
        from_arrays((X, TAGS), (X, TAGS), info=Info("mine", "classification", (3,), 4))
    with pytest.raises(DataError, match="expected a pair"):
        from_arrays((X, CLASSES, X), (X, CLASSES))  # type: ignore[arg-type]


def test_several_inputs_and_outputs_keep_their_names_and_rows() -> None:
    pairs = {"table": X, "series": np.repeat(np.arange(N)[:, None], 4, 1)}
    goals = {"kind": CLASSES, "price": REAL[:, None]}
    data = from_arrays((pairs, goals), (pairs, goals), validation_fraction=0.25, batch_size=7)
    assert data.info.inputs == {"table": (3,), "series": (4,)}
    assert {name: (t.task, t.classes) for name, t in data.info.targets.items()} == {
        "kind": ("classification", 3), "price": ("regression", 1),
    }  # fmt: skip
    train = data.examples("train").y["price"]
    assert (data.info.targets["price"].loc, data.info.targets["price"].scale) == pytest.approx(
        (train.mean(), train.std())
    )
    assert (len(data.examples("train")), len(data.examples("valid"))) == (45, 15)
    seen = []
    for dataset in (data.epochs().take(data.steps), data.valid):
        for x, y in dataset:
            assert (x["table"].dtype, x["series"].dtype) == (tf.float32, tf.int64)
            numbers = x["series"].numpy()[:, 0]
            np.testing.assert_array_equal(x["table"].numpy(), X[numbers])
            np.testing.assert_array_equal(y["kind"].numpy(), CLASSES[numbers])
            np.testing.assert_array_equal(y["price"].numpy(), REAL[numbers])
            seen += numbers.tolist()
    assert sorted(seen) == list(range(N))


def test_lists_of_inputs_and_outputs_are_numbered() -> None:
    lists = ([X, X[:, :2]], [CLASSES, REAL])
    data = from_arrays(lists, lists, validation_fraction=0, task={"0": "classification", "1": "regression"})
    assert data.info.inputs == {"0": (3,), "1": (2,)}
    assert [target.task for target in data.info.targets.values()] == ["classification", "regression"]
    (first, second), (kinds, numbers) = next(iter(data.test))
    np.testing.assert_array_equal(first[:, :2], second)
    np.testing.assert_array_equal((kinds, numbers), (CLASSES, REAL))


@pytest.mark.parametrize(
    ("x", "kept"),
    [
        (np.arange(N * 2, dtype=np.uint8).reshape(N, 2), tf.float32),
        (np.arange(N * 2, dtype=np.int32).reshape(N, 2) + 2**24, tf.int32),  # float32 would merge two tokens
        (np.arange(N * 2).reshape(N, 2) / 2, tf.float32),
        (np.array(["a word"] * N), tf.string),
        (Column(X), tf.float32),
        ([[1.0, 2.0]] * N, tf.float32),
    ],
)
def test_examples_keep_what_they_mean(x: Any, kept: Any) -> None:
    data = from_arrays((x, CLASSES), (x, CLASSES), validation_fraction=0)
    [(batch, _)] = data.test
    assert batch.dtype == kept
    given = np.asarray(x)
    given = given[:, None] if given.ndim == 1 else given
    np.testing.assert_array_equal(batch.numpy().astype(given.dtype) if kept == tf.string else batch.numpy(), given)
    [(batch, _)] = data.epochs().take(1)
    assert batch.dtype == kept


def test_fingerprints_tell_names_and_text_apart() -> None:
    one, other = np.array(["a", "b"] * 30), np.array(["a", "c"] * 30)
    prints = {
        from_arrays((x, CLASSES), (x, CLASSES)).info.fingerprint
        for x in (one, other, {"p": X, "q": X}, {"p": X, "r": X}, [X, X])
    }
    assert len(prints) == 5


def test_the_fingerprints_of_embedded_data_stay() -> None:
    # Runs say by them what they were trained on.
    assert load("digits").info.fingerprint.startswith("d682d30d90037cf1")
    assert load("diabetes").info.fingerprint.startswith("bb0cd340c0198322")
