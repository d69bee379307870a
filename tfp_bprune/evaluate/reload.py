"""Loads SavedModels where nothing but TensorFlow is imported; run as a script, in a process of its own.

Argument: a JSON file with `models` (folders), `inputs` (.npy), `outputs` (one .npz a model), `batches`, `rounds`.
Prints one JSON object: for each model its latency in ms by batch size, the median over rounds, models interleaved.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf

_CHUNK = 1000


def main(request_file: str) -> None:
    """Predicts all inputs with every model, then times them side by side."""
    with open(request_file) as file:
        request = json.load(file)
    loaded = [tf.saved_model.load(folder) for folder in request["models"]]  # kept: they own the variables
    signatures = [model.signatures["serving_default"] for model in loaded]
    x = np.load(request["inputs"])
    for signature, target in zip(signatures, request["outputs"], strict=True):
        np.savez(target, **predict(signature, x))
    latencies: list[dict[str, dict[str, float]]] = [{} for _ in signatures]
    for batch in request["batches"]:
        for result, times in zip(latencies, timed(signatures, repeated(x, batch), request["rounds"]), strict=True):
            result[str(batch)] = {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))}
    print(json.dumps({"latency_ms": latencies}))


def predict(signature: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs for `x`, in chunks."""
    parts = [signature(inputs=tf.constant(x[i : i + _CHUNK])) for i in range(0, len(x), _CHUNK)]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def repeated(x: np.ndarray, batch: int) -> Any:
    """A batch of the wanted size, of real examples."""
    return tf.constant(x[np.arange(batch) % len(x)])


def timed(signatures: list[Any], inputs: Any, rounds: int) -> list[list[float]]:
    """Milliseconds of each call: rounds in which every model has its turn, after a warm-up."""
    times: list[list[float]] = [[] for _ in signatures]
    for round_number in range(-3, rounds):
        for signature, record in zip(signatures, times, strict=True):
            start = time.perf_counter()
            for value in signature(inputs=inputs).values():
                value.numpy()
            if round_number >= 0:
                record.append(1e3 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    main(sys.argv[1])
