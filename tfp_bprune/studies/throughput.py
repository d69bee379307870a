"""Training throughput of one worker and of two, a core each, through Horovod.

    horovodrun -np 2 -H localhost:2 python -m tfp_bprune.studies.throughput '{"networks": ...}' OUT.json

Both workers run the same program: in turns the first trains alone while the second waits, then both train together.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.files.aside import scratch
from tfp_bprune.files.runs import read_json, write_json
from tfp_bprune.types import Json

_ROUNDS, _STEPS = 5, 4
_LAYERS = ("deterministic", "flipout")


def throughput_rows(networks: Sequence[str], width: float, batch: int) -> tuple[list[Json], str]:
    """Examples a second of one worker and of two, for each network Bayesian and plain; or none, and why."""
    starter = Path(sys.executable).with_name("horovodrun")
    if importlib.util.find_spec("horovod") is None or not starter.exists():
        return [], "Horovod is not installed"
    if len(os.sched_getaffinity(0)) < 2:
        return [], "there is one core alone"
    from tfp_bprune.studies.process import environment

    path = os.pathsep.join([str(starter.parent), os.environ.get("PATH", "")])
    with scratch() as folder:
        out = folder / "rows.json"
        request = json.dumps({"networks": list(networks), "width": width, "batch": batch})
        words = [str(starter), "-np", "2", "-H", "localhost:2", sys.executable, "-m", __spec__.name, request, str(out)]
        ended = subprocess.run(words, env=environment() | {"PATH": path}, capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            return read_json(out), ""
    last = [line for line in ended.stderr.splitlines() if line.strip()]
    return [], f"the two workers failed ({last[-1].strip() if last else f'code {ended.returncode}'})"


def main(request: Json, out: Path) -> None:
    """What each worker does; the first writes the rows."""
    rank = int(os.environ["HOROVOD_LOCAL_RANK"])
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})  # before TensorFlow starts its threads
    import horovod.tensorflow as hvd

    from tfp_bprune.training import Horovod

    distributor = Horovod()

    def took(call: Callable[[], Any], alone: bool) -> float:
        """Seconds a step, of the slower worker; with `alone` the second waits meanwhile."""
        hvd.allgather_object(None)
        begin = time.perf_counter()
        if not alone or rank == 0:
            for _ in range(_STEPS):
                call()
        return max(hvd.allgather_object((time.perf_counter() - begin) / _STEPS))

    rows = []
    for network in request["networks"]:
        for layers in _LAYERS:
            one = step_of(network, layers, request, lambda optimizer: optimizer)
            two = step_of(network, layers, request, distributor.wrap)
            turns = np.array([[took(one, True), took(two, False)] for _ in range(_ROUNDS)])
            alone, both = request["batch"] / np.median(turns, 0) * [1, 2]
            rows.append({"network": network, "layers": layers, "one": float(alone), "two": float(both)})
    if rank == 0:
        write_json(out, rows)


def step_of(network: str, layers: Any, request: Json, wrap: Callable[[Any], Any]) -> Callable[[], float]:
    """One training step on a batch of noise, traced and run twice already."""
    from tfp_bprune._keras import keras, tf
    from tfp_bprune.data.splits import Info
    from tfp_bprune.layers import set_train_size
    from tfp_bprune.networks import build

    info = Info("cifar10", "classification", (32, 32, 3), 10, 1 / 126, -1.0)
    model = build(network, info, layers=layers, options={"width": request["width"]})
    set_train_size(model, 45000)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(wrap(keras.optimizers.legacy.Adam(1e-4)), loss)
    random, size = np.random.default_rng(0), request["batch"]
    x = tf.constant(random.integers(0, 256, (size, *info.input_shape)), tf.float32)
    batches = iter(tf.data.Dataset.from_tensors((x, tf.constant(random.integers(0, 10, size)))).repeat())
    function = model.make_train_function()
    for _ in range(2):
        function(batches)
    return lambda: float(function(batches)["loss"])  # read, so that the step has really ended


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
