"""Loads exports where nothing but their runtime is imported; run as a script, in a process of its own.

Argument: a JSON file with `models` (each a `format`, a `path` and `inputs`: by name, the key of an array and the type that
it is read as), `inputs` (.npz), `outputs` (one .npz a model), `batches`, `rounds`, `threads`;
`limits` with `seconds` and `bytes`, or none.
Prints one JSON object: for each model its latency in ms by batch size, the median over rounds, models interleaved.
"""

import importlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_CHUNK = 1000
Inputs = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]


class Served(NamedTuple):
    """One loaded model.

    Attributes:
      prepare: a batch, arrays [batch, ...] by the input's name, as the runtime takes it; not timed.
      run: named outputs for a prepared batch.
    """

    prepare: Callable[[Inputs], Any]
    run: Callable[[Any], Outputs]


def saved_model(path: str, threads: int) -> Served:
    """A SavedModel in TensorFlow."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]

    def run(inputs: Any, _owner: Any = loaded) -> Outputs:  # kept: it owns the variables
        return {name: value.numpy() for name, value in signature(**inputs).items()}

    return Served(lambda batch: {name: tf.constant(x) for name, x in batch.items()}, run)


def onnx(path: str, threads: int) -> Served:
    """An ONNX file in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Idle threads would else spin for a while and take the cores from the model that has its turn next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return Served(dict, lambda batch: dict(zip(names, session.run(names, batch), strict=True)))


def litert(path: str, threads: int) -> Served:
    """A LiteRT file in its interpreter, whose memory follows the batch size."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    signature = interpreter.get_signature_runner("serving_default")
    sources = {name: details["index"] for name, details in signature.get_input_details().items()}
    targets = {name: details["index"] for name, details in signature.get_output_details().items()}
    shapes: dict[str, tuple[int, ...]] = {}

    def run(batch: Inputs) -> Outputs:
        nonlocal shapes
        if shapes != (given := {name: x.shape for name, x in batch.items()}):
            for name, shape in given.items():
                interpreter.resize_tensor_input(sources[name], shape)
            interpreter.allocate_tensors()
            shapes = given
        for name, x in batch.items():
            interpreter.set_tensor(sources[name], x)
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in targets.items()}

    return Served(dict, run)


RUNTIMES = {"savedmodel": "tensorflow", "onnx": "onnxruntime", "litert": "ai_edge_litert.interpreter"}
LOADERS: dict[str, Callable[[str, int], Served]] = {"savedmodel": saved_model, "onnx": onnx, "litert": litert}


def main(request_file: str) -> None:
    """Predicts all inputs with every model, then times them side by side."""
    with open(request_file) as file:
        request = json.load(file)
    arrays = dict(np.load(request["inputs"]))
    for name in {RUNTIMES[model["format"]] for model in request["models"]}:
        importlib.import_module(name)  # which takes long itself, and is not the writer's choice
    limits = Limits(request["limits"])
    models = [LOADERS[model["format"]](model["path"], request["threads"]) for model in request["models"]]
    inputs = [read(arrays, model["inputs"]) for model in request["models"]]
    limits.loosen(lambda: [predict(model, repeated(x, 1)) for model, x in zip(models, inputs, strict=True)])
    for model, x, target in zip(models, inputs, request["outputs"], strict=True):
        limits.next(len(next(iter(x.values()))))
        np.savez(target, **predict(model, x))
    latencies: list[dict[str, dict[str, float]]] = [{} for _ in models]
    for batch in request["batches"]:
        limits.next(batch * (request["rounds"] + 3))
        batches = [repeated(x, batch) for x in inputs]
        for result, times in zip(latencies, timed(models, batches, request["rounds"]), strict=True):
            result[str(batch)] = {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))}
    print(json.dumps({"latency_ms": latencies}))


class Limits:
    """Processor seconds and memory that loading and one example may take; the kernel ends this process at more.

    Args:
      limits: `seconds` and `bytes` beyond what this process has taken so far; none where it is trusted.
    """

    def __init__(self, limits: dict[str, float] | None) -> None:
        self._seconds, self._each = (limits or {}).get("seconds"), 0.0
        if limits is not None:
            self.next(0)
            with open("/proc/self/status") as file:
                [taken] = [int(line.split()[1]) << 10 for line in file if line.startswith("VmData:")]
            _lower(resource.RLIMIT_DATA, taken + int(limits["bytes"]))

    def loosen(self, answer_one: Callable[[], Any]) -> None:
        """One example is answered within the limits: what more of them take follows from it."""
        if self._seconds is not None:
            answer_one()
            begin = time.process_time()
            answer_one()
            self._each = time.process_time() - begin
            _lower(resource.RLIMIT_DATA, resource.RLIM_INFINITY)

    def next(self, examples: int) -> None:
        """Allows the time that so many examples may take."""
        if self._seconds is not None:
            _lower(resource.RLIMIT_CPU, math.ceil(time.process_time() + self._seconds + 4 * examples * self._each))


def _lower(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY or most < 0 else min(most, hard), hard))


def read(arrays: Inputs, inputs: dict[str, list[str]]) -> Inputs:
    """The inputs of one model, of the types that it takes."""
    kinds = {name: object if kind == "string" else kind for name, (_, kind) in inputs.items()}
    return {
        name: np.ascontiguousarray(arrays[key]).astype(kinds[name], copy=False) for name, (key, _) in inputs.items()
    }


def predict(model: Served, x: Inputs) -> Outputs:
    """All outputs for `x`, in chunks."""
    starts = range(0, len(next(iter(x.values()))), _CHUNK)
    parts = [model.run(model.prepare({name: one[i : i + _CHUNK] for name, one in x.items()})) for i in starts]
    for name, value in parts[0].items():
        if value.dtype.kind not in "fiub" or value.ndim == 0:
            raise SystemExit(
                f"its output {name} is {value.dtype} {list(value.shape)}: expected numbers for each example"
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def repeated(x: Inputs, batch: int) -> Inputs:
    """A batch of the wanted size, of real examples."""
    return {name: one[np.arange(batch) % len(one)] for name, one in x.items()}


def timed(models: list[Served], batches: list[Inputs], rounds: int) -> list[list[float]]:
    """Milliseconds of each call: rounds in which every model has its turn, after a warm-up.

    The order changes from round to round: a call takes longer after one of another runtime, which leaves its own code
    and data in the caches.
    """
    times: list[list[float]] = [[] for _ in models]
    inputs = [model.prepare(x) for model, x in zip(models, batches, strict=True)]
    orders = np.random.default_rng(0)
    for round_number in range(-3, rounds):
        for index in orders.permutation(len(models)):
            start = time.perf_counter()
            models[index].run(inputs[index])
            if round_number >= 0:
                times[index].append(1e3 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main(sys.argv[1])
