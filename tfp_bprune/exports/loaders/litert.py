"""Runs a LiteRT file in its interpreter, whose memory follows the batch size; this file stands alone."""

from collections.abc import Callable
from typing import Any

from ai_edge_litert.interpreter import Interpreter


def load(path: str, threads: int) -> Callable[[Any], Any]:
    """From arrays by the input's name to named outputs."""
    interpreter = Interpreter(model_path=path, num_threads=threads)
    signature = interpreter.get_signature_runner("serving_default")
    sources = {name: details["index"] for name, details in signature.get_input_details().items()}
    targets = {name: details["index"] for name, details in signature.get_output_details().items()}
    shapes: dict[str, tuple[int, ...]] = {}

    def run(inputs: Any) -> Any:
        nonlocal shapes
        if shapes != (given := {name: x.shape for name, x in inputs.items()}):
            for name, shape in given.items():
                interpreter.resize_tensor_input(sources[name], shape)
            interpreter.allocate_tensors()
            shapes = given
        for name, x in inputs.items():
            interpreter.set_tensor(sources[name], x)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in targets.items()}

    return run
