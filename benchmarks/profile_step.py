"""Where the time of a training step goes: 784-500-500-10, batch 100, by kind of operation, as a picture.

    python benchmarks/profile_step.py

Traced by `tf.profiler` on one core, where the times of operations add up to the step's. From top to bottom: a network of
tfp.layers with the scale mixture as `MixtureSameFamily`, the two estimators of this package, and the plain network.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import measure
import networks
import train_step

from tfp_bprune._keras import keras, tf

BATCH, STEPS = 100, 100
KINDS = {
    "products": ("MatMul",),
    "random numbers": ("Random", "Stateless"),
    "optimizer": ("Apply",),
    "one pass by XLA": ("XlaLaunch", "XlaCompileOnDemand", "fusion", "call", "multiply"),
}


def milliseconds(step: measure.Step) -> dict[str, float]:
    """Milliseconds a step by kind of operation; "element-wise" is what is left of the operations."""
    for _ in range(10):
        step()
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=2, python_tracer_level=0)
        tf.profiler.experimental.start(folder, options)
        for _ in range(STEPS):
            step()
        tf.profiler.experimental.stop()
        [trace] = Path(folder).rglob("*.xplane.pb")
        return _sums(trace.read_bytes())


def _sums(trace: bytes) -> dict[str, float]:
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space, sums = xplane_pb2.XSpace(), Counter[str]()
    space.ParseFromString(trace)
    for plane in (p for p in space.planes if "CPU" in p.name):
        for event in (e for line in plane.lines for e in line.events):
            name = plane.event_metadata[event.metadata_id].name
            kind = _kind(name)
            if kind:
                sums[kind] += event.duration_ps / 1e9 / STEPS
    return dict(sums)


def _kind(name: str) -> str | None:
    """The kind of an event; None for what is no operation but contains some."""
    compiled = "/" not in name and name.split(".")[0] in KINDS["one pass by XLA"][2:]
    if compiled:
        return "one pass by XLA"
    if "/" not in name or ":" not in name or name.split(":")[-1] in ("PartitionedCall", "StatefulPartitionedCall"):
        return None
    operation = name.split(":")[-1]
    if name.startswith("Adam/") or "/Adam/" in name:
        return "optimizer"
    return next((kind for kind, parts in KINDS.items() if any(part in operation for part in parts)), "element-wise")


def steps() -> dict[str, measure.Step]:
    """The steps to look into."""
    models = {"tfp.layers Flipout, mixture": train_step.tfp_networks()["tfp_flipout_mixture"]}
    models |= {layers: networks.network("mlp", layers, 1) for layers in ("flipout", "local")}
    models["plain"] = networks.network("mlp", "deterministic", 1)
    adam = ("tfp.layers Flipout, mixture", "plain")
    return {
        name: measure.training_step(
            model, (28, 28, 1), BATCH, optimizer=keras.optimizers.Adam(1e-4) if name in adam else None
        )
        for name, model in models.items()
    }


def figure(rows: list[dict[str, Any]]) -> Any:
    """A stacked bar for each network."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.2), layout="constrained")
    axes = made.subplots()
    left = [0.0] * len(rows)
    kinds = ["products", "optimizer", "random numbers", "one pass by XLA", "element-wise"]
    for kind, colour in zip(kinds, ("#0072b2", "#56b4e9", "#e69f00", "#009e73", "#cc79a7"), strict=True):
        widths = [row["ms"].get(kind, 0.0) for row in rows]
        axes.barh([row["variant"] for row in rows], widths, left=left, label=kind, color=colour)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, total in enumerate(left):
        axes.text(total, i, f" {total:.1f}", va="center")
    axes.invert_yaxis()
    axes.set_xlabel(f"ms of operations a training step on one core (784-500-500-10, batch {BATCH})")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return made


def main() -> None:
    """Traces, writes and draws."""
    arguments = measure.parser(__doc__, "profile").parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before TensorFlow starts its threads
    rows = [{"variant": name, "ms": milliseconds(step)} for name, step in steps().items()]
    measure.write(rows, arguments.json)
    if arguments.json != "-":
        measure.draw(figure(rows), Path(arguments.json).with_suffix(".png"))


if __name__ == "__main__":
    main()
