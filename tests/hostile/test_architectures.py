"""Architectures of strangers: classes, arguments and graphs that Keras would follow anywhere."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tfp_bprune._keras import keras, tf
from tfp_bprune.storage import store
from tfp_bprune.storage.harmless import _is_number
from tfp_bprune.types import RunError

Json = dict[str, Any]
REFUSED = r"stored architecture|the stored weights"


def described() -> Json:
    """A small network as Keras describes it."""
    inputs = keras.Input((4,), name="in")
    x = keras.layers.Dense(3, activation="relu", name="a")(inputs)
    x = tf.nn.relu(1.0 - x)
    x = keras.layers.Dense(3, name="b")(x)
    return json.loads(keras.Model(inputs, keras.layers.Dense(2, name="c")(x)).to_json())


def layer(description: Json, name: str) -> Json:
    return next(one for one in description["config"]["layers"] if one["config"]["name"] == name)


def obj(module: str | None, kind: str, **config: Any) -> Json:
    return {"module": module, "class_name": kind, "config": config, "registered_name": kind}


def argument(key: str, value: Any, where: str = "a") -> Callable[[Json, Path], None]:
    def change(description: Json, canary: Path) -> None:
        layer(description, where)["config"][key] = value

    return change


def replaced(made: Json, where: str = "a") -> Callable[[Json, Path], None]:
    def change(description: Json, canary: Path) -> None:
        old = layer(description, where)
        kept = {key: old[key] for key in ("name", "inbound_nodes", "build_config")}
        old.clear()
        old.update(copy.deepcopy(made) | kept)
        old["config"].setdefault("name", where)

    return change


def by_print(description: Json, canary: Path) -> None:
    """The attack that appended to any file: a Lambda by its dotted name, inside an argument of another layer."""
    function = {"class_name": "TFOpLambda", "config": {"name": "p", "function": "print"}}
    inner = obj("tf_keras.src.layers.core", "lambda_layer.Lambda", name="l", function=function)
    nodes = [["_CONSTANT_VALUE", -1, "harm", {"output_stream": f"file://{canary}"}]]
    replaced(obj("keras.layers", "TextVectorization", name="a", standardize=inner | {"inbound_nodes": nodes}))(
        description, canary
    )


def by_constant(description: Json, canary: Path) -> None:
    relu = description["config"]["layers"][2]
    relu["config"]["function"] = "print"
    relu["inbound_nodes"] = [["_CONSTANT_VALUE", -1, "harm", {"output_stream": f"file://{canary}"}]]


def cycle(description: Json, canary: Path) -> None:
    layer(description, "a")["inbound_nodes"] = [[["b", 0, 0, {}]]]


def itself(description: Json, canary: Path) -> None:
    layer(description, "b")["inbound_nodes"] = [[["b", 0, 0, {}]]]


def missing(description: Json, canary: Path) -> None:
    layer(description, "b")["inbound_nodes"] = [[["nowhere", 0, 0, {}]]]


def upside_down(description: Json, canary: Path) -> None:
    """Sixty layers in a row, the last first: Keras would go through all of them sixty times."""
    layers = description["config"]["layers"]
    for number in range(60):
        made = copy.deepcopy(layer(description, "b"))
        made["config"]["name"] = made["name"] = f"b{number}"
        made["inbound_nodes"] = [[[f"b{number - 1}" if number else "b", 0, 0, {}]]]
        layers.insert(1, made)


def later_call(description: Json, canary: Path) -> None:
    layer(description, "b")["inbound_nodes"] = [[["a", 7, 0, {}]]]


DENSE = obj("keras.layers", "Dense", units=3)
CHANGES: dict[str, Callable[[Json, Path], None]] = {
    "tf.print through an argument": by_print,
    "tf.print of a constant": by_constant,
    "a cycle": cycle,
    "a layer that reads itself": itself,
    "a layer that reads nothing": missing,
    "a call that never was": later_call,
    "in an order that takes as many rounds as layers": upside_down,
    "object as input_dim": replaced(obj("keras.layers", "Embedding", input_dim=DENSE, output_dim=3)),
    "object of any module": argument("kernel_initializer", obj("os", "system", command="true")),
    "dotted class": argument("kernel_initializer", obj("keras.initializers", "initializers.Zeros")),
    "class of another module": argument("kernel_initializer", obj("keras.layers", "Zeros")),
    "an optimizer for an initializer": argument("kernel_initializer", obj("keras.optimizers", "Adam")),
    "a callback": argument("kernel_initializer", obj("keras.callbacks", "CSVLogger", filename="x")),
    "a function of builtins": argument("activation", obj("builtins", "function") | {"config": "exec"}),
    "a marshalled function": argument("activation", {"class_name": "__lambda__", "config": {"value": "4wEAAA=="}}),
    "a type of the writer's": argument("activation", obj("tensorflow", "__typespec__") | {"spec_name": "x"}),
    "a class without its module": argument("kernel_initializer", {"class_name": "Zeros", "config": {}}),
    "registered under another name": argument("kernel_initializer", obj("keras.initializers", "Zeros") | {"registered_name": "evil>Zeros"}),
    "a class of this package that is no layer": replaced(obj("tfp_bprune.files.runs", "Run", path="/tmp/x")),
    "a vocabulary in a file": replaced(obj("keras.layers", "StringLookup", vocabulary="/etc/passwd")),
    "a Lambda": replaced(obj("keras.layers", "Lambda")),
    "units of 1e8": argument("units", 100_000_000),
    "units of 0": argument("units", 0),
    "units of -3": argument("units", -3),
    "units of text": argument("units", "many"),
    "units of 2.5": argument("units", 2.5),
    "an input of 1e10 numbers": argument("batch_input_shape", [None, 100_000, 100_000], "in"),
    "an input of text": argument("batch_input_shape", "wide", "in"),
    "an input of negative size": argument("batch_input_shape", [None, -7], "in"),
    "a name of a megabyte": argument("name", "x" * 2**20),
    "a name that is a list": argument("name", [1]),
    "an activation of a list": argument("activation", [1, 2]),
    "an activation unknown": argument("activation", "explode"),
    "arguments unknown": argument("explode", 1),
    "arguments that are a list": lambda description, canary: layer(description, "a").update(config=[1]),
    "arguments that are text": lambda description, canary: layer(description, "a").update(config="x"),
    "layers that are none": lambda description, canary: description["config"].update(layers=[1, None]),
    "layers that are text": lambda description, canary: description["config"].update(layers="x"),
    "no layers": lambda description, canary: description["config"].update(layers=[]),
    "no outputs": lambda description, canary: description["config"].update(output_layers=[]),
    "outputs of no layer": lambda description, canary: description["config"].update(output_layers=[["z", 0, 0]]),
    "no config": lambda description, canary: description.update(config=None),
    "no class": lambda description, canary: description.update(class_name=None),
    "a class that is an object": lambda description, canary: description.update(class_name={"a": 1}),
    "a model of a module": lambda description, canary: description.update(module="os", registered_name="system"),
    "twice one name": lambda description, canary: description["config"]["layers"].append(copy.deepcopy(layer(description, "c"))),
}  # fmt: skip


def inner(kind: str = "functional") -> Any:
    """A model to be called in another: its own inputs are call 0 of it where it has any."""
    inputs, dense = keras.Input((4,)), keras.layers.Dense(4, name="d")
    if kind == "functional":
        return keras.Model(inputs, dense(inputs), name="m")
    return keras.Sequential([inputs, dense] if kind == "sequential" else [dense], name="m")


def within(kind: str) -> Json:
    """A network in which the model `m` is called twice, then Dense `b` once, and the states of a GRU are taken."""
    inputs, model = keras.Input((4,), name="in"), inner(kind)
    x = keras.layers.Dense(4, name="b")(model(model(inputs)))
    rows, state = keras.layers.GRU(4, return_state=True, name="g")(keras.layers.Reshape((2, 2), name="r")(x))
    x = keras.layers.Dense(2, name="c")(keras.layers.Add(name="plus")([rows, state]))
    x = tf.math.add(x, tf.split(x, 2, axis=1)[1])
    return json.loads(keras.Model(inputs, x).to_json())


def call(name: str, number: Any, output: Any = 0, **keywords: Any) -> Callable[[Json], None]:
    """Has `b` take that output of that call of a layer."""
    return lambda description: layer(description, "b").update(inbound_nodes=[[[name, number, output, keywords]]])


def turned(description: Json) -> None:
    """Calls in the right order among layers, and in the wrong one within a layer: Keras keeps the latter."""
    layer(description, "m")["inbound_nodes"] = [[["b", 0, 0, {}]], [["in", 0, 0, {}]]]
    layer(description, "b")["inbound_nodes"] = [[["m", 1, 0, {}]]]


def outputs_of(name: str, number: Any) -> Callable[[Json], None]:
    return lambda description: description["config"].update(output_layers=[[name, number, 0]])


ENDLESS: dict[str, Callable[[Json], None]] = {
    "the call of its own inputs": call("m", 0),
    "a call beyond all": call("m", 3),
    "a call far beyond": call("m", 2**70),
    "a call before the first": call("m", -1),
    "a call before the first of a layer": call("r", -1),
    "a call that is half a one": call("m", 0.5),
    "a call of a word": call("m", "1"),
    "a call of nothing": call("m", None),
    "a call of a list": call("m", [1]),
    "a call of true, of a layer called once": call("r", True),
    "a layer that comes later": call("c", 0),
    "an output that there is not": call("m", 1, 7),
    "an output of a word": call("m", 1, "x"),
    "a keyword: the call of its own inputs": call("in", 0, training=["m", 0, 0]),
    "a keyword: a call beyond all": call("in", 0, training=["m", 9, 0]),
    "a keyword: an output that there is not": call("in", 0, training=["m", 1, 7]),
    "a keyword: an output of a layer that waits": call("in", 0, training=["c", 0, 0]),
    "a keyword: half a call": call("in", 0, training=["m", 0.5, 0]),
    "a keyword of a keyword": call("in", 0, training=[["m", 1, 0, {}], ["m", 0, 0]]),
    "a keyword of a constant": lambda description: layer(description, "b").update(
        inbound_nodes=[[["_CONSTANT_VALUE", -1, 3.0, {"training": ["m", 0, 0]}]]]),
    "a constant that is a call": call("_CONSTANT_VALUE", 0),
    "its own calls, turned": turned,
    "outputs: the call of its own inputs": outputs_of("m", 0),
    "outputs: a call beyond all": outputs_of("m", 9),
    "outputs: half a call": outputs_of("m", 0.5),
    "inputs: a call beyond all": lambda description: description["config"].update(input_layers=[["m", 9, 0]]),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("where", ["functional", "sequential", "sequential without inputs"])
@pytest.mark.parametrize("kind", ENDLESS)
def test_a_call_that_never_comes_is_not_waited_for(kind: str, where: str, endless: dict[str, Json]) -> None:
    description = copy.deepcopy(endless[where])
    ENDLESS[kind](description)
    began = time.process_time()
    with pytest.raises(RunError, match=REFUSED) as raised:
        store.from_architecture(description, most=10_000)
    assert "\n" not in str(raised.value)
    assert time.process_time() - began < 5


@pytest.fixture(scope="module")
def endless() -> dict[str, Json]:
    return {kind: within(kind) for kind in ("functional", "sequential", "sequential without inputs")}


def test_calls_that_come_are_read(endless: dict[str, Json]) -> None:
    for description in endless.values():
        assert store.from_architecture(description).output_shape == (None, 2)


def unrolled(layer: Any, steps: int) -> Json:
    """A recurrent layer made for ten steps, of which an input of `steps` is said."""
    inputs = keras.Input((10, 2), name="in")
    description = json.loads(keras.Model(inputs, layer(inputs)).to_json())
    described_input = description["config"]["layers"][0]["config"]
    described_input["batch_input_shape"] = [None, steps, *described_input["batch_input_shape"][2:]]
    return description


UNROLLED: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: keras.layers.LSTM(2, unroll=True),
    "GRU": lambda: keras.layers.GRU(2, unroll=True, return_sequences=True),
    "SimpleRNN": lambda: keras.layers.SimpleRNN(2, unroll=True, time_major=False),
    "in both directions": lambda: keras.layers.Bidirectional(keras.layers.LSTM(2, unroll=True)),
    "of cells": lambda: keras.layers.RNN([keras.layers.GRUCell(2), keras.layers.LSTMCell(2)], unroll=True),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", UNROLLED)
def test_a_long_sequence_is_not_unrolled(kind: str) -> None:
    assert store.from_architecture(unrolled(UNROLLED[kind](), 12)).input_shape == (None, 12, 2)
    with pytest.raises(RunError, match=r"unrolls \d+ steps: expected 1000 at most"):
        store.from_architecture(unrolled(UNROLLED[kind](), 50_000))


def test_steps_of_all_layers_count_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfp_bprune.storage.unrolled._MOST_STEPS", 23)
    store.from_architecture(unrolled(UNROLLED["LSTM"](), 12))
    with pytest.raises(RunError, match=r"unrolls 24 steps"):
        store.from_architecture(unrolled(UNROLLED["in both directions"](), 12))


def test_steps_come_first_where_the_layer_says_so_and_loops_are_none() -> None:
    def described_as(unroll: bool) -> Json:
        inputs = keras.Input(batch_shape=(12, 3, 2), name="in")
        description = json.loads(
            keras.Model(inputs, keras.layers.SimpleRNN(2, unroll=unroll, time_major=True)(inputs)).to_json()
        )
        description["config"]["layers"][0]["config"]["batch_input_shape"] = [50_000, 3, 2]
        return description

    assert store.from_architecture(described_as(False)).input_shape == (50_000, 3, 2)
    with pytest.raises(RunError, match=r"unrolls 50000 steps"):
        store.from_architecture(described_as(True))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("function", ["unstack", "split"])
def test_a_tensor_is_not_taken_apart_into_a_million(function: str) -> None:
    inputs = keras.Input((4,))
    parts = tf.unstack(inputs, axis=-1) if function == "unstack" else tf.split(inputs, 4, 1)
    description = json.dumps(json.loads(keras.Model(inputs, parts[0]).to_json()))
    assert store.from_architecture(json.loads(description)).input_shape == (None, 4)
    wide = description.replace('"batch_input_shape": [null, 4]', '"batch_input_shape": [null, 1000000]')
    for said in ('"num_or_size_splits": 4', '["_CONSTANT_VALUE", -1, 4,'):
        wide = wide.replace(said, said.replace("4", "1000000"))
    with pytest.raises(RunError, match="takes a tensor apart into 1000000: expected 10000"):
        store.from_architecture(json.loads(wide))


@pytest.mark.timeout(20)
def test_models_in_models_that_double_are_refused() -> None:
    description = json.loads(inner().to_json())
    for depth in range(30):
        held = description | {
            "module": "tf_keras.src.engine.functional",
            "registered_name": "Functional",
            "name": f"m{depth}",
        }
        held["config"] = description["config"] | {"name": f"m{depth}"}
        calls = [[["in", 0, 0, {}]], [[f"m{depth}", 1, 0, {}]]]
        first = obj("keras.layers", "InputLayer", name="in", batch_input_shape=[None, 4])
        layers = [first | {"name": "in", "inbound_nodes": []}, held | {"inbound_nodes": calls}]
        config = {"name": "x", "layers": layers, "input_layers": [["in", 0, 0]], "output_layers": [[f"m{depth}", 2, 0]]}
        description = {"class_name": "Functional", "config": config}
        if depth == 1:
            assert store.from_architecture(description).count_params() == 20
    with pytest.raises(RunError, match=r"layers, arguments of them and calls: expected 20000 at most"):
        store.from_architecture(description)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_hostile_architecture_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    description, canary = described(), tmp_path / "canary"
    CHANGES[kind](description, canary)
    with pytest.raises(RunError, match=REFUSED) as raised:
        store.from_architecture(description, most=1000)
    assert "\n" not in str(raised.value)
    assert not canary.exists()


def test_the_same_architecture_unchanged_is_read() -> None:
    assert store.from_architecture(described(), most=4 * 35).count_params() == 35


def test_constants_are_numbers_or_equations() -> None:
    for value in (1, 2.5, None, True, [1, [2.0]], "ab,bc->ac", {"class_name": "__tuple__", "items": [1]}):
        assert _is_number(value)
    for value in (
        "/etc/passwd",
        "file:///x",
        "gs://a",
        "a\nb",
        "x" * 200,
        {"class_name": "Lambda"},
        {"a": 1},
        ["/etc"],
    ):
        assert not _is_number(value)
