"""One process of a training by tf.distribute: two replicas of its own, or one of the two workers that TF_CONFIG names.

Arguments: "mirrored" or "multiworker", a folder, and which start, 1 or 2. Each rank writes what it found as one JSON object. The
first start of workers ends in the death of rank 0 while a checkpoint is written, the second in that of rank 1 within an epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import tfp_bprune as bp
from tests.training.endings import Interrupt, commanded, die_after, die_in_third_checkpoint
from tfp_bprune._keras import keras, tf
from tfp_bprune.cli.main import main
from tfp_bprune.layers import noise, variational_layers
from tfp_bprune.types import BpruneError, Json

TRAIN = [
    "train",
    "--hidden",
    "16",
    "--epochs",
    "2",
    "--validation-fraction",
    "0.2",
    "--distribute",
    "multiworker",
    "--out",
]
LONG = ["train", "--hidden", "16", "--epochs", "30", "--distribute", "multiworker", "--out"]


def network(data: Any) -> Any:
    """Bayesian, with a batch normalization, whose statistics each replica has for itself."""
    keras.backend.clear_session()  # which has the layers named alike
    start = keras.initializers.GlorotUniform(seed=1)
    plain = keras.Sequential([keras.Input(data.info.input_shape), keras.layers.Flatten()])
    plain.add(keras.layers.Dense(1100, kernel_initializer=start))  # large enough to be compiled
    plain.add(keras.layers.BatchNormalization())
    plain.add(keras.layers.ReLU())
    plain.add(keras.layers.Dense(10, kernel_initializer=start, name="logits"))
    return bp.bayesianize(plain, seed=1)


class Digests(keras.callbacks.Callback):
    """The hash of each weight, but for what a layer notes of its last KL, on each replica of this process."""

    def on_train_end(self, logs: Any = None) -> None:
        """Takes them."""
        self.found: list[list[str]] = []
        for weight in (w for w in self.model.weights if "last_kl" not in w.name):
            values = tf.distribute.get_strategy().experimental_local_results(weight)
            self.found.append([hashlib.sha256(np.asarray(value).tobytes()).hexdigest() for value in values])


def trained(workers: Any, out: Path, epochs: int = 4, **options: Any) -> Json:
    """What this rank sees after a training."""
    data, digests = bp.load("digits", batch_size=100), Digests()
    callbacks = [*options.pop("callbacks", ()), bp.GradualPruning(0.5, every=2), digests]
    model = network(data)
    settings = bp.Settings(epochs=epochs, learning_rate=0.01)
    rows = bp.fit(
        model, data, settings=settings, out=out, distributor=workers, progress=False, callbacks=callbacks, **options
    )
    assert all(isinstance(weight, tf.Variable) and not hasattr(weight, "values") for weight in model.weights)
    q = next(variational_layers(model)).kernel_posterior

    def draw() -> Any:
        return noise.normal([8], noise.seed_pair(1, 0, "layer"))

    draws = tf.function(lambda: workers.strategy.run(draw), autograph=False)()
    draws = [one.numpy().tolist() for one in workers.strategy.experimental_local_results(draws)]
    kept = int(np.count_nonzero(q.mask.numpy()))
    return {"digests": digests.found, "draws": draws, "kept": kept, "rows": rows, "size": workers.size}


def beside_one_process(workers: Any, accumulate: int = 1) -> Json:
    """The means that two replicas come to, and those of one process on batches twice as large, without noise.

    Where the replicas `accumulate` batches, those of the one process are so many times larger again.
    """
    found, digests = [], Digests()
    for batch, parts, distributor in ((25, accumulate, workers), (50 * accumulate, 1, None)):
        data = bp.load("digits", batch_size=batch)  # 1,294 examples: odd global batches among them
        model = bp.build("mlp", data.info, layers="flipout", options={"hidden": (16,)})
        for layer in variational_layers(model):
            layer.kernel_posterior.rho_variable.assign(tf.fill(layer.kernel_posterior.shape, -60.0))
        settings = bp.Settings(epochs=2, kl="constant", accumulate=parts)
        more: Any = {"optimizer": "sgd", "distributor": distributor, "callbacks": [digests] if distributor else []}
        rows = bp.fit(model, data, settings=settings, progress=False, **more)
        locs = [layer.kernel_posterior.loc.numpy() for layer in variational_layers(model)]
        found.append((locs, rows[-1]))
    (ours, row), (theirs, alone) = found
    names = ("loss", "nll", "accuracy", "val_loss", "val_nll", "val_accuracy")
    return {
        "difference": max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)),
        "moved": max(float(np.abs(a).max()) for a in ours),
        "rows": [[one[name] for name in names] for one in (row, alone)],
        "digests": digests.found,
    }


def refused(call: Any) -> str:
    """What it is refused with."""
    try:
        call()
    except BpruneError as error:
        return str(error)
    return ""


def first(workers: Any, folder: Path) -> Json:
    """Gradients; a training that nothing interrupts; one that ends early; what is refused."""
    found = {"beside": beside_one_process(workers), "parts": beside_one_process(workers, accumulate=2)}
    found["whole"] = trained(workers, folder / "whole")
    with contextlib.suppress(InterruptedError):
        trained(workers, folder / "interrupted", callbacks=[Interrupt()])
    found["shrink"] = refused(lambda: trained(workers, folder / "shrunk", callbacks=[bp.Shrink()]))
    return found | {"continued": trained(workers, folder / "interrupted", resume=True)}


def second(workers: Any, folder: Path) -> Json:
    """What was killed goes on, and the command trains."""
    found = {"continued": trained(workers, folder / "killed", resume=True)}
    return found | {"command": commanded(*TRAIN, folder / "command")}


def end(kind: str, number: int, workers: Any, folder: Path) -> int:
    """The last thing that a start of workers does, of which it does not come back whole."""
    if kind == "mirrored":
        return 0
    if number == 1:
        if workers.rank == 0:
            die_in_third_checkpoint()
        trained(workers, folder / "killed")
    if workers.rank == 1:
        die_after(folder / "long")
    return main([*LONG, str(folder / "long")])


def start(kind: str, folder: Path, number: int) -> int:
    """Does what belongs to a start, writes what came of it, and ends as it has to."""
    if kind == "mirrored":
        [cpu] = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    workers = bp.Strategy(kind)
    found = (first, second)[number - 1](workers, folder)
    (folder / f"{number}-{workers.rank}.json").write_text(json.dumps(found))
    return end(kind, number, workers, folder)


if __name__ == "__main__":
    sys.exit(start(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
