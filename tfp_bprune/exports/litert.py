"""An exported network as a LiteRT file (`.tflite`), for phones and small machines: no TensorFlow needed to run it."""

from __future__ import annotations

import re
from pathlib import Path

from tfp_bprune._keras import tf
from tfp_bprune.exports.converting import EXTRA, failure, hushed, refusal, require
from tfp_bprune.exports.forms import Form, register_form
from tfp_bprune.exports.others import check_litert
from tfp_bprune.exports.sparsify import sparsify
from tfp_bprune.files.runs import write_atomically
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import ExportError, Predictive


def to_litert(predictor: Predictor, float16: bool = False) -> bytes:
    """Converts `predictor.predict` to builtin LiteRT operations in float32, for any batch size.

    The signature `serving_default` takes `inputs` [batch, ...] and gives the named outputs of `export.predict`. Pruned
    kernels are stored sparse where that is smaller, see `sparsify`; `export` runs the file against TensorFlow.

    Args:
      predictor: with dense kernels.
      float16: stores weights in half the bytes; computed is in float32 all the same.

    Raises:
      ExportError: the extra `formats` is missing, or LiteRT lacks an operation.
    """
    require("litert", "ai_edge_litert")
    with hushed():
        return sparsify(_converted(predictor, float16))


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
        return refusal("LiteRT", [name for names in lacking for name in names.split(", ")], predictive)
    return failure("LiteRT's converter", error, predictive)


def _write(predictor: Predictor, path: Path, float16: bool) -> None:
    write_atomically(path, to_litert(predictor, float16))


LITERT = register_form(
    Form(
        "litert",
        "model.tflite",
        "ai_edge_litert.interpreter",
        _write,
        Path(__file__).parent / "loaders" / "litert.py",
        title="LiteRT",
        extra=EXTRA,
        float16=True,
        check=check_litert,
    )
)
