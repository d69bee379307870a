"""The warm-up requests of a SavedModel, read with message classes built from TensorFlow Serving's definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tfp_bprune._keras import tf
from tfp_bprune.exports import export

FILE = Path("1/assets.extra/tf_serving_warmup_requests")
# tensorflow_serving/apis: message -> field -> (number, type); `str`, or the message that the field holds.
MESSAGES: dict[str, dict[str, tuple[int, Any]]] = {
    "ModelSpec": {"name": (1, str), "signature_name": (3, str)},
    "PredictRequest": {"model_spec": (1, ".t.ModelSpec"), "inputs": (2, ".t.PredictRequest.InputsEntry")},
    "InputsEntry": {"key": (1, str), "value": (2, ".tensorflow.TensorProto")},
    "PredictLog": {"request": (1, ".t.PredictRequest")},
    "PredictionLog": {"predict_log": (6, ".t.PredictLog")},
}


def prediction_log() -> Any:
    """The message class `PredictionLog`."""
    pool = descriptor_pool.Default()
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    file.dependency.append("tensorflow/core/framework/tensor.proto")
    for name, fields in MESSAGES.items():
        if name == "InputsEntry":  # a map's entries belong to the message that has the map
            message = next(m for m in file.message_type if m.name == "PredictRequest").nested_type.add(name=name)
            message.options.map_entry = True
        else:
            message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number, label=3 if field == "inputs" else 1)
            added.type = 9 if kind is str else 11  # string or message
            if kind is not str:
                added.type_name = kind
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.PredictionLog"))


@pytest.fixture(scope="module")
def exported(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny network."""
    place = tmp_path_factory.mktemp("exported") / "mean"
    export(tiny_model, place)
    return place


def test_the_requests_are_those_that_the_model_takes(exported: Path, tiny_model: Any) -> None:
    log = prediction_log()
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(exported / FILE))]
    requests = [log.FromString(record).predict_log.request for record in records]
    serve = tf.saved_model.load(str(exported / "1")).signatures["serving_default"]
    for request, batch in zip(requests, (1, 32), strict=True):
        assert (request.model_spec.name, request.model_spec.signature_name) == (tiny_model.name, "serving_default")
        assert list(request.inputs) == ["inputs"]
        x = tf.make_ndarray(request.inputs["inputs"])
        assert (x.shape, x.dtype) == ((batch, 8, 8, 1), np.float32)
        assert (x != 0).all()
        assert serve(inputs=tf.constant(x))["probabilities"].shape == (batch, 10)


def test_the_requests_take_next_to_no_space(exported: Path) -> None:
    assert (exported / FILE).stat().st_size < 400
