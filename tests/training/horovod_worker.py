"""One of two workers, in three starts that each end in the death or the error of one: what is told apart needs no start of its own.

Started by `horovodrun`; arguments: a folder, and which start, 1 to 3. Each rank writes what it found as one JSON object, before
the end that is wanted: in the first start an error of rank 0, in the second its death while a checkpoint is written, in the
third the death of rank 1 in the middle of an epoch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tfp_bprune as bp
from tests.training.endings import Interrupt, commanded, die_after, die_in_third_checkpoint
from tests.training.horovod_gradients import compare
from tfp_bprune._keras import tf
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import load
from tfp_bprune.graphs.shrink import units
from tfp_bprune.layers import noise, variational_layers
from tfp_bprune.networks import build
from tfp_bprune.training import Horovod, Settings, fit
from tfp_bprune.types import Json

TRAIN = ["train", "--hidden", "16", "--epochs", "2", "--validation-fraction", "0.2", "--out"]
LONG = ["train", "--hidden", "16", "--epochs", "30", "--out"]


def trained(workers: Any, out: Path, prior: str | None = None, **options: Any) -> Json:
    """What this rank sees after a training of four epochs."""
    import horovod.tensorflow as hvd

    data = load("digits", batch_size=100)
    model = build("mlp", data.info, layers="flipout", options={"hidden": (16,)}, prior=prior)
    settings = Settings(epochs=4, learning_rate=0.01)
    fit(model, data, settings=settings, out=out, distributor=workers, progress=False, **options)
    different = 0
    # What a layer notes of its last KL is of its own noise; nothing depends on it.
    for weight in (w for w in model.weights if "last_kl" not in w.name):
        everyone = hvd.allgather(tf.reshape(tf.cast(weight, tf.float64), [1, -1])).numpy()
        different += not (everyone == everyone[:1]).all()
    draw = next(variational_layers(model)).kernel_posterior.sample(noise.seed_pair(1, 0, "layer"))
    draws = hvd.allgather(draw[None]).numpy()
    result = {"rank": workers.rank, "workers": workers.size, "different": different, "units": units(model)}
    return result | {"equal_draws": float(np.mean(draws[0] == draws[1]))}


def shrunk(workers: Any, out: Path) -> Json:
    """The same of a network whose units leave after the first epoch and the second."""
    pruning = bp.GradualPruning(0.6, granularity="unit", over=(0.1, 0.5), every=1)
    return trained(workers, out, prior="ard", callbacks=[pruning, bp.Shrink()])


def first(workers: Any, folder: Path) -> Json:
    """Gradients; a training that nothing interrupts; one that ends early; the command."""
    found = {"gradients": compare(workers), "whole": trained(workers, folder / "whole")}
    found["shrunk"] = shrunk(workers, folder / "shrunk")
    with contextlib.suppress(InterruptedError):
        trained(workers, folder / "interrupted", callbacks=[Interrupt()])
    return found | {"command": commanded(*TRAIN, folder / "command")}


def second(workers: Any, folder: Path) -> Json:
    """What was ended early goes on, and the command is given once more."""
    found = {"continued": trained(workers, folder / "interrupted", resume=True)}
    return found | {"command": commanded(*TRAIN, folder / "command", "--resume")}


def third(workers: Any, folder: Path) -> Json:
    """What was killed goes on."""
    return {"continued": trained(workers, folder / "killed", resume=True)}


def end(start: int, workers: Any, folder: Path) -> int:
    """The last thing that a start does, of which it does not come back whole."""
    if start == 1:
        return main([*TRAIN, str(folder / "foreign")])
    if start == 2:
        if workers.rank == 0:
            die_in_third_checkpoint()
        trained(workers, folder / "killed")
        return 0
    if workers.rank == 1:
        die_after(folder / "long")
    return main([*LONG, str(folder / "long")])


def start(folder: Path, number: int) -> int:
    """Does what belongs to a start, writes what came of it, and ends as it has to."""
    workers = Horovod()
    found = (first, second, third)[number - 1](workers, folder)
    (folder / f"{number}-{workers.rank}.json").write_text(json.dumps(found))
    return end(number, workers, folder)


if __name__ == "__main__":
    sys.exit(start(Path(sys.argv[1]), int(sys.argv[2])))
