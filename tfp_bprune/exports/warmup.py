"""Requests that TensorFlow Serving plays to a model before it serves it, so that the first user does not wait for tracing,
allocation and kernels that are made ready at load.

A record is a `PredictionLog` of tensorflow_serving/apis. The few fields of it that are needed are written here by number;
the package that has the message classes would be a dependency for them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.types import ExportError

FILE = "assets.extra/tf_serving_warmup_requests"  # where TensorFlow Serving looks for it
BATCHES = (1, 32)
SIGNATURE = "serving_default"
_PREDICT_LOG, _REQUEST = 6, 1  # of PredictionLog and PredictLog
_MODEL_SPEC, _INPUTS = 1, 2  # of PredictRequest
_NAME, _SIGNATURE_NAME = 1, 3  # of ModelSpec
_KEY, _VALUE = 1, 2  # of every entry of a map
_LENGTH_DELIMITED = 2
_SIZES = (8, 16, 32, 64, 128, 224, 256, 512, 1, 2, 4)  # tried in the place of sizes that are not fixed


def fixed(predict: Any, specs: Sequence[Any]) -> list[Any]:
    """The specs of inputs with sizes that the network takes in the place of those that are not fixed, but the batch.

    Args:
      predict: of a `Predictor`; it is run, if need be, until it gives finite numbers.
      specs: `tf.TensorSpec` [batch, ...] of its inputs.

    Raises:
      ExportError: no size that was tried works.
    """
    if all(spec.shape[1:].is_fully_defined() for spec in specs):
        return list(specs)
    for size in _SIZES:
        shapes = [[None, *(size if side is None else side for side in spec.shape[1:])] for spec in specs]
        found = [tf.TensorSpec(shape, s.dtype, s.name) for shape, s in zip(shapes, specs, strict=True)]
        if _runs(predict, found):
            return found
    raise ExportError(
        f"the network takes none of the sizes {', '.join(map(str, sorted(_SIZES)))} where its inputs have no fixed size: give "
        "them one"
    )


def _runs(predict: Any, specs: Sequence[Any]) -> bool:
    try:
        outputs = predict(*(tf.zeros([1, *spec.shape[1:]], spec.dtype) for spec in specs))
    except (tf.errors.OpError, ValueError):
        return False
    return all(value.shape.num_elements() and np.isfinite(value).all() for value in outputs.values())


def write_warmup(folder: Path, name: str, specs: Sequence[Any], batches: Sequence[int] = BATCHES) -> None:
    """Writes a request for each batch size into the SavedModel at `folder`.

    Args:
      folder: the version folder of a SavedModel with the signature `serving_default`.
      name: of the model; TensorFlow Serving plays the requests whatever it serves the model as.
      specs: `tf.TensorSpec` [batch, ...] of the signature's inputs, whose names are theirs.
      batches: sizes of the requests.
    """
    file = folder / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for batch in batches:
            writer.write(_record(name, specs, batch))


def _record(name: str, specs: Sequence[Any], batch: int) -> bytes:
    """A serialized `PredictionLog` with one request of `batch` examples."""
    model = _field(_NAME, name.encode()) + _field(_SIGNATURE_NAME, SIGNATURE.encode())
    request = _field(_MODEL_SPEC, model) + b"".join(_field(_INPUTS, _input(spec, batch)) for spec in specs)
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _input(spec: Any, batch: int) -> bytes:
    """One input of a request."""
    # What a call costs does not depend on the values: one number, which the format repeats by itself, takes no space.
    value = "" if spec.dtype == tf.string else 1
    tensor = tf.make_tensor_proto(value, dtype=spec.dtype, shape=[batch, *spec.shape[1:]]).SerializeToString()
    return _field(_KEY, spec.name.encode()) + _field(_VALUE, tensor)


def _field(number: int, content: bytes) -> bytes:
    """A message, string or map entry in the wire format of protocol buffers: tag, length, content."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """A number in groups of seven bits, the lowest first; all but the last group have the eighth bit set.

    >>> _varint(300).hex()
    'ac02'
    """
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if rest == 0 else bytes([low | 0x80]) + _varint(rest)
