"""Loads exports where nothing but their runtime is imported; run as a script, in a process of its own.

Argument: a JSON file with `models` (each a `loader`, which is a Python file, its `runtime`, a `path` and `inputs`: by name, the
key of an array and the type that it is read as; where a file takes batches of one size, this `batch`, and `batches`, a Python
file that makes it take any), `inputs` (.npz), `outputs` (one .npz a model), `batches`, `rounds`, `threads`;
`limits` with `seconds` and `bytes`, or none; `for`, the process that waits, with which this one ends.
Prints one JSON object: for each model its latency in ms by batch size, the median over rounds, models interleaved.

With `serve` in it, it answers batches from standard input by its one model until an empty one comes: each a length of
eight bytes and so many bytes of .npz, as each answer is.
"""

import ctypes
import importlib.util
import io
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

_CHUNK, _PR_SET_PDEATHSIG = 1000, 1
_LENGTH = 8  # bytes that say how many follow
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


def served(about: dict[str, Any], threads: int) -> Served:
    """A model of the request, by the loader of its form."""
    module = module_at(about["loader"])
    prepare, run = getattr(module, "prepare", dict), module.load(about["path"], threads)
    if "batch" in about:
        return Served(dict, module_at(about["batches"]).in_batches(lambda x: run(prepare(x)), about["batch"]))
    return Served(prepare, run)


def module_at(path: str) -> Any:
    """A Python file that stands alone."""
    spec = importlib.util.spec_from_file_location("_loader", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(request_file: str) -> None:
    """Predicts all inputs with every model, then times them side by side."""
    with open(request_file) as file:
        request = json.load(file)
    if request.get("serve"):  # which ends with its input
        serve(request)
        return
    end_with(request["for"])
    arrays = dict(np.load(request["inputs"]))
    for name in {model["runtime"] for model in request["models"]}:
        importlib.import_module(name)  # which takes long itself, and is not the writer's choice
    limits = Limits(request["limits"])
    models = [served(model, request["threads"]) for model in request["models"]]
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


def serve(request: dict[str, Any]) -> None:
    """Answers batch after batch, in the memory that one takes."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a runtime prints is no answer
    [about] = request["models"]
    importlib.import_module(about["runtime"])
    limits = Limits(request["limits"])
    model, first = served(about, request["threads"]), True
    while size := int.from_bytes(sys.stdin.buffer.read(_LENGTH), "little"):
        x = read(dict(np.load(io.BytesIO(sys.stdin.buffer.read(size)))), about["inputs"])
        if first:
            limits.loosen(lambda: predict(model, repeated(x, 1)))  # noqa: B023
            first = False
        limits.next(len(next(iter(x.values()))))
        content = io.BytesIO()
        np.savez(content, **predict(model, x))
        answers.write(len(content.getvalue()).to_bytes(_LENGTH, "little") + content.getvalue())
        answers.flush()


def end_with(process: int) -> None:
    """On Linux, has this process end with the one that waits for its answer, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            os.kill(process, 0)
        except ProcessLookupError:  # it ended before this was asked for
            os._exit(1)


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

    A turn is two calls, of which the second counts: the first finds another model's weights in the caches and another
    runtime's threads at work, which a server of one model does not. The order changes from round to round.
    """
    times: list[list[float]] = [[] for _ in models]
    inputs = [model.prepare(x) for model, x in zip(models, batches, strict=True)]
    orders = np.random.default_rng(0)
    for round_number in range(-3, rounds):
        for index in orders.permutation(len(models)):
            models[index].run(inputs[index])
            start = time.perf_counter()
            models[index].run(inputs[index])
            if round_number >= 0:
                times[index].append(1e3 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main(sys.argv[1])
