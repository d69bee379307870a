"""One process or many behind one small protocol; many means Horovod, through its Keras callbacks, or `strategy`."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.graphs.slots import optimizer_variables
from tfp_bprune.layers import noise
from tfp_bprune.storage import store
from tfp_bprune.training.workers import AverageMetrics, SameMasks
from tfp_bprune.types import Compression, Distribution, Json, TrainingError

Result = TypeVar("Result")


@dataclass
class Committed:
    """Where an attempt at training starts from.

    Attributes:
      arrays: weights and optimizer state as `callbacks.checkpoint` gives them; None at the beginning.
      rows: the history up to there.
      architecture: what the model was then; None where it does not change.
    """

    arrays: dict[str, np.ndarray] | None = None
    rows: list[Json] = field(default_factory=list)
    architecture: Json | None = None

    def commit(self, arrays: dict[str, np.ndarray], rows: list[Json], architecture: Json | None = None) -> None:
        """Makes this the place to go back to."""
        self.arrays, self.rows, self.architecture = arrays, list(rows), architecture


@dataclass(frozen=True)
class Begun:
    """Where a training begins: the history so far, and the states of callbacks as `training.states` names them.

    Attributes:
      architecture: what the model is there, which every worker's has to become; None where it does not change.
    """

    rows: list[Json]
    states: dict[str, np.ndarray] = field(default_factory=dict)
    architecture: Json | None = None


class Distributor(Protocol):
    """What training asks of the way it is spread over processes."""

    rank: int
    size: int
    replicas: int
    """How many of the `size` copies of the network are trained in this process."""
    attempts_again: bool
    """Whether training is attempted again from the last commit when workers change."""

    def shard(self, data: Splits) -> Splits:
        """The data as this worker sees it."""

    def wrap(self, optimizer: Any) -> Any:
        """The optimizer with gradients averaged over workers."""

    def start(self, model: Any, begun: Begun) -> Begun:
        """Gives every worker the state of the first, model and optimizer, and returns where the first begins."""

    def training(self, model: Any, compiled: Callable[[Any], Any]) -> contextlib.AbstractContextManager[Any]:
        """The model that is trained in the place of `model`, compiled by `compiled` if it is another one."""

    def spread(self, data: Splits, part: Callable[[Splits], Any]) -> Any:
        """What `part` gives of this worker's data, as the model that is trained takes it."""

    def callbacks(self, data: Splits) -> list[Any]:
        """Keras callbacks that keep workers in step; `data` is this worker's."""

    def launch(self, attempt: Callable[[Committed], Result]) -> Result:
        """Calls `attempt` until it returns: once, unless workers may come and go."""


class OneModel:
    """What trains the model that it is given, one in each process."""

    replicas = 1

    @contextlib.contextmanager
    def training(self, model: Any, compiled: Callable[[Any], Any]) -> Iterator[Any]:
        """The model itself."""
        yield model

    def spread(self, data: Splits, part: Callable[[Splits], Any]) -> Any:
        """The batches as they are."""
        return part(data)


class OneProcess(OneModel):
    """Training in this process alone."""

    rank, size, attempts_again = 0, 1, False

    def shard(self, data: Splits) -> Splits:
        """The data, whole."""
        return data

    def wrap(self, optimizer: Any) -> Any:
        """The optimizer as it is."""
        return optimizer

    def start(self, model: Any, begun: Begun) -> Begun:
        """Where it begins, as it is."""
        return begun

    def callbacks(self, data: Splits) -> list[Any]:
        """None are needed."""
        return []

    def launch(self, attempt: Callable[[Committed], Result]) -> Result:
        """Calls `attempt` once."""
        return attempt(Committed())


class Horovod(OneModel):
    """Training on all workers that `horovodrun` started (Sergeev and Del Balso 2018, arXiv 1802.05799).

    Gradients and metrics are averaged over the workers, all start from the state of rank 0, and each draws its own noise.

    Args:
      compression: "fp16" sends gradients in half precision; "none" by default.

    Raises:
      TrainingError: Horovod is not installed; the compression is unknown; or there are GPUs and TensorFlow uses them already.

    Example:
      bp.fit(model, data, distributor=bp.Horovod())
    """

    attempts_again = False

    def __init__(self, *, compression: Compression = "none") -> None:
        if compression not in ("none", "fp16"):
            raise TrainingError(f"compression must be 'none' or 'fp16', got {compression!r}")
        try:
            self._keras = importlib.import_module("horovod.tensorflow.keras")
            self._hvd = importlib.import_module("horovod.tensorflow")
        except ImportError as error:
            raise TrainingError(
                "several workers need Horovod: install it with the extra, tfp-bprune[horovod], on Python 3.11"
            ) from error
        self._compression = getattr(self._hvd.Compression, compression)
        self._use_keras_2()
        self._hvd.init()
        self._take_one_gpu()
        self._join()

    def _take_one_gpu(self) -> None:
        """Of several GPUs of a host each worker sees the one of its local rank."""
        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            return
        try:
            tf.config.set_visible_devices(gpus[self._hvd.local_rank() % len(gpus)], "GPU")
        except RuntimeError as error:
            raise TrainingError(
                "TensorFlow has started already: make Horovod() before anything else of it runs"
            ) from error

    def _join(self) -> None:
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
        """The optimizer behind a ring all-reduce of the gradients, which averages them."""
        # On CPUs nothing is free to exchange the first gradients while the last are computed: all go together.
        groups = 0 if tf.config.list_physical_devices("GPU") else 1
        return self._keras.DistributedOptimizer(optimizer, compression=self._compression, num_groups=groups)

    def start(self, model: Any, begun: Begun) -> Begun:
        """The first worker's state and history: it alone reads the run that is resumed.

        Horovod's callback broadcasts after the first batch, too late for a resumed run: the others would have taken
        that batch with fresh weights, and begun at the first epoch again.
        """
        state = (begun.rows, begun.states, begun.architecture)
        begun = Begun(*self._hvd.broadcast_object(state, root_rank=0))
        store.become(model, begun.architecture)
        rate = getattr(model.optimizer, "rate_state", [])
        self._hvd.broadcast_variables([*model.weights, *optimizer_variables(model), *rate], root_rank=0)
        return begun

    def callbacks(self, data: Splits) -> list[Any]:
        """Metrics averaged over examples, masks compared."""
        return [AverageMetrics(self._sum, data), SameMasks(self._hvd.allgather_object)]

    def launch(self, attempt: Callable[[Committed], Result]) -> Result:
        """Calls `attempt` once."""
        return attempt(Committed())

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum over workers."""
        return np.asarray(self._hvd.allreduce(values, op=self._hvd.Sum))


class ElasticHorovod(Horovod):
    """`Horovod` whose workers may be killed and may join while training goes on.

    Under `horovodrun --min-np ...`. The state is committed in each worker's memory at the end of every epoch. When one
    is lost, the others go back to the last commit, share the data anew and go on.
    """

    attempts_again = True

    def launch(self, attempt: Callable[[Committed], Result]) -> Result:
        """Calls `attempt` again, from the last commit, each time the workers have changed."""
        elastic = importlib.import_module("horovod.tensorflow.elastic")
        common = importlib.import_module("horovod.common.elastic")
        exceptions = importlib.import_module("horovod.common.exceptions")
        state = common.ObjectState(bcast_object=self._hvd.broadcast_object, get_rank=self._hvd.rank, rows=[])
        committed = _ElasticallyCommitted(state)

        def entered(state: Any) -> Result:
            self._join()
            committed.rows = list(state.rows)
            try:
                return attempt(committed)
            except tf.errors.UnknownError as error:
                # Horovod's own wrapper knows only some of its operations, and takes an error of others for the end.
                if "Horovod" in str(error):
                    raise exceptions.HorovodInternalError(str(error)) from error
                raise

        return elastic.run(entered)(state)


class _ElasticallyCommitted(Committed):
    """Arrays in this worker's memory, rows in Horovod's state, which new workers receive."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self._state = state

    def commit(self, arrays: dict[str, np.ndarray], rows: list[Json], architecture: Json | None = None) -> None:
        """As of any; and raises Horovod's interrupt, on all workers, where hosts were added or removed."""
        super().commit(arrays, rows, architecture)
        self._state.rows = list(rows)
        self._state.commit()


def detect(compression: Compression = "none", distribution: Distribution | None = None) -> Distributor:
    """The engine that is named; by default `ElasticHorovod` or `Horovod` under `horovodrun`, else `OneProcess`.

    Raises:
      TrainingError: an engine of tf.distribute under `horovodrun`, or with a compression.
    """
    if distribution is None:
        if os.environ.get("HOROVOD_ELASTIC") == "1":
            return ElasticHorovod(compression=compression)
        return Horovod(compression=compression) if "HOROVOD_RANK" in os.environ else OneProcess()
    if "HOROVOD_RANK" in os.environ:
        raise TrainingError(
            f"horovodrun started this process, which cannot be distributed as {distribution!r} too: leave one out"
        )
    if compression != "none":
        raise TrainingError(
            f"compression {compression!r} is Horovod's: leave it out with distribution {distribution!r}"
        )
    from tfp_bprune.training.strategy import Strategy  # which is a distributor of this module's

    return Strategy(distribution)


def distribute(optimizer: Any, *, compression: Compression = "none") -> Any:
    """Wraps `optimizer` for `model.compile`: gradients are averaged over the workers that `horovodrun` started.

    Args:
      optimizer: a Keras optimizer.
      compression: as in `Horovod`.

    Raises:
      TrainingError: as in `Horovod`.
    """
    return Horovod(compression=compression).wrap(optimizer)


def distributed_callbacks(data: Splits, *, learning_rate: float | None = None, warmup_epochs: int = 5) -> list[Any]:
    """The callbacks that your own `model.fit(data.train, callbacks=...)` needs besides `distribute`.

    They start all workers from the state of rank 0, average metrics over examples, and compare masks. If `learning_rate` is
    given, they also warm it up, from the rate of one worker (Goyal et al. 2017, arXiv 1706.02677).

    Args:
      data: the part of this worker, `Horovod().shard(data)`.
      learning_rate: the rate of all workers together, which the optimizer was given.
      warmup_epochs: epochs that the warm-up lasts.

    Raises:
      TrainingError: as in `Horovod`.
    """
    workers = Horovod()
    theirs = workers._keras.callbacks
    callbacks = [theirs.BroadcastGlobalVariablesCallback(0), *workers.callbacks(data)]
    if learning_rate is not None:
        callbacks.append(theirs.LearningRateWarmupCallback(learning_rate, warmup_epochs=warmup_epochs))
    return callbacks
