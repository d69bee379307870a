"""An exported network as a LiteRT file (`.tflite`), for phones and small machines: no TensorFlow needed to run it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.exports.formats import RUNTIMES, TOLERANCE, Outputs, check_agreement, failure, hushed, refusal, require
from tfp_bprune.exports.sparsify import sparsify
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import ExportError, Predictive

# float16 keeps 11 bits of each weight: relative errors of 5e-4, which add up over layers.
_TOLERANCE_FLOAT16 = 0.02


def to_litert(predictor: Predictor, float16: bool = False) -> bytes:
    """Converts `predictor.predict` to builtin LiteRT operations in float32, for any batch size.

    The signature `serving_default` takes `inputs` [batch, ...] and gives the named outputs of `export.predict`. Pruned
    kernels are stored sparse where that is smaller, see `sparsify`; the file is run against TensorFlow.

    Args:
      predictor: with dense kernels.
      float16: stores weights in half the bytes; computed is in float32 all the same.

    Raises:
      ExportError: the extra `formats` is missing, LiteRT lacks an operation, or its outputs differ from TensorFlow's.
    """
    require("litert", RUNTIMES["litert"])
    with hushed():
        content = sparsify(_converted(predictor, float16))
        check_agreement("litert", predictor, runner(content), _TOLERANCE_FLOAT16 if float16 else TOLERANCE)
    return content


def runner(content: bytes) -> Any:
    """A function from inputs [batch, ...], by name or one, to the named outputs of a LiteRT file."""
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_content=content, num_threads=1).get_signature_runner("serving_default")

    def run(x: np.ndarray | Outputs) -> Outputs:
        given = x if isinstance(x, dict) else {next(iter(signature.get_input_details())): x}
        return {name: np.array(value) for name, value in signature(**given).items()}

    return run


def _converted(predictor: Predictor, float16: bool) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions([predictor.predict.get_concrete_function()], predictor)
    # Nothing else: TensorFlow's own operations would need a runtime of 100 MB with TensorFlow in it.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        return converter.convert()
    except Exception as error:
        raise _explained(error, predictor.predictive) from error


def _explained(error: Exception, predictive: Predictive) -> ExportError:
    """The converter's pages of text as one line."""
    lacking = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.MULTILINE)
    if lacking:
        return refusal("litert", [name for names in lacking for name in names.split(", ")], predictive)
    return failure("LiteRT's converter", error, predictive)
