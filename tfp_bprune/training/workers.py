"""Keras callbacks that keep several workers in step: metrics of all examples, and one mask for all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.layers import variational_layers
from tfp_bprune.types import Json, TrainingError


class AverageMetrics(keras.callbacks.Callback):
    """Replaces each metric of an epoch by that of all workers' examples together.

    Workers see numbers of examples that may differ, so each weighs as many as it saw: an average of averages would not be
    the metric of the whole.

    Args:
      sum_over_workers: of an array.
      data: this worker's.
    """

    def __init__(self, sum_over_workers: Callable[[np.ndarray], np.ndarray], data: Splits) -> None:
        super().__init__()
        self._sum, self._data = sum_over_workers, data

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Changes `logs`, which the callbacks after this one read."""
        if not logs:
            return
        names = sorted(logs)
        seen = np.array([self._data.seen("valid" if name.startswith("val_") else "train") for name in names], float)
        sums = self._sum(np.stack([seen * [float(logs[name]) for name in names], seen]))
        logs.update(zip(names, (sums[0] / sums[1]).tolist(), strict=True))


class SameMasks(keras.callbacks.Callback):
    """Compares what is pruned between workers: when training begins, after each epoch, and whenever masks change.

    Args:
      gather: gives the list of what each worker passes to it.

    Raises:
      TrainingError: from within `model.fit`, where masks differ.
    """

    def __init__(self, gather: Callable[[Any], list[Any]]) -> None:
        super().__init__()
        self._gather, self._seen = gather, 0

    def share(self, decision: Any) -> Any:
        """What rank 0 decided, for callbacks that change the network of every worker alike."""
        return self._gather(decision)[0]

    def on_train_begin(self, logs: Json | None = None) -> None:
        """Compares."""
        self._compare()

    def on_train_batch_end(self, batch: int, logs: Json | None = None) -> None:
        """Compares, if pruning has changed a mask."""
        if self._changes() != self._seen:
            self._compare()

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Compares."""
        self._compare()

    def _changes(self) -> int:
        return sum(q.changes for layer in variational_layers(self.model) for q in layer.posteriors.values())

    def _compare(self) -> None:
        self._seen = self._changes()
        digests = self._gather(mask_digest(self.model))
        different = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
        if different:
            raise TrainingError(
                f"the masks of rank {', '.join(different)} differ from rank 0's: prune every worker's model alike"
            )


class SameStatistics(keras.callbacks.Callback):
    """Gives all replicas of tf.distribute the mean of their moving averages, before each validation and checkpoint.

    Batch normalization keeps them by replica: validated and stored is then one network, from which a resumed run goes on alike.

    Args:
      strategy: in whose scope the model is.
    """

    def __init__(self, strategy: Any) -> None:
        super().__init__()
        self._strategy = strategy

    def set_model(self, model: Any) -> None:
        """Keras's hook; finds what there is to average."""
        super().set_model(model)
        own = {id(v) for layer in variational_layers(model) for v in (layer.noise_step, layer.last_kl)}
        self._kept = [
            v
            for v in model.non_trainable_weights
            if v.synchronization == tf.VariableSynchronization.ON_READ and v.dtype.is_floating and id(v) not in own
        ]
        self._means = tf.function(self._mean, autograph=False)

    def _mean(self) -> list[Any]:
        values = self._strategy.run(lambda: [v.read_value() for v in self._kept])
        return [self._strategy.reduce("MEAN", one, axis=None) for one in values]

    def on_test_begin(self, logs: Json | None = None) -> None:
        """Averages."""
        self.on_epoch_end(0)

    def on_epoch_end(self, epoch: int, logs: Json | None = None) -> None:
        """Averages, as far as layers keep any."""
        for variable, mean in zip(self._kept, self._means() if self._kept else (), strict=True):
            variable.assign(mean)


def mask_digest(model: Any) -> str:
    """SHA-256 of which weights are pruned: the masks of Bayesian layers, the zeros of other kernels."""
    posteriors = [q for layer in variational_layers(model) for q in layer.posteriors.values()]
    owned = {id(variable) for q in posteriors for variable in q.variables.values()}
    masks = {q.mask.name: q.mask.numpy() for q in posteriors}
    kernels = (w for w in model.trainable_weights if len(w.shape) > 1 and id(w) not in owned)
    digest = hashlib.sha256()
    for name, mask in sorted((masks | {w.name: w.numpy() != 0 for w in kernels}).items()):
        digest.update(f"{name} {mask.shape} ".encode() + np.packbits(mask).tobytes())
    return digest.hexdigest()
