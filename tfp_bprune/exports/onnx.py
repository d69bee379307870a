"""An exported network as an ONNX file, for ONNX Runtime and whatever else reads the format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.exports.converting import EXTRA, failure, hushed, refusal, require
from tfp_bprune.exports.forms import Form, register_form
from tfp_bprune.exports.narrow import narrowed
from tfp_bprune.exports.others import check_onnx, nodes_of
from tfp_bprune.files.runs import write_atomically
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import Storage

OPSET = 17


def to_onnx(
    predictor: Predictor,
    precision: Mapping[str, Storage] | None = None,
    representative: Mapping[str, np.ndarray] | None = None,
    batch: int | None = None,
) -> bytes:
    """Converts `predictor.predict` to ONNX, opset 17, for any batch size or for one.

    The graph takes `inputs` [batch, ...] and gives the named outputs of `prediction.predict`; the file is checked by
    `onnx.checker`; `export` runs it against TensorFlow.

    Args:
      predictor: with dense kernels, rounded where they are to be of few bits.
      precision: of the weights, by the layer's name; see `narrow`.
      representative: examples [n, ...] by the input's name, which settle the ranges of activations.
      batch: the size of batches; None for any.

    Raises:
      ExportError: the extra `formats` is missing, ONNX lacks an operation or fails.
    """
    require("onnx", "tf2onnx", "onnx", "onnxruntime")
    with hushed():
        model = _converted(predictor, batch)
        if set((precision or {}).values()) <= {"float32"}:
            return model.SerializeToString()
        try:
            return narrowed(model, precision or {}, representative, predictor.last, batch).SerializeToString()
        except Exception as error:
            raise failure("onnxruntime.quantization", error, predictor.predictive) from error


def _write(
    predictor: Predictor,
    path: Path,
    precision: Mapping[str, Storage],
    representative: Mapping[str, np.ndarray] | None,
    batch: int | None,
) -> None:
    write_atomically(path, to_onnx(predictor, precision, representative, batch))


def _payload(predictor: Predictor, path: Path) -> int:
    import onnx

    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(str(path)).graph.initializer)


def _converted(predictor: Predictor, batch: int | None) -> Any:
    import onnx
    import tf2onnx

    handlers: dict[str, Any] = {"Xlogy": (_xlogy, [])}
    function = predictor.for_batches_of(batch)
    try:
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=OPSET, custom_op_handlers=handlers
        )
        # tf2onnx leaves in place what it does not know.
        unknown = [node.op_type for node in nodes_of(model.graph) if not onnx.defs.has(node.op_type, node.domain)]
        if not unknown:
            onnx.checker.check_model(model, full_check=True)
            return model
    except Exception as error:
        raise failure("tf2onnx", error, predictor.predictive) from error
    raise refusal("ONNX", unknown, predictor)


def _xlogy(context: Any, node: Any, name: str, arguments: Any) -> None:
    """x log y, and 0 where x is 0: the one operation of an entropy that tf2onnx does not know."""
    x, y = node.input
    outputs, shapes, types = node.output, node.output_shapes, node.output_dtypes
    zero = context.make_const(f"{name}/zero", np.zeros((), np.float32)).output[0]
    product = context.make_node("Mul", [x, context.make_node("Log", [y]).output[0]]).output[0]
    is_zero = context.make_node("Equal", [x, zero]).output[0]
    context.remove_node(name)
    context.make_node("Where", [is_zero, zero, product], name=name, outputs=outputs, shapes=shapes, dtypes=types)


ONNX = register_form(
    Form(
        "onnx",
        "model.onnx",
        "onnxruntime",
        _write,
        Path(__file__).parent / "loaders" / "onnx.py",
        title="ONNX",
        precisions=("float32", "float16", "int8"),
        payload=_payload,
        extra=EXTRA,
        check=check_onnx,
        batch=True,
    )
)
