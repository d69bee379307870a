"""Exports of networks of other types and of sizes that are not fixed, with tables, and what of them fails in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.exports.test_warmup import FILE
from tests.prediction.test_answers import predicted
from tfp_bprune._keras import keras, tf
from tfp_bprune.exports import export
from tfp_bprune.graphs import strip
from tfp_bprune.layers import Conv1DFlipout, Conv2DFlipout, DenseFlipout
from tfp_bprune.prediction import Predictor, predict
from tfp_bprune.types import ExportError

L = keras.layers
REGRESSION: dict[str, Any] = {"task": "regression"}


def served(model: Any, place: Path, *arrays: Any, **options: Any) -> tuple[dict[str, np.ndarray], Any]:
    """What an export says once it is loaded, and its manifest."""
    manifest = export(model, place, **options)
    serve = tf.saved_model.load(str(place / "1")).signatures["serving_default"]
    given = dict(zip(manifest["inputs"], map(tf.constant, arrays), strict=True))
    return {name: value.numpy() for name, value in serve(**given).items()}, manifest


@pytest.mark.parametrize("dtype", ["float64", "mixed_float16", "float16"])
@pytest.mark.parametrize("predictive", ["mean", "sampled"])
def test_other_types_are_exported_in_float32(dtype: str, predictive: Any, tmp_path: Path) -> None:
    kind = "float64" if dtype == "float64" else "float32"
    first = (
        L.Dense(3, "tanh", dtype=dtype) if predictive == "mean" else L.TimeDistributed(L.Dense(3, "tanh", dtype=dtype))
    )
    layers = [L.Reshape((1, 4), dtype=dtype), first, L.Flatten(dtype=dtype), L.Dense(2, dtype=dtype)]
    model = keras.Sequential([keras.Input((4,), dtype=kind), *layers])
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(kind)
    found, manifest = served(model, tmp_path / "out", x, predictive=predictive, **REGRESSION)
    w, b, v, c = (weight.astype(np.float64) for weight in model.get_weights())
    np.testing.assert_allclose(found["mean"], np.tanh(x @ w + b) @ v + c, rtol=1e-4, atol=1e-5)
    assert found["mean"].dtype == np.float32
    assert (manifest["trained_in"], manifest["inputs"]["inputs"]["dtype"]) == (dtype, kind)


def test_a_bayesian_layer_of_float64_is_exported_in_float32() -> None:
    layer = DenseFlipout(2, dtype="float64", rho_init=-1.0)
    model = keras.Sequential([keras.Input((4,), dtype="float64"), layer])
    x = np.random.default_rng(0).normal(size=(5, 4))
    q = layer.kernel_posterior
    found = predicted(model, "moments", x, **REGRESSION)
    np.testing.assert_allclose(found["mean"], x @ q.loc.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["weights_std"], np.sqrt(x**2 @ q.scale.numpy() ** 2), rtol=1e-4)
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("bayesian", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "float64", "float16", "uint8"])
def test_inputs_of_other_types_are_cast_as_keras_does(dtype: str, bayesian: bool) -> None:
    layer = DenseFlipout(2) if bayesian else L.Dense(2)
    model = keras.Sequential([keras.Input((3,), dtype=dtype), layer])
    x = np.array([[1, 2, 3], [4, 0, 1]], dtype)
    for predictive in ("mean", "moments"):
        expected = strip(model).predict(x.astype(np.float32), verbose=0)
        np.testing.assert_allclose(
            predicted(model, predictive, x, **REGRESSION)["mean"], expected, rtol=1e-5, atol=1e-6
        )


def steps() -> Any:
    layers = [Conv1DFlipout(4, 3, activation="relu", rho_init=-40.0), L.GlobalAveragePooling1D(), L.Dense(2)]
    return keras.Sequential([keras.Input((None, 3)), *layers])


def pixels() -> Any:
    """Fully convolutional: values of each pixel."""
    layers = [Conv2DFlipout(4, 5, activation="relu", rho_init=-40.0), L.MaxPooling2D(2), L.Conv2D(2, 1)]
    return keras.Sequential([keras.Input((None, None, 1)), *layers])


@pytest.mark.parametrize("predictive", ["mean", "sampled"])
@pytest.mark.parametrize("make", [steps, pixels])
def test_sizes_that_are_not_fixed_stay_so(make: Any, predictive: Any, tmp_path: Path) -> None:
    model, rng = make(), np.random.default_rng(0)
    sides = {3: [(7,), (20,)], 4: [(12, 9), (20, 33)]}[len(model.input_shape)]
    _, manifest = served(
        model, tmp_path / "out", np.zeros((1, *sides[0], model.input_shape[-1]), np.float32), predictive=predictive, samples=3,
        **REGRESSION,
    )  # fmt: skip
    assert manifest["input_shape"] == list(model.input_shape[1:])
    serve = tf.saved_model.load(str(tmp_path / "out" / "1")).signatures["serving_default"]
    for side in sides:
        x = rng.normal(size=(2, *side, model.input_shape[-1])).astype(np.float32)
        expected = strip(model).predict(x, verbose=0)
        np.testing.assert_allclose(serve(inputs=tf.constant(x))["mean"], expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "out" / FILE).stat().st_size > 0


def test_moments_of_as_many_steps_as_come_are_those_of_a_fixed_number(tmp_path: Path) -> None:
    layers = [Conv1DFlipout(4, 3, rho_init=-1.0, name="conv"), L.GlobalAveragePooling1D(), L.Dense(2, name="dense")]
    fixed = keras.Sequential([keras.Input((9, 3)), *layers])
    free = keras.Sequential([keras.Input((None, 3)), *layers])
    x = np.random.default_rng(0).normal(size=(4, 9, 3)).astype(np.float32)
    (one, _), (other, _) = (
        served(model, tmp_path / name, x, predictive="moments", **REGRESSION)
        for name, model in (("fixed", fixed), ("free", free))
    )
    for key in ("mean", "weights_std"):
        np.testing.assert_allclose(one[key], other[key], rtol=1e-4)


def words(*layers: Any) -> Any:
    return keras.Sequential([keras.Input((1,), dtype="string"), *layers, L.Dense(2)])


def adapted(layer: Any, data: Any) -> Any:
    layer.adapt(data)
    return layer


TABLES: dict[str, Any] = {
    "lookup": lambda: (words(L.StringLookup(vocabulary=["a", "b"]), L.Embedding(4, 3), L.Flatten()), [["b"], ["zz"]]),
    "one hot": lambda: (words(L.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")), [["b"], ["zz"]]),
    "text": lambda: (
        words(L.TextVectorization(output_sequence_length=3, vocabulary=["so", "it", "goes"]), L.Embedding(6, 2), L.Flatten()),
        [["It goes"], ["so so what"]],
    ),
    "hashing": lambda: (words(L.Hashing(7), L.Embedding(7, 2), L.Flatten()), [["b"], ["zz"]]),
    "integers": lambda: (
        keras.Sequential([keras.Input((1,), dtype="int64"), L.IntegerLookup(vocabulary=[5, 9]), L.Embedding(4, 2), L.Flatten(),
                          L.Dense(2)]), [[9], [5]],
    ),
    "normalization": lambda: (
        keras.Sequential([keras.Input((2,)), adapted(L.Normalization(), np.array([[1.0, 2.0], [5.0, 9.0]])), L.Dense(2)]),
        [[0.5, 1.0], [2.0, 3.0]],
    ),
    "bins": lambda: (
        keras.Sequential([keras.Input((1,)), L.Discretization([0.0, 1.0]), L.Embedding(3, 2), L.Flatten(), L.Dense(2)]),
        [[-1.0], [0.5]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_part_of_the_file(name: str, tmp_path: Path) -> None:
    model, rows = TABLES[name]()
    x = tf.constant(rows, model.inputs[0].dtype)
    found, _ = served(model, tmp_path / "out", x, **REGRESSION)
    np.testing.assert_allclose(found["mean"], model(x), rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["mean"][0], found["mean"][1])


def test_a_variable_that_an_operation_reads_is_part_of_the_file(tmp_path: Path) -> None:
    kept = tf.Variable([2.0, 3.0])
    inputs = keras.Input((2,))
    model = keras.Model(inputs, L.Dense(2, kernel_initializer="ones")(L.Lambda(lambda t: t * kept)(inputs)))
    found, _ = served(model, tmp_path / "out", np.array([[1.0, 1.0]], np.float32), **REGRESSION)
    np.testing.assert_allclose(found["mean"], [[5, 5]])


class Failing(L.Layer):
    """Fails once it is told to."""

    fails = False

    def call(self, inputs: Any) -> Any:
        if Failing.fails:
            raise ValueError("this is the cause")
        return inputs


class Mismatched(Failing):
    """Fails within TensorFlow."""

    def call(self, inputs: Any) -> Any:
        if Failing.fails:
            return tf.matmul(inputs, tf.ones([3, 5]))
        return inputs


@pytest.mark.parametrize(
    ("kind", "cause"), [(Failing, "this is the cause"), (Mismatched, "Dimensions must be equal, but are 2 and 3")]
)
def test_what_fails_while_tracing_is_one_line_with_its_cause(
    kind: type, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = keras.Sequential([keras.Input((2,)), kind(), L.Dense(2)], name="mine")

    def failing(network: Any) -> Any:
        Failing.fails = True
        return network

    monkeypatch.setattr(predict, "compact", failing)
    try:
        with pytest.raises(ExportError, match=rf"^model 'mine' cannot be exported: {cause}") as caught:
            Predictor(model, "mean", **REGRESSION)
    finally:
        Failing.fails = False
    assert "\n" not in str(caught.value)
    assert "in user code" not in str(caught.value)
