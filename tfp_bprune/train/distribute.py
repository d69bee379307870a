"""One process or many behind one small protocol; many means Horovod, through its Keras callbacks."""

from __future__ import annotations

import importlib
import os
from typing import Any, Protocol

from tfp_bprune._keras import keras
from tfp_bprune.data import Splits
from tfp_bprune.layers import noise
from tfp_bprune.train.callbacks import optimizer_variables
from tfp_bprune.types import TrainingError


class Distributor(Protocol):
    """What training asks of the way it is spread over processes."""

    rank: int
    size: int

    def shard(self, data: Splits) -> Splits:
        """The data as this worker sees it."""

    def wrap(self, optimizer: Any) -> Any:
        """The optimizer with gradients averaged over workers."""

    def start(self, model: Any, epoch: int) -> int:
        """Gives every worker the state of the first, model and optimizer, and returns the first's `epoch`."""

    def callbacks(self) -> list[Any]:
        """Keras callbacks that keep workers in step."""


class OneProcess:
    """Training in this process alone."""

    rank, size = 0, 1

    def shard(self, data: Splits) -> Splits:
        """The data, whole."""
        return data

    def wrap(self, optimizer: Any) -> Any:
        """The optimizer as it is."""
        return optimizer

    def start(self, model: Any, epoch: int) -> int:
        """`epoch`, as it is."""
        return epoch

    def callbacks(self) -> list[Any]:
        """None are needed."""
        return []


class Horovod:
    """Training on all workers that `horovodrun` started (Sergeev and Del Balso 2018, arXiv 1802.05799).

    Gradients and metrics are averaged; the initial state is rank 0's; each worker draws noise of its own.

    Raises:
      TrainingError: Horovod is not installed.
    """

    def __init__(self) -> None:
        try:
            self._hvd = importlib.import_module("horovod.tensorflow.keras")
        except ImportError as error:
            raise TrainingError(
                "several workers need Horovod: install it with the extra, tfp-bprune[horovod]"
            ) from error
        self._use_keras_2()
        self._hvd.init()
        self.rank, self.size = self._hvd.rank(), self._hvd.size()
        noise.set_rank(self.rank)

    @staticmethod
    def _use_keras_2() -> None:
        """Horovod takes Keras 3's backend by default, which lacks what its callbacks call."""
        for name in ("horovod.tensorflow.keras", "horovod.tensorflow.keras.callbacks"):
            importlib.import_module(name).K = keras.backend  # type: ignore[attr-defined]

    def shard(self, data: Splits) -> Splits:
        """This worker's part of every global batch."""
        return data.shard(self.rank, self.size)

    def wrap(self, optimizer: Any) -> Any:
        """The optimizer behind a ring all-reduce of the gradients."""
        return self._hvd.DistributedOptimizer(optimizer)

    def start(self, model: Any, epoch: int) -> int:
        """The first worker's state and epoch: it alone reads the run that is resumed.

        Horovod's callback broadcasts after the first batch, too late for a resumed run: the others would have taken
        that batch with fresh weights, and begun at the first epoch again.
        """
        hvd = importlib.import_module("horovod.tensorflow")
        hvd.broadcast_variables([*model.weights, *optimizer_variables(model)], root_rank=0)
        return int(hvd.broadcast_object(epoch, root_rank=0))

    def callbacks(self) -> list[Any]:
        """Initial state from rank 0, metrics averaged."""
        hvd_callbacks = self._hvd.callbacks
        return [hvd_callbacks.BroadcastGlobalVariablesCallback(0), hvd_callbacks.MetricAverageCallback()]


def detect() -> Distributor:
    """`Horovod` under `horovodrun`, else `OneProcess`."""
    return Horovod() if "HOROVOD_RANK" in os.environ else OneProcess()
