"""Runs a SavedModel, or any other file that it reads, in OpenVINO; this file stands alone."""

from collections.abc import Callable
from typing import Any

import openvino

_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}  # some processors would else compute in bfloat16


def load(path: str, threads: int) -> Callable[[Any], Any]:
    """From arrays by the input's name to named outputs."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", {**_SETTINGS, "INFERENCE_NUM_THREADS": threads})
    names = [port.get_any_name() for port in compiled.outputs]
    return lambda inputs: dict(zip(names, compiled(inputs).to_tuple(), strict=True))
