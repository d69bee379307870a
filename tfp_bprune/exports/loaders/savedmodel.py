"""Runs a SavedModel in TensorFlow; this file stands alone."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def load(path: str, threads: int) -> Callable[[Any], Any]:
    """From tensors by the input's name to named outputs."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]

    def run(inputs: Any, _owner: Any = loaded) -> Any:  # kept: it owns the variables
        return {name: value.numpy() for name, value in signature(**inputs).items()}

    return run


def prepare(inputs: Any) -> Any:
    """The arrays as tensors."""
    return {name: tf.constant(x) for name, x in inputs.items()}
