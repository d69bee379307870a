"""An exported network as a LiteRT file (`.tflite`), for phones and small machines: no TensorFlow needed to run it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.exports.converting import EXTRA, failure, hushed, refusal, require
from tfp_bprune.exports.forms import Form, register_form
from tfp_bprune.exports.others import check_litert
from tfp_bprune.exports.recipes import constants, quantized
from tfp_bprune.exports.sparsify import sparsify
from tfp_bprune.files.runs import write_atomically
from tfp_bprune.prediction.grids import bits_of
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.prediction.unrolling import MOST_STEPS
from tfp_bprune.types import ExportError, Storage

_LOOPS = "Variable constant folding|TensorList"  # what the converter says of lists of unknown size


def to_litert(
    predictor: Predictor,
    float16: bool = False,
    precision: Mapping[str, Storage] | None = None,
    representative: Mapping[str, np.ndarray] | None = None,
    batch: int | None = None,
) -> bytes:
    """Converts `predictor.predict` to builtin LiteRT operations, for any batch size or for one.

    The signature `serving_default` takes `inputs` [batch, ...] and gives the named outputs of `prediction.predict`. Pruned
    kernels in float32 or float16 are stored sparse where that is smaller, see `sparsify`; those in few bits are multiplied as
    they are, see `recipes`. `export` runs the file against TensorFlow.

    Args:
      predictor: with dense kernels, rounded where they are to be of few bits.
      float16: stores all weights in half the bytes; computed is in float32 all the same.
      precision: of the weights, by the layer's name.
      representative: examples [n, ...] by the input's name, which settle the ranges of activations.
      batch: the size of batches; None for any.

    Raises:
      ExportError: the extra `formats` is missing, or LiteRT lacks an operation.
    """
    require("litert", "ai_edge_litert")
    few = {name: storage for name, storage in (precision or {}).items() if bits_of(storage)}
    halves = {storage for storage in (precision or {}).values()} == {"float16"}
    with hushed():
        content = _converted(predictor, float16 or halves, batch)
        # What was quantized holds its numbers beside the tables that `sparsify` writes anew.
        return quantized(content, few, representative, predictor.ends, batch) if few else sparsify(content)


def _converted(predictor: Predictor, float16: bool, batch: int | None) -> bytes:
    function = predictor.for_batches_of(batch).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], predictor)
    # Nothing else: TensorFlow's own operations would need a runtime of 100 MB with TensorFlow in it.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        return converter.convert()
    except Exception as error:
        raise _explained(error, predictor) from error


def _explained(error: Exception, predictor: Predictor) -> ExportError:
    """The converter's pages of text as one line."""
    lacking = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.MULTILINE)
    if lacking:
        return refusal("LiteRT", [name for names in lacking for name in names.split(", ")], predictor)
    if re.search(_LOOPS, str(error)):
        return ExportError(
            f"LiteRT's converter needs a fixed batch size and sequence length for a layer that loops over its steps, such as a ConvLSTM or a "
            f"recurrent layer of more than {MOST_STEPS} steps: give batch=N and inputs of a fixed length, or use the "
            "format 'savedmodel'"
        )
    return failure("LiteRT's converter", error, predictor.predictive)


def _write(
    predictor: Predictor,
    path: Path,
    precision: Mapping[str, Storage],
    representative: Mapping[str, np.ndarray] | None,
    batch: int | None,
) -> None:
    write_atomically(path, to_litert(predictor, precision=precision, representative=representative, batch=batch))


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
        precisions=("float32", "float16", "int8", "int4"),
        payload=lambda predictor, path: constants(path.read_bytes()),
        batch=True,
        pixel_columns=True,
        unrolls=True,
        lacks=("softsign",),
    )
)
