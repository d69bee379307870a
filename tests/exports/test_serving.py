"""What TensorFlow Serving does with an export, with its own messages: find the version, load it, warm it up, answer requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tfp_bprune as bp
from tests.exports.networks import NETWORKS, settled
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import DenseFlipout, GaussianOutput

pytest.importorskip("tensorflow_serving")
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_log_pb2

v1 = tf.compat.v1
WARMUP = "assets.extra/tf_serving_warmup_requests"


class Served(NamedTuple):
    """A version as TensorFlow Serving holds it: a session with its variables, and the signatures by name."""

    session: Any
    signatures: Any


def version_of(base: Path) -> Path:
    """The folder that a server of `base` takes: of those whose names are numbers the highest."""
    versions = [one for one in base.iterdir() if one.is_dir() and one.name.isascii() and one.name.isdigit()]
    return max(versions, key=lambda one: int(one.name))


def loaded(base: Path) -> Served:
    """By the tag "serve": restores variables and runs the initializer of the graph, as the server's C++ does."""
    session = v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        graph = v1.saved_model.loader.load(session, [tf.saved_model.SERVING], str(version_of(base)))
    return Served(session, graph.signature_def)


def answered(served: Served, wire: bytes) -> bytes:
    """PredictionService.Predict, from the bytes of a request to those of a response; strict as the server is."""
    request = predict_pb2.PredictRequest.FromString(wire)
    signature = served.signatures[request.model_spec.signature_name or "serving_default"]
    assert signature.method_name == "tensorflow/serving/predict"
    assert set(request.inputs) == set(signature.inputs)
    feed = {}
    for name, info in signature.inputs.items():
        value = tf.make_ndarray(request.inputs[name])
        assert request.inputs[name].dtype == info.dtype
        assert tf.TensorShape(info.tensor_shape).is_compatible_with(value.shape)
        feed[info.name] = value
    fetched = served.session.run({name: info.name for name, info in signature.outputs.items()}, feed)
    response = predict_pb2.PredictResponse()
    for name, value in fetched.items():
        response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
    return response.SerializeToString()


def asked(served: Served, inputs: dict[str, np.ndarray], signature: str = "") -> dict[str, np.ndarray]:
    """What a client gets: it sends a request, and reads the response."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mine"
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    response = predict_pb2.PredictResponse.FromString(answered(served, request.SerializeToString()))
    return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


def regression() -> Any:
    """With a learned noise."""
    return keras.Sequential([keras.Input((5,)), DenseFlipout(6, activation="tanh"), DenseFlipout(2), GaussianOutput()])


def two_inputs() -> Any:
    """Inputs by name, of different shapes."""
    pixels, age = keras.Input((4, 4), name="pixels"), keras.Input((1,), name="age")
    joined = keras.layers.Concatenate()([keras.layers.Flatten()(pixels), age])
    model = keras.Model(
        [pixels, age], DenseFlipout(3, activation="softmax")(DenseFlipout(8, activation="relu")(joined))
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


EXPORTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "mean": (NETWORKS["lenet"], {"predictive": "mean"}),
    "sampled": (NETWORKS["mlp"], {"predictive": "sampled", "samples": 4}),
    "moments": (NETWORKS["mlp"], {"predictive": "moments"}),
    "sparse": (NETWORKS["mlp"], {"predictive": "mean", "kernels": "sparse"}),
    "int8": (NETWORKS["mlp"], {"predictive": "mean", "precision": "int8"}),
    "regression": (regression, {"predictive": "moments"}),
    "two inputs": (two_inputs, {"predictive": "sampled", "samples": 4}),
}


@pytest.fixture(scope="module", params=EXPORTS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned network's export."""
    build, options = EXPORTS[request.param]
    keras.utils.set_random_seed(0)
    out = tmp_path_factory.mktemp("served") / "mine"
    bp.export(bp.prune(settled(build()), sparsity=0.8)[0], out, **options)
    return out


@pytest.fixture(scope="module")
def served(place: Path) -> Served:
    return loaded(place)


def examples(served: Served, count: int) -> dict[str, np.ndarray]:
    """Inputs as the signature wants them."""
    rng = np.random.default_rng(count)
    shapes = {n: tf.TensorShape(i.tensor_shape) for n, i in served.signatures["serving_default"].inputs.items()}
    return {name: rng.normal(size=(count, *shape[1:])).astype(np.float32) for name, shape in shapes.items()}


def test_there_is_one_version_and_what_else_lies_there_is_none(place: Path) -> None:
    assert version_of(place).name == "1"
    assert [one.name for one in place.iterdir() if one.is_dir()] == ["1"]
    assert {one.name for one in version_of(place).iterdir()} >= {"saved_model.pb", "variables", "assets.extra"}


def test_a_request_is_answered_as_the_export_answers(place: Path, served: Served) -> None:
    inputs = examples(served, 7)
    expected = bp.predict(place, inputs if len(inputs) > 1 else next(iter(inputs.values()))).outputs
    for signature in ("", "serving_default"):
        found = asked(served, inputs, signature)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_requests_that_warm_it_up_are_answered(place: Path, served: Served) -> None:
    records = [one.numpy() for one in tf.data.TFRecordDataset(str(version_of(place) / WARMUP))]
    assert len(records) == 2
    for record, batch in zip(records, (1, 32), strict=True):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        log.DiscardUnknownFields()
        assert len(log.SerializeToString()) == len(record)  # there were none
        request = log.predict_log.request
        assert request.model_spec.signature_name in served.signatures
        response = predict_pb2.PredictResponse.FromString(answered(served, request.SerializeToString()))
        for value in response.outputs.values():
            assert tf.make_ndarray(value).shape[0] == batch
            assert np.isfinite(tf.make_ndarray(value)).all()


def test_clients_can_ask_what_it_takes_and_gives(place: Path, served: Served) -> None:
    """GetModelMetadata carries the signatures of saved_model.pb."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in served.signatures.items():
        signatures.signature_def[name].CopyFrom(signature)
    metadata = get_model_metadata_pb2.GetModelMetadataResponse()
    metadata.metadata["signature_def"].Pack(signatures)
    read = get_model_metadata_pb2.SignatureDefMap()
    wire = metadata.SerializeToString()
    assert get_model_metadata_pb2.GetModelMetadataResponse.FromString(wire).metadata["signature_def"].Unpack(read)
    signature = read.signature_def["serving_default"]
    manifest = json.loads((place / "manifest.json").read_text())
    assert set(signature.inputs) == set(manifest["inputs"])
    for name, info in signature.inputs.items():
        assert [d.size for d in info.tensor_shape.dim] == [-1, *manifest["inputs"][name]["shape"]]
        assert tf.dtypes.as_dtype(info.dtype).name == manifest["inputs"][name]["dtype"]
    assert all(info.tensor_shape.dim[0].size == -1 for info in signature.outputs.values())


def test_a_new_version_beside_the_old_one_is_taken(tmp_path: Path) -> None:
    """How README says to update a model: the folder of the new export under a higher number."""
    old, new = NETWORKS["mlp"](), settled(NETWORKS["mlp"]())
    bp.export(old, tmp_path / "old")
    bp.export(new, tmp_path / "new")
    (tmp_path / "new/1").rename(tmp_path / "old/2")
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    found = asked(loaded(tmp_path / "old"), {"inputs": x})
    expected = bp.predict(new, x, predictive="mean").outputs["probabilities"]
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-5)
