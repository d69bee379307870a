"""Runs what `form.py` wrote, on NumPy alone; this file imports nothing of the package."""

from collections.abc import Callable
from itertools import groupby

import numpy as np


def load(path: str, threads: int) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """From arrays by the input's name to named outputs; NumPy decides its threads itself."""
    stored = dict(np.load(path))
    names = groupby(sorted(stored), lambda name: name.split("/")[0])
    layers = [{name.split("/")[1]: stored[name] for name in group} for _, group in names]

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        [x] = inputs.values()
        for layer in layers:
            if "scale" in layer:
                x = (x * layer["scale"] + layer["offset"]).astype(np.float32)
            else:
                x = x.reshape(len(x), -1) @ layer["kernel"] + layer["bias"]
                x = np.maximum(x, 0) if layer["relu"] else x
        e = np.exp(x - x.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        return {"probabilities": p, "entropy": -(p * np.log(np.maximum(p, 1e-38))).sum(-1)}

    return run
