"""Models of Keras 3 come in, as objects and as files: the same function, then trained, pruned and exported."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras as keras3
import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.layers import variational_layers
from tfp_bprune.storage.keras3 import taken

L = keras3.layers
RNG = np.random.default_rng(0)


def mlp() -> Any:
    return keras3.Sequential([keras3.Input((6,)), L.Dense(8, activation="relu"), L.Dropout(0.1), L.Dense(3)])


def cnn() -> Any:
    model = keras3.Sequential(
        [keras3.Input((8, 8, 1)), L.Conv2D(4, 3, padding="same"), L.BatchNormalization(), L.LeakyReLU(negative_slope=0.1),
         L.MaxPooling2D(), L.SeparableConv2D(6, 3, activation="gelu"), L.Flatten(), L.Dense(3, activation="softmax")]
    )  # fmt: skip
    norm = model.layers[1]
    norm.set_weights([RNG.uniform(0.5, 1.5, w.shape) for w in norm.get_weights()])
    return model


def two_inputs() -> Any:
    a, b = keras3.Input((6,), name="a"), keras3.Input((5,), name="b")
    shared = L.Dense(7, activation="tanh", kernel_regularizer="l2")
    first, second = shared(a), L.Dense(7)(b)
    x = L.Concatenate()([first + second, L.LayerNormalization()(first * second), shared(a)])
    return keras3.Model([a, b], L.Dense(2, activation="softmax")(x))


def sequence() -> Any:
    tokens = keras3.Input((5,), dtype="int32")
    x = L.Embedding(20, 8)(tokens)
    x = L.MultiHeadAttention(2, 4)(x, x)
    inner = keras3.Sequential([keras3.Input((5, 8)), L.Dense(4, activation="relu")])
    x = L.TimeDistributed(L.Dense(3))(inner(x))
    return keras3.Model(tokens, L.Dense(2)(L.GlobalAveragePooling1D()(x)))


def recurrent() -> Any:
    model = [keras3.Input((3, 4)), L.GRU(4, return_sequences=True), L.Bidirectional(L.LSTM(3)), L.Dense(2)]
    return keras3.Sequential(model)


MODELS = {"mlp": mlp, "cnn": cnn, "two inputs": two_inputs, "sequence": sequence, "recurrent": recurrent}


def inputs_of(model: Any) -> Any:
    made = [
        RNG.integers(0, 20, (9, *one.shape[1:])) if "int" in str(one.dtype) else RNG.normal(size=(9, *one.shape[1:]))
        for one in model.inputs
    ]
    made = [one.astype("int32" if one.dtype.kind == "i" else "float32") for one in made]
    return made if len(made) > 1 else made[0]


@pytest.mark.parametrize("form", ["object", "file"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "recurrent" else []) for name in MODELS],
)
def test_the_function_is_the_same(name: str, form: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    x = inputs_of(model)
    expected = np.asarray(model(x, training=False))
    if form == "file":
        model.save(tmp_path / "model.keras")
    found = taken(model if form == "object" else tmp_path / "model.keras")
    assert isinstance(found, keras.Model)
    np.testing.assert_allclose(found(x, training=False), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "two inputs"])
def test_it_is_trained_pruned_and_exported(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    bayesian = bp.bayesianize(model)
    assert list(variational_layers(bayesian))
    x, y = inputs_of(model), np.arange(9) % 2
    bp.fit(bayesian, x, y, epochs=1, progress=False)
    pruned, report = bp.prune(bayesian, sparsity=0.5)
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    bp.export(pruned, tmp_path / "served")
    said = bp.predict(pruned, x, predictive="mean")
    np.testing.assert_allclose(bp.predict(tmp_path / "served", x).probabilities, said.probabilities, atol=1e-5)


def test_prune_takes_it_by_magnitude_and_tf_keras_files_are_taken(tmp_path: Path) -> None:
    pruned, report = bp.prune(mlp(), sparsity=0.5)
    assert isinstance(pruned, keras.Model)
    assert report.criterion == "magnitude"
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5), keras.layers.Dense(2)])
    model.save(tmp_path / "old.keras")
    x = RNG.normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(bp.strip(bp.bayesianize(tmp_path / "old.keras"))(x), model(x), atol=1e-6)


def refused(layer: Any) -> Any:
    inputs = keras3.Input((6,))
    return keras3.Model(inputs, layer(inputs))


class Own(L.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        return x


def relu(x: Any) -> Any:
    return keras3.ops.relu(x) + 1.0


@pytest.mark.parametrize("name", ["relu", "gelu", "elu", "selu", "silu", "softplus", "softsign", "exponential", "mish"])
def test_activations_of_one_name_are_one_function(name: str) -> None:
    """Those that are not are refused."""
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    expected = getattr(keras3.activations, name)(x)
    np.testing.assert_allclose(keras.activations.deserialize(name)(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: refused(L.RMSNormalization(name="norm")),
            "layer 'norm' is a RMSNormalization, which Keras 2 does not have",
        ),
        (lambda: refused(Own(name="own")), r"layer 'own' is a .*Own: expected layers of Keras itself"),
        (lambda: refused(L.Lambda(lambda x: x, name="code")), "Lambda, which can run code"),
        (
            lambda: refused(lambda x: keras3.ops.cumsum(x, 1)),
            "is the operation Cumsum of Keras 3, which has no counterpart",
        ),
        (
            lambda: refused(L.Dense(3, relu, name="own")),
            "layer 'own' of Keras 3 has a function of its own as activation",
        ),
        (
            lambda: refused(L.Dense(3, "hard_sigmoid", name="hard")),
            r"layer 'hard' \(Dense\) has activation='hard_sigmoid', which is .* in Keras 2",
        ),
        (
            lambda: keras3.Sequential(
                [keras3.Input((3, 4)), L.LSTM(2, recurrent_activation="hard_sigmoid"), L.Dense(2)]
            ),
            "has recurrent_activation='hard_sigmoid'",
        ),
        (lambda: keras3.Sequential([L.Dense(3)]), "has no weights yet"),
    ],
)
def test_what_has_no_counterpart_is_named(model: Any, message: str) -> None:
    with pytest.raises(bp.BpruneError, match=message) as error:
        bp.bayesianize(model())
    assert "\n" not in str(error.value)


def rewritten(path: Path, config: Any = None, weights: Any = None) -> Path:
    """A copy of a `.keras` file with another configuration or other weights."""
    with zipfile.ZipFile(path) as archive:
        old, h5 = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
    if config is not None:
        config(old)
    if weights is not None:
        content = io.BytesIO(h5)
        with h5py.File(content, "r+") as file:
            weights(file["layers/dense/vars"])
        h5 = content.getvalue()
    made = path.with_name("hostile.keras")
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("config.json", json.dumps(old))
        archive.writestr("model.weights.h5", h5)
    return made


def linked(group: Any, link: Any) -> None:
    del group["0"]
    group["0"] = link


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "module": (
        {"config": lambda c: c["config"]["layers"][1].update(module="os", class_name="system")},
        "is a os.system",
    ),
    "function": (
        {
            "config": lambda c: c["config"]["layers"][1]["config"].update(
                activation={"class_name": "function", "module": "os", "config": "system"}
            )
        },
        "function",
    ),
    "a Lambda": (
        {
            "config": lambda c: c["config"]["layers"][1].update(
                class_name="Lambda", config={"name": "l", "function": "evil"}
            )
        },
        "Lambda",
    ),
    "a registered name": (
        {"config": lambda c: c["config"]["layers"][1].update(registered_name="evil>Dense")},
        "expected layers of Keras itself",
    ),
    "a layer that is a word": ({"config": lambda c: c["config"]["layers"].append("x")}, "cannot be read|is no layer"),
    "a layer without arguments": (
        {"config": lambda c: c["config"]["layers"][1].update(config=None)},
        "something that is no layer",
    ),
    "layers that are none": ({"config": lambda c: c["config"].update(layers=3)}, "no functional or sequential model"),
    "size": (
        {"config": lambda c: c["config"]["layers"][1]["config"].update(units=2**30)},
        "memory|bytes|numbers|sizes",
    ),
    "external": (
        {"weights": lambda g: linked(g, h5py.ExternalLink("/etc/passwd", "/x"))},
        "as a link, which is not followed",
    ),
    "soft": (
        {"weights": lambda g: linked(g, h5py.SoftLink("/layers/dense/vars/1"))},
        "as a link, which is not followed",
    ),
    "gone": ({"weights": lambda g: g.__delitem__("0")}, "has 1 variables: expected 2"),
    "nan": ({"weights": lambda g: g["1"].write_direct(np.full(8, np.nan, "float32"))}, "expected finite ones"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_means_harm_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    mlp().save(tmp_path / "model.keras")
    change, message = HOSTILE[name]
    with pytest.raises(bp.BpruneError, match=message) as error:
        bp.bayesianize(rewritten(tmp_path / "model.keras", **change))
    assert "\n" not in str(error.value)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    mlp().save(tmp_path / "model.keras")
    content = (tmp_path / "model.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    (tmp_path / "flipped.keras").write_bytes(bytes(flipped))
    for file in ("cut", "flipped", "nowhere"):
        with pytest.raises(bp.BpruneError, match="cannot be read as a file of Keras"):
            bp.bayesianize(tmp_path / f"{file}.keras")


def zipped(path: Path, weights: bytes, method: int, damage: bool = False) -> Path:
    """A `.keras` file, compressed."""
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights)
    made, changed = path.with_name("zipped.keras"), bytearray(content.getvalue())
    if damage:
        changed[60:90] = b"\xff" * 30
    made.write_bytes(changed)
    return made


def test_what_unpacks_to_more_than_it_is_and_what_does_not_is_refused(tmp_path: Path) -> None:
    mlp().save(tmp_path / "model.keras")
    for weights, method, damage in (
        (bytes(2**24), zipfile.ZIP_DEFLATED, False),
        (b"x", zipfile.ZIP_LZMA, False),
        (b"x", zipfile.ZIP_DEFLATED, True),
        (b"x", zipfile.ZIP_BZIP2, True),
    ):
        with pytest.raises(bp.BpruneError, match=r"zipped.keras") as error:
            bp.prune(zipped(tmp_path / "model.keras", weights, method, damage), sparsity=0.5)
        assert "\n" not in str(error.value)
