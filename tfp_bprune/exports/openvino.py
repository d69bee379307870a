"""A SavedModel that OpenVINO reads: weights as variables of its checkpoint, nothing that is made ready at load."""

from __future__ import annotations

import re
from pathlib import Path

from tfp_bprune._keras import tf
from tfp_bprune.exports.converting import failure, hushed, refusal, require
from tfp_bprune.exports.forms import Form, register_form
from tfp_bprune.exports.savedmodel import VERSION, check_graph_file
from tfp_bprune.exports.warmup import SIGNATURE
from tfp_bprune.prediction.checks import explained
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import ExportError

EXTRA = "tfp-bprune[openvino]"


def to_openvino(predictor: Predictor, path: Path) -> None:
    """Writes a SavedModel with the signature `serving_default`, and reads it once in OpenVINO.

    OpenVINO takes variables from the checkpoint and runs no initializer. The usual SavedModel keeps pruned kernels packed and
    decodes them at load into variables of which the checkpoint knows nothing ("Cannot find requested variable").

    Args:
      predictor: with dense kernels and plain operations, as converters take it.
      path: the version folder.

    Raises:
      ExportError: the extra `openvino` is missing, or OpenVINO lacks an operation or fails.
    """
    require("openvino", "openvino", extra=EXTRA)
    import openvino

    with explained(predictor.network_name):
        tf.saved_model.save(predictor, str(path), signatures={SIGNATURE: predictor.predict})
    try:
        with hushed():
            openvino.Core().read_model(str(path))
    except Exception as error:
        raise _explained(error, predictor) from error


def _explained(error: Exception, predictor: Predictor) -> ExportError:
    """OpenVINO's report as one line."""
    lacking = re.findall(r"No conversion rule found for operations: (.*)$", str(error), re.MULTILINE)
    if lacking:
        return refusal("OpenVINO", lacking[0].split(", "), predictor)
    return failure("OpenVINO", error, predictor.predictive)


OPENVINO = register_form(
    Form(
        "openvino",
        VERSION,
        "openvino",
        to_openvino,
        Path(__file__).parent / "loaders" / "openvino.py",
        title="OpenVINO",
        extra=EXTRA,
        files=rf"{VERSION}/(saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d{{5}}-of-\d{{5}}))",
        needed=(f"{VERSION}/saved_model.pb", f"{VERSION}/variables/variables.index"),
        check=check_graph_file,
        payload=lambda predictor, path: predictor.payload,
    )
)
