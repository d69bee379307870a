"""One of several workers: trains, then checks on every rank that the weights agree and the noise does not.

Started by `horovodrun`; arguments: a folder for runs, and "interrupt" or "continue" to stop within the third epoch or
to go on from there, or "killed" to be killed while the third checkpoint is written. Each rank prints one JSON object into its own file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import load
from tfp_bprune.layers import noise, variational_layers
from tfp_bprune.networks import build
from tfp_bprune.training import Horovod, Settings, fit


class Interrupt(keras.callbacks.Callback):
    """Ends training on all workers at the same batch."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Stops at the third epoch."""
        if epoch == 2:
            raise InterruptedError


def die_in_third_checkpoint() -> None:
    """From now on this process is killed where the third checkpoint would get its name, its content being written."""
    replace = os.replace

    def killed(source: Any, target: Any, **folders: Any) -> None:
        if str(target).endswith("epoch-00003.safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **folders)

    os.replace = killed


def main(folder: Path, mode: str) -> None:
    """Trains in `mode` and writes what this rank saw."""
    workers = Horovod()
    import horovod.tensorflow as hvd

    data = load("digits", batch_size=100)
    model = build("mlp", data.info, layers="flipout", options={"hidden": (16,)})
    settings = Settings(epochs=4, learning_rate=0.01)
    out = folder / ("parts" if mode != "whole" else "whole")
    stops = [Interrupt()] if mode == "interrupt" else []
    if mode == "killed" and workers.rank == 0:
        die_in_third_checkpoint()
    try:
        fit(
            model,
            data,
            settings=settings,
            out=out,
            resume=mode == "continue",
            callbacks=stops,
            distributor=workers,
            progress=False,
        )
    except InterruptedError:
        return
    different = 0
    # What a layer notes of its last KL is of its own noise; nothing depends on it.
    for weight in (w for w in model.weights if "last_kl" not in w.name):
        everyone = hvd.allgather(tf.reshape(tf.cast(weight, tf.float64), [1, -1])).numpy()
        different += not (everyone == everyone[:1]).all()
    draw = next(variational_layers(model)).kernel_posterior.sample(noise.seed_pair(1, 0, "layer"))
    draws = hvd.allgather(draw[None]).numpy()
    result = {"rank": workers.rank, "workers": workers.size, "different": different}
    result["equal_draws"] = float(np.mean(draws[0] == draws[1]))
    (folder / f"rank-{workers.rank}-{mode}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
