"""A SavedModel: TensorFlow alone loads it, TensorFlow Serving serves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from tfp_bprune._keras import tf
from tfp_bprune.exports.forms import Form, register_form
from tfp_bprune.exports.operations import check_harmless
from tfp_bprune.exports.warmup import FILE, SIGNATURE, fixed, write_warmup
from tfp_bprune.prediction.checks import explained
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import Storage

VERSION = "1"  # the folder by which TensorFlow Serving tells versions apart


def to_savedmodel(
    predictor: Predictor, path: Path, precision: Mapping[str, Storage] | None = None, representative: None = None
) -> None:
    """Writes a SavedModel with the signature `serving_default` and requests that warm up TensorFlow Serving.

    Args:
      predictor: whose kernels are stored as its lowering says, in few bits too.
      path: the version folder.
      precision: what the lowering says already.
      representative: nothing is settled by examples; products are in float32.
    """
    name = predictor.network_name
    with explained(name):
        tf.saved_model.save(predictor, str(path), signatures={SIGNATURE: predictor.predict})
    write_warmup(path, name, fixed(predictor.predict, list(predictor.inputs.values())))


def check_graph_file(name: str, content: bytes, path: object) -> None:
    """`Form.check` of forms that are SavedModels: searches the graph."""
    if name == f"{VERSION}/saved_model.pb":
        check_harmless(content, path)


SAVED_MODEL = register_form(
    Form(
        "savedmodel",
        VERSION,
        "tensorflow",
        to_savedmodel,
        Path(__file__).parent / "loaders" / "savedmodel.py",
        title="SavedModel",
        float16=True,
        precisions=get_args(Storage),
        sparse=True,
        tolerance=None,
        files=rf"{VERSION}/(saved_model\.pb|fingerprint\.pb|variables/variables\.(index|data-\d{{5}}-of-\d{{5}})"
        rf"|{FILE.replace('.', '[.]')})",
        needed=(f"{VERSION}/saved_model.pb", f"{VERSION}/variables/variables.index"),
        check=check_graph_file,
        payload=lambda predictor, path: predictor.payload,
    )
)
