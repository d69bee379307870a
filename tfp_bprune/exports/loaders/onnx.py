"""Runs an ONNX file in ONNX Runtime; this file stands alone."""

from collections.abc import Callable
from typing import Any

import onnxruntime


def load(path: str, threads: int) -> Callable[[Any], Any]:
    """From arrays by the input's name to named outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads would else spin for a while and take the cores from the model that has its turn next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))
