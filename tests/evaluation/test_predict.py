"""`predict`: the answers of exports from models in any form, and what is said of them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.layers import DenseFlipout, GaussianOutput, variational_layers
from tfp_bprune.types import DataError, ExportError

WAYS = ("mean", "moments", "sampled")


@pytest.fixture(scope="module")
def networks(mlp: Callable[..., Any]) -> dict[str, Any]:
    """One whole, and one of which half is gone."""
    model = mlp()
    for layer in variational_layers(model):
        layer.kernel_posterior.rho_variable.assign_add(tf.fill(layer.kernel_posterior.shape, 2.0))
    return {"whole": model, "pruned": bp.prune(model, sparsity=0.5)[0]}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["whole", "pruned"])
def test_a_model_says_what_its_export_says(
    networks: dict[str, Any], images: np.ndarray, which: str, way: Any, tmp_path: Path
) -> None:
    options = {"samples": 7, "seed": 3} if way == "sampled" else {}
    bp.export(networks[which], tmp_path / "served", predictive=way, **options)
    served = tf.saved_model.load(tmp_path / "served" / "1").signatures["serving_default"]
    expected = served(inputs=tf.constant(images))
    said = bp.predict(networks[which], images, predictive=way, batch_size=100, **options)
    assert set(said.outputs) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(said.outputs[name], value, atol=1e-5)


def test_an_export_answers_by_itself(networks: dict[str, Any], images: np.ndarray, tmp_path: Path) -> None:
    bp.export(networks["pruned"], tmp_path / "served", predictive="sampled", samples=5)
    said = bp.predict(networks["pruned"], images, samples=5)
    for path in (tmp_path / "served", str(tmp_path / "served" / "1")):
        found = bp.predict(path, images.astype(np.uint8), batch_size=150)
        assert (found.predictive, found.samples, found.heads) == ("sampled", 5, said.heads)
        for name, value in said.outputs.items():
            np.testing.assert_allclose(found.outputs[name], value, atol=1e-5)
    with pytest.raises(ExportError, match="was exported with predictive='sampled', got predictive='mean'"):
        bp.predict(tmp_path / "served", images, predictive="mean")
    with pytest.raises(ExportError, match="was exported with samples=5, got samples=6"):
        bp.predict(tmp_path / "served", images, samples=6)
    with pytest.raises(DataError, match=r"batch with shape \(256, 8\) for input 'inputs': expected \(None, 8, 8, 1\)"):
        bp.predict(tmp_path / "served", images[:, 0, :, 0])


def test_an_export_that_fails_says_so_in_one_line(
    networks: dict[str, Any], images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bp.export(networks["pruned"], tmp_path / "served")
    loader = tmp_path / "loader.py"
    loader.write_text("print('a word')\ndef load(path, threads):\n    return lambda inputs: 1 / 0\n")
    broken = replace(FORMS["savedmodel"], load=loader)
    monkeypatch.setitem(FORMS._things, "savedmodel", (broken, FORMS._things["savedmodel"][1]))
    with pytest.raises(ExportError, match="failed in a process of its own: ZeroDivisionError") as error:
        bp.predict(tmp_path / "served", images, trust=True)
    assert "\n" not in str(error.value)


REFUSED: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "sparse matrix": (
        lambda x: csr_array(x.reshape(len(x), -1)),
        "examples that are sparse .*: expected a dense array",
    ),
    "sparse tensor": (tf.sparse.from_dense, "examples that are sparse"),
    "ragged": (lambda x: tf.RaggedTensor.from_tensor(x), "examples that are ragged"),
    "masked": (lambda x: np.ma.masked_greater(x, 3), "some are masked"),
    "complex": (lambda x: x.astype(np.complex64), "got complex numbers for input 'inputs'"),
    "batches of these": (lambda x: [x, tf.sparse.from_dense(x)], "examples that are sparse|got a list"),
    "endless": (lambda x: tf.data.Dataset.from_tensor_slices(x).repeat().batch(9), "dataset without an end"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_examples_that_are_no_dense_numbers_are_refused(
    networks: dict[str, Any], images: np.ndarray, form: str
) -> None:
    make, message = REFUSED[form]
    with pytest.raises(DataError, match=message) as error:
        bp.predict(networks["whole"], make(images[:20]))
    assert "\n" not in str(error.value)


def test_targets_that_are_no_numbers_are_refused(networks: dict[str, Any], images: np.ndarray) -> None:
    for y, message in ((np.full(20, np.nan), "targets that are NaN"), (np.array(["a"] * 20), "targets of type <U1")):
        with pytest.raises(DataError, match=message):
            bp.evaluate(networks["whole"], (images[:20], y))


FORMS_OF_X: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "tensor": tf.constant,
    "list": lambda x: x.tolist(),
    "rows": list,
    "named": lambda x: {"images": x},
    "pair": lambda x: (x, np.zeros(len(x))),
    "dataset": lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(200),
    "dataset of examples": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(7),
    "generator": lambda x: (x[i : i + 50] for i in range(0, len(x), 50)),
    "without channels": lambda x: x[..., 0],
}


@pytest.mark.parametrize("form", FORMS_OF_X)
def test_examples_come_in_any_form(networks: dict[str, Any], images: np.ndarray, form: str) -> None:
    x = images[:250]
    expected = bp.predict(networks["whole"], x, predictive="moments")
    said = bp.predict(networks["whole"], FORMS_OF_X[form](x), predictive="moments", batch_size=64)
    np.testing.assert_allclose(said.probabilities, expected.probabilities, atol=1e-6)
    assert len(said) == 250


def test_splits_runs_and_saved_models_are_taken(tiny_run: Path, digits: Splits) -> None:
    split = digits.examples("test").rows(slice(20))
    model = bp.load_model(tiny_run)
    expected = bp.predict(model.model, split.x, predictive="mean").probabilities
    for subject in (model, tiny_run, str(tiny_run)):
        np.testing.assert_allclose(bp.predict(subject, split, predictive="mean").probabilities, expected, atol=1e-6)
    with pytest.raises(DataError, match=r"predict got all splits of digits.*data.examples\('test'\)"):
        bp.predict(model, digits)
    with pytest.raises(bp.BpruneError, match="no run"):
        bp.predict("nowhere", split)
    with pytest.raises(DataError, match="no examples to predict"):
        bp.predict(model, split.x[:0])
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        bp.predict(model, split.x, batch_size=0)


def test_two_inputs_and_two_outputs_by_name() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = DenseFlipout(8, activation="relu")(keras.layers.Concatenate()([a, b]))
    kind = DenseFlipout(3, activation="softmax", name="kind")(joined)
    size = GaussianOutput(name="size")(DenseFlipout(1)(joined))
    model = keras.Model([a, b], [kind, size])
    x, z = np.random.default_rng(0).normal(size=(2, 10, 3))
    z = z[:, :2]
    said = [bp.predict(model, data, samples=4) for data in ([x, z], (x, z), {"b": z, "a": x}, ([x, z], np.zeros(10)))]
    for one in said:
        np.testing.assert_array_equal(one["kind"].probabilities, said[0]["kind"].probabilities)
        np.testing.assert_array_equal(one["size"].std, said[0]["size"].std)
    with pytest.raises(
        bp.BpruneError, match=r"the network has the outputs 'kind', 'size': ask for one, as in prediction\['kind'\]"
    ):
        said[0].probabilities  # noqa: B018
    assert {"kind_label", "kind_epistemic", "size_mean", "size_weights_std"} <= set(said[0].columns())
    assert "kind: classification" in repr(said[0])


def test_answers_by_name(networks: dict[str, Any], images: np.ndarray) -> None:
    said = bp.predict(networks["whole"], images[:6], predictive="moments")
    np.testing.assert_array_equal(said.labels, said.probabilities.argmax(1))
    np.testing.assert_array_equal(said.confidence, said.probabilities.max(1))
    np.testing.assert_allclose(said.entropy, said.epistemic + said.aleatoric, atol=1e-6)
    columns = said.columns([f"digit {i}" for i in range(10)])
    assert columns["label"].tolist() == [f"digit {i}" for i in said.labels]
    np.testing.assert_array_equal(columns["probability_digit 3"], said.probabilities[:, 3])
    assert not hasattr(said, "anything")
    with pytest.raises(bp.BpruneError, match="a classification predicted by 'moments' has no mean: it has"):
        said.mean  # noqa: B018
    of_mean = bp.predict(networks["whole"], images[:6], predictive="mean")
    with pytest.raises(bp.BpruneError, match=r"has no epistemic.*predict with predictive='moments' or 'sampled'"):
        of_mean.epistemic  # noqa: B018
    with pytest.raises(DataError, match="3 class names for 10 classes"):
        said.columns(["a", "b", "c"])


def test_a_regression_has_deviations_and_intervals() -> None:
    model = keras.Sequential([keras.Input((2,)), DenseFlipout(1, rho_init=-1.0), GaussianOutput(noise=0.5)])
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    said = bp.predict(model, x, predictive="moments")
    assert said.mean.shape == said.noise_std.shape == said.weights_std.shape == (50,)
    np.testing.assert_allclose(said.std, np.hypot(said.noise_std, said.weights_std), rtol=1e-6)
    low, high = said.interval(0.9)
    np.testing.assert_allclose(high - said.mean, 1.6448536 * said.std, rtol=1e-5)
    np.testing.assert_allclose(said.mean - low, high - said.mean, rtol=1e-4)
    with pytest.raises(DataError, match="level must be in"):
        said.interval(95)
    bare = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(bp.BpruneError, match="has no standard deviations"):
        bp.predict(bare, x, task="regression").std  # noqa: B018


def test_a_frame_needs_pandas_and_says_so(networks: dict[str, Any], images: np.ndarray) -> None:
    said = bp.predict(networks["whole"], images[:6], predictive="mean")
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(bp.BpruneError, match="to_frame needs pandas: pip install pandas"):
            said.to_frame()
    else:
        assert list(said.to_frame()["label"]) == said.labels.tolist()


def test_a_model_that_changed_is_predicted_anew(mlp: Callable[..., Any], images: np.ndarray) -> None:
    model = mlp()
    first = bp.predict(model, images[:9], predictive="mean").probabilities
    np.testing.assert_array_equal(bp.predict(model, images[:9], predictive="mean").probabilities, first)
    kernel = variational_layers(model).__next__().kernel_posterior.loc_variable
    kernel.assign_add(tf.ones_like(kernel))
    assert not np.allclose(bp.predict(model, images[:9], predictive="mean").probabilities, first)


def test_memory_is_that_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million rows in float64, of which nothing is held but a batch and the answers."""
    model = keras.Sequential([keras.Input((16,)), DenseFlipout(2, activation="softmax")])
    monkeypatch.setattr(import_module("tfp_bprune.evaluation.predict"), "_PATIENCE", 0.0)
    batch = np.ones((2000, 16), np.float32)
    bp.predict(model, batch, predictive="moments")  # traced
    rows = 100_000
    tracemalloc.start()
    said = bp.predict(model, (batch for _ in range(rows // 2000)), predictive="moments", batch_size=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    answers = sum(value.nbytes for value in said.outputs.values())
    assert len(said) == rows
    assert peak < 2 * answers + 3 * batch.nbytes


@pytest.mark.slow
def test_a_million_rows_take_the_memory_of_their_answers() -> None:
    model = keras.Sequential(
        [keras.Input((32,)), DenseFlipout(64, activation="relu"), DenseFlipout(10, activation="softmax")]
    )
    x = np.random.default_rng(0).normal(size=(1_000_000, 32)).astype(np.float32)
    bp.predict(model, x[:10_000], predictive="moments", batch_size=4096)

    def resident() -> int:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    before = resident()
    said = bp.predict(model, x, predictive="moments", batch_size=4096)
    answers = sum(value.nbytes for value in said.outputs.values())
    assert resident() - before < 2 * answers + 2**27
