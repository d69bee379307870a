"""Models as plain data: what comes back is the same, and what could run code is not read."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.files.runs import CONFIG, Run
from tfp_bprune.graphs import bayesianize, strip
from tfp_bprune.layers import variational_layers
from tfp_bprune.storage import load_model, save_model, store
from tfp_bprune.types import RunError

Build = Callable[..., Any]


@pytest.mark.parametrize("layers", ["flipout", "reparameterization", "local", "deterministic", "dropout"])
def test_a_model_comes_back_from_a_run_directory(mlp: Build, layers: str, tmp_path: Path, images: np.ndarray) -> None:
    model = mlp(layers, bayesian_bias=True, train_size=5, prior={"kind": "normal", "scale": 0.5})
    model(images[:2])  # moves the noise steps, which belong to the model's state
    save_model(model, tmp_path / "run", config={"request": {"a": float("nan")}}, seed=3)
    saved = load_model(tmp_path / "run")
    for old, new in zip(model.weights, saved.model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(strip(saved.model)(images[:3]), strip(model)(images[:3]))
    for old, new in zip(variational_layers(model), variational_layers(saved.model), strict=True):
        assert old.get_config() == new.get_config()
    assert saved.config["request"] == {"a": None}
    assert (saved.manifest["seed"], saved.manifest["kind"]) == (3, "model")
    # The same draw comes next: noise is a function of the layer's step.
    np.testing.assert_array_equal(model(images[:3]), saved.model(images[:3]))


def test_models_of_many_kinds_of_layers_come_back(tmp_path: Path) -> None:
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = tf.nn.relu(x) + 2.0 * x
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.Sequential([keras.layers.Dense(4), keras.layers.Softmax()])(x))
    save_model(model, tmp_path / "run", config={})
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype(np.float32)
    np.testing.assert_array_equal(load_model(tmp_path / "run").model(image), model(image))


def test_nothing_in_a_run_is_code(mlp: Build, tmp_path: Path) -> None:
    save_model(mlp(), tmp_path / "run", config={})
    suffixes = {p.suffix for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    assert suffixes == {".json", ".safetensors"}


def test_a_lambda_is_refused_when_written_and_when_read(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    with pytest.raises(RunError, match="holds a Lambda, which can run code"):
        save_model(model, tmp_path / "run", config={})
    assert not (tmp_path / "run" / "manifest.json").exists()
    with pytest.raises(RunError, match="holds a Lambda, which can run code"):
        store.from_architecture(json.loads(model.to_json()))


def test_marshalled_functions_of_raw_tfp_layers_are_not_stored() -> None:
    model = keras.Sequential([keras.Input((2,)), tfp.layers.DenseFlipout(2)])
    with pytest.raises(RunError, match="names the module 'tensorflow_probability"):
        store.architecture(model)


OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "the shape": lambda x: tf.reshape(x, (tf.shape(x)[0], 4)),
    "slices": lambda x: x[:, 1:, ::2] + x[..., -1:] * x[:, tf.newaxis, 0],
    "arithmetic": lambda x: (1 - x * 2 + 1) ** 2 / 3 // 2 - x % 2.0,
    "comparisons": lambda x: tf.where((x > 0) & ~(x >= 1), x, 0.0),
    "means and softmax": lambda x: tf.nn.softmax(x) - tf.reduce_mean(x, 1, keepdims=True),
    "products": lambda x: x @ tf.transpose(x, (0, 2, 1)) + tf.tensordot(x, tf.ones((2, 2)), 1),
    "pieces": lambda x: tf.stack([*tf.split(x, 2, -1), tf.gather(x, [1], axis=2)], 1),
    "repeats": lambda x: tf.tile(tf.repeat(tf.pad(x, [[0, 0], [1, 0], [0, 0]]), 2, 1), [1, 1, 2]),
    "like": lambda x: tf.ones_like(x) * x + tf.zeros_like(x) + tf.fill(tf.shape(x), 2.0),
    "indices": lambda x: tf.one_hot(tf.argmax(x, -1), 3) + tf.range(3.0),
    "limits": lambda x: tf.clip_by_value(tf.stop_gradient(x), 0, 1) + tf.norm(x, axis=-1, keepdims=True),
    "images": lambda x: tf.image.resize(x[..., tf.newaxis], (3, 3)),
    "kept as it is": lambda x: tf.broadcast_to(tf.identity(x), tf.shape(x)),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_of_tensorflow_are_stored(operation: Callable[[Any], Any]) -> None:
    inputs = keras.Input((2, 2))
    model = keras.Model(inputs, operation(inputs))
    stored = json.loads(json.dumps(store.architecture(model)))
    x = np.random.default_rng(0).normal(size=(3, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(store.from_architecture(stored)(x), model(x))


def test_an_operation_that_keras_would_not_read_again_is_not_written() -> None:
    inputs = keras.Input((2, 2))
    for outputs in (tf.where(inputs != 1.0, inputs, 0.0), tf.einsum("bij->bji", inputs)):
        with pytest.raises(RunError, match="the stored architecture cannot be rebuilt"):
            store.architecture(keras.Model(inputs, outputs))
    with pytest.raises(RunError, match=r"calls 'strings.as_string': expected a mathematical operation"):
        store.architecture(keras.Model(inputs, tf.strings.as_string(inputs)))


def graph_with(layer: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a working model in which one layer was exchanged for `layer`."""
    inputs = keras.Input((2,))
    description = json.loads(keras.Model(inputs, keras.layers.Dense(2, name="victim")(inputs)).to_json())
    stored = description["config"]["layers"][1]
    kept = {key: stored[key] for key in ("inbound_nodes", "name")}
    description["config"]["layers"][1] = {**copy.deepcopy(layer), **kept}
    return description


WRITE_OP = 'name: "w" op: "WriteFile" input: "a" input: "b"'
HARMFUL = {
    "lambda": {"class_name": "Lambda", "config": {"name": "victim"}},
    "renamed lambda": {"class_name": "keras>Lambda", "config": {"name": "victim"}},
    "foreign module": {"class_name": "Popen", "module": "subprocess", "config": {"args": "true"}},
    "foreign module below keras's name": {"class_name": "X", "module": "keras_contrib.layers", "config": {}},
    "python function": {"class_name": "function", "module": "builtins", "config": "exec"},
    "nested": {
        "class_name": "Dense",
        "module": "keras.layers",
        "config": {"units": 2, "activation": {"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}},
    },
    "function writing files": {"class_name": "TFOpLambda", "config": {"name": "victim", "function": "io.write_file"}},
    "the same of an older name": {
        "class_name": "TFOpLambda",
        "config": {"name": "victim", "function": "compat.v1.write_file"},
    },
    "a name that begins like a harmless one": {
        "class_name": "TFOpLambda",
        "config": {"name": "victim", "function": "where_is"},
    },
    "the same by a subclass": {
        "class_name": "SlicingOpLambda",
        "config": {"name": "victim", "function": "io.write_file"},
    },
    "class method": {"class_name": "ClassMethod", "config": {"cls_symbol": "data.Dataset", "method_name": "save"}},
    "method of a tensor": {"class_name": "InstanceMethod", "config": {"name": "victim", "method_name": "__reduce__"}},
    "property of a tensor": {"class_name": "InstanceProperty", "config": {"name": "victim", "attr_name": "graph"}},
    "any operation": {
        "class_name": "TensorFlowOpLayer",
        "config": {"name": "victim", "node_def": WRITE_OP, "constants": {}},
    },
}


@pytest.mark.parametrize("layer", HARMFUL.values(), ids=HARMFUL)
def test_descriptions_that_could_do_harm_are_not_read(layer: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"stored architecture (holds|names|calls)"):
        store.from_architecture(graph_with(layer))


def test_a_swapped_architecture_is_noticed_by_its_hash(tiny_run: Path, copied: Callable[[Path], Path]) -> None:
    path = copied(tiny_run)
    config = json.loads((path / CONFIG).read_text())
    config["architecture"] = graph_with(HARMFUL["lambda"])
    length = (path / CONFIG).stat().st_size
    (path / CONFIG).write_text(json.dumps(config).ljust(length))
    with pytest.raises(RunError, match="does not match its SHA-256"):
        load_model(path)


@pytest.mark.parametrize("description", [{}, {"class_name": "Functional"}, {"class_name": "Nothing", "config": {}}])
def test_a_damaged_description_is_one_clear_error(description: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="the stored architecture cannot be rebuilt"):
        store.from_architecture(description)


def test_weights_of_another_architecture_are_refused(mlp: Build) -> None:
    arrays = store.weights_of(mlp())
    with pytest.raises(RunError, match=r"has shape \(64, 12\): expected \(64, 11\)"):
        store.set_weights(mlp(hidden=(11,)), arrays)
    with pytest.raises(RunError, match=r"the stored weights have .*: they belong to another architecture"):
        store.set_weights(mlp("deterministic"), arrays)


def test_a_run_without_a_finished_epoch_has_no_model(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with run.locked():
        run.commit({CONFIG: b"{}"}, kind="run", checkpoint=None)
    with pytest.raises(RunError, match="has no checkpoint yet"):
        load_model(tmp_path / "run")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        load_model(tmp_path / "nowhere")
    Run(tmp_path).record(kind="export")
    with pytest.raises(RunError, match="is an export: expected a run directory"):
        load_model(tmp_path)


def test_save_model_overwrites_nothing(mlp: Build, tiny_run: Path) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        save_model(mlp(), tiny_run, config={})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_when_written_and_leave_no_folder(value: float, tmp_path: Path) -> None:
    model = bayesianize(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="odd")]))
    loc = model.layers[-1].kernel_posterior.loc_variable
    loc.assign(tf.tensor_scatter_nd_update(loc, [[1, 2]], [value]))
    with pytest.raises(RunError, match=rf"weight .*odd/.* holds {value}, expected finite numbers: nothing was written"):
        save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_in_bfloat16_are_refused_when_written_and_leave_no_folder(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16", name="narrow")])
    with pytest.raises(RunError, match=r"weight 0000/narrow/kernel is in bfloat16, .* build the model in float32"):
        save_model(model, tmp_path / "run")
    assert not (tmp_path / "run").exists()
