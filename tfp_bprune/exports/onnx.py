"""An exported network as an ONNX file, for ONNX Runtime and whatever else reads the format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tfp_bprune.exports.formats import Outputs, check_agreement, failure, hushed, refusal, require
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import BpruneError

OPSET = 17


def to_onnx(predictor: Predictor) -> bytes:
    """Converts `predictor.predict` to ONNX, opset 17, in float32, for any batch size.

    The graph takes `inputs` [batch, ...] and gives the named outputs of `export.predict`; the file is checked by
    `onnx.checker` and run against TensorFlow.

    Args:
      predictor: with dense kernels.

    Raises:
      ExportError: the extra `formats` is missing, ONNX lacks an operation or fails, or its outputs differ from TensorFlow's.
    """
    require("onnx", "tf2onnx", "onnx", "onnxruntime")
    with hushed():
        model = _converted(predictor)
        content = model.SerializeToString()
        try:
            check_agreement("onnx", predictor, runner(content))
        except BpruneError:
            raise
        except Exception as error:
            raise failure("ONNX Runtime", error, predictor.predictive) from error
    return content


def runner(content: bytes) -> Any:
    """A function from inputs [batch, ...], by name or one, to the named outputs of an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(x: np.ndarray | Outputs) -> Outputs:
        given = x if isinstance(x, dict) else {session.get_inputs()[0].name: x}
        return dict(zip(names, session.run(names, given), strict=True))

    return run


def _converted(predictor: Predictor) -> Any:
    import onnx
    import tf2onnx

    handlers: dict[str, Any] = {"Xlogy": (_xlogy, [])}
    function = predictor.predict
    try:
        model, _ = tf2onnx.convert.from_function(
            function, input_signature=function.input_signature, opset=OPSET, custom_op_handlers=handlers
        )
        # tf2onnx leaves in place what it does not know.
        unknown = [node.op_type for node in _nodes(model.graph) if not onnx.defs.has(node.op_type, node.domain)]
        if not unknown:
            onnx.checker.check_model(model, full_check=True)
            return model
    except Exception as error:
        raise failure("tf2onnx", error, predictor.predictive) from error
    raise refusal("onnx", unknown, predictor.predictive)


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those in the bodies of loops and branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _xlogy(context: Any, node: Any, name: str, arguments: Any) -> None:
    """x log y, and 0 where x is 0: the one operation of an entropy that tf2onnx does not know."""
    x, y = node.input
    outputs, shapes, types = node.output, node.output_shapes, node.output_dtypes
    zero = context.make_const(f"{name}/zero", np.zeros((), np.float32)).output[0]
    product = context.make_node("Mul", [x, context.make_node("Log", [y]).output[0]]).output[0]
    is_zero = context.make_node("Equal", [x, zero]).output[0]
    context.remove_node(name)
    context.make_node("Where", [is_zero, zero, product], name=name, outputs=outputs, shapes=shapes, dtypes=types)
