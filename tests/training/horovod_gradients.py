"""What two workers compare: their gradients with those of one process on the union of their batches, and their masks.

Noise is switched off by scales that underflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import load
from tfp_bprune.layers import set_train_size, variational_layers
from tfp_bprune.networks import build
from tfp_bprune.pruning import prune
from tfp_bprune.training import Horovod, Settings, distribute, distributed_callbacks, fit
from tfp_bprune.training.loss import negative_log_likelihood
from tfp_bprune.training.workers import SameMasks
from tfp_bprune.types import Json, TrainingError


def gradients(model: Any, batch: Any, tape: Any = None) -> tuple[list[np.ndarray], float]:
    """Gradients of the loss on a batch, and the KL's share of it."""
    x, y, *weight = batch
    with tf.GradientTape() as plain:
        kl = None
        outputs = model(x, training=True)
        kl = tf.add_n(model.losses)
        loss = negative_log_likelihood("classification")(y, outputs, *weight) + kl
    found = (tape(plain) if tape else plain).gradient(loss, model.trainable_variables)
    return [g.numpy() for g in found], float(kl)


def in_parts(workers: Horovod) -> Json:
    """The means of two workers that take two batches in a step, and of one process on batches four times as large."""
    import horovod.tensorflow as hvd

    found, steps = [], []
    for batch, parts, distributor in ((25, 2, workers), (100, 1, None)):
        data = load("digits", batch_size=batch)
        model = build("mlp", data.info, layers="flipout", options={"hidden": (16,)})
        for layer in variational_layers(model):
            layer.kernel_posterior.rho_variable.assign(tf.fill(layer.kernel_posterior.shape, -60.0))
        settings = Settings(epochs=2, kl="constant", accumulate=parts)
        rows = fit(model, data, settings=settings, optimizer="sgd", distributor=distributor, progress=False)
        found.append([layer.kernel_posterior.loc.numpy() for layer in variational_layers(model)])
        steps.append([int(model.optimizer.iterations.numpy()), rows[-1]["loss"], rows[-1]["accuracy"]])
    everyone = [hvd.allgather(loc[None]).numpy() for loc in found[0]]
    return {
        "difference": max(float(np.abs(a - b).max()) for a, b in zip(*found, strict=True)),
        "moved": max(float(np.abs(loc).max()) for loc in found[0]),
        "equal": all((one == one[:1]).all() for one in everyone),
        "rows": steps,
    }


def compare(workers: Horovod) -> Json:
    """What this rank found."""
    import horovod.tensorflow as hvd

    data = load("digits", batch_size=25)  # 1,294 examples: odd global batches among them
    mine = workers.shard(data)
    model = build("mlp", data.info, layers="flipout", options={"hidden": (16,)})
    set_train_size(model, data.train_size)
    for layer in variational_layers(model):
        layer.kernel_posterior.rho_variable.assign(tf.fill(layer.kernel_posterior.shape, -60.0))
    sizes, worst = set(), 0.0
    for batch in mine.epochs().take(12):
        averaged, kl = gradients(model, batch, hvd.DistributedGradientTape)
        parts = [hvd.allgather(part).numpy() for part in batch[:2]]
        sizes.add(len(parts[0]))
        alone, kl_alone = gradients(model, parts)
        worst = max(
            worst, *(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(averaged, alone, strict=True))
        )
    result: Json = {"gradient": worst, "kl": [kl, kl_alone], "sizes": sorted(sizes), "parts": in_parts(workers)}

    model.compile(
        distribute(keras.optimizers.legacy.Adam(1e-3), compression="fp16"), negative_log_likelihood("classification")
    )
    model.fit(
        mine.train, epochs=2, callbacks=distributed_callbacks(mine, learning_rate=1e-3, warmup_epochs=1), verbose=0
    )
    everyone = hvd.allgather(model.trainable_weights[0][None]).numpy()
    result["equal"] = bool((everyone[0] == everyone[1]).all())

    pruned, _ = prune(model, sparsity=0.5)
    rows = fit(pruned, data, settings=Settings(epochs=2), distributor=workers, progress=False)
    q = next(variational_layers(pruned)).kernel_posterior
    result["kept"] = int(np.count_nonzero(q.mask.numpy()))
    result["accuracy"] = [rows[-1]["accuracy"], rows[-1]["val_accuracy"]]
    if workers.rank == 1:
        q.keep_only(q.mask.numpy() & (np.arange(16) > 2))
    masks = SameMasks(hvd.allgather_object)
    masks.set_model(pruned)
    try:
        masks.on_train_begin()
    except TrainingError as error:
        result["masks"] = str(error)
    return result
