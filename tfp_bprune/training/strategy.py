"""`tf.distribute`: replicas in one process or in several, each a copy of the network in step with the others."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import tensors_from, tensors_to_bytes
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.graphs.slots import optimizer_variables
from tfp_bprune.storage import store
from tfp_bprune.training.callbacks import checkpoint, restore
from tfp_bprune.training.distribute import Begun, Distributor, OneProcess
from tfp_bprune.training.states import PREFIX
from tfp_bprune.training.workers import SameMasks, SameStatistics
from tfp_bprune.types import TrainingError

_TASKS = ("chief", "worker")
_MADE: dict[Any, Any] = {}  # strategies of this process, by what tells them apart


class Strategy(OneProcess):
    """Training under `tf.distribute`: on all GPUs of a host, or on all workers that `TF_CONFIG` names.

    The loss, the shares of the data and the noise of each replica are those of Horovod's workers. `fit` trains a copy of the
    model whose variables are in the strategy's scope, and copies weights and the optimizer's state back at the end.

    Args:
      name: "mirrored" or "multiworker" for a strategy with its default settings; or a `MirroredStrategy` or
        `MultiWorkerMirroredStrategy` of your own. With several workers, create it before TensorFlow does anything else.

    Attributes:
      rank: number of this process in the job; rank 0 writes.
      size: number of replicas in the job.
      replicas: number of them in this process.

    Raises:
      TrainingError: it is another kind of strategy, or `TF_CONFIG` does not name the workers.

    Example:
      bp.fit(model, data, distributor=bp.Strategy("mirrored"))
    """

    def __init__(self, name: Any = "mirrored") -> None:
        self.strategy = _made(name) if isinstance(name, str) else name
        known = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
        if not isinstance(self.strategy, known):
            raise TrainingError(
                f"distributor is a {type(name).__name__}: expected a MirroredStrategy or MultiWorkerMirroredStrategy of "
                "tf.distribute, 'mirrored', 'multiworker', or Horovod()"
            )
        self.strategy = _first_like(self.strategy)
        self.size = self.strategy.num_replicas_in_sync
        self.replicas = len(self.strategy.extended.worker_devices)
        self.rank = _rank_in_cluster(self.strategy.cluster_resolver)

    @property
    def _first(self) -> int:
        return self.rank * self.replicas

    @property
    def _alone(self) -> bool:
        return self.size == self.replicas

    def shard(self, data: Splits) -> Splits:
        """The data as the first replica of this process sees it."""
        return data.shard(self._first, self.size) if self.size > 1 else data

    def wrap(self, optimizer: Any) -> Any:
        """Another of the same kind: each has to be made where its variables are to be. Keras adds up the gradients."""
        return type(optimizer).from_config(optimizer.get_config())

    def spread(self, data: Splits, part: Callable[[Splits], Any]) -> Any:
        """The batches of this process's replicas in turn, without an end."""
        if self.size == 1:
            return part(data)

        def of_process(_: Any) -> Any:
            datasets = [part(replica).repeat() for replica in data.replicas(self.replicas)]
            turns = tf.data.Dataset.range(len(datasets)).repeat()
            made = datasets[0] if len(datasets) == 1 else tf.data.Dataset.choose_from_datasets(datasets, turns)
            return made.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))

        return self.strategy.distribute_datasets_from_function(of_process)

    @contextlib.contextmanager
    def training(self, model: Any, compiled: Callable[[Any], Any]) -> Iterator[Any]:
        """A copy of `model` in the strategy's scope, which gives back what it has learned."""
        own = _state(model)  # read and written outside of the scope, where its variables are
        begun, learned = [one.numpy() for one in own], []
        # Of a model that was made in a scope, maybe another one, nothing can be read in this.
        source = (
            model if model._distribution_strategy is None else rebuild(model, lambda _: None, lambda old, new: None)
        )
        try:
            with self.strategy.scope():
                with tf.variable_creator_scope(_of_first):
                    copy = rebuild(source, lambda layer: None, lambda old, new: None)
                compiled(copy)
                trained = _state(copy)
                _assign(trained, begun)
                try:
                    yield copy
                finally:
                    learned = [one.numpy() for one in trained]
        finally:
            if learned:
                _assign(own, learned)

    def start(self, model: Any, begun: Begun) -> Begun:
        """The first worker's state and history; it alone reads the run that is resumed."""
        if self._alone:
            return begun
        rows, arrays = self._from_first(begun.rows, checkpoint(model) | begun.states)
        states = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
        store.set_weights(model, {name: array for name, array in arrays.items() if name not in states})
        restore(model, arrays)
        return Begun(rows, states)

    def callbacks(self, data: Splits) -> list[Any]:
        """Batch normalization's statistics averaged, masks compared; metrics are sums over replicas by themselves."""
        return [SameStatistics(self.strategy), *([] if self._alone else [SameMasks(self._gather)])]

    def _from_first(self, words: Any, arrays: dict[str, np.ndarray]) -> tuple[Any, dict[str, np.ndarray]]:
        """What the first worker has of both."""
        contents = [json.dumps(words).encode(), tensors_to_bytes(arrays)]
        said, stored = (self._bytes_of_first(content) for content in contents)
        return json.loads(said), tensors_from(stored, "the state of rank 0")

    def _bytes_of_first(self, content: bytes) -> bytes:
        count = len(content) if self.rank == 0 else 0
        total = int(self._sum(np.array([count], np.int64))[0])
        padded = np.zeros(-(-total // 4) * 4, np.uint8)
        padded[:count] = np.frombuffer(content[:count], np.uint8)
        return self._sum(padded.view(np.int32)).tobytes()[:total]

    def _gather(self, text: str) -> list[str]:
        """What each worker passes: texts of one length."""
        rows = np.zeros((self.size // self.replicas, len(text)), np.int32)
        rows[self.rank] = np.frombuffer(text.encode(), np.uint8)
        return [bytes(row.astype(np.uint8)).decode() for row in self._sum(rows)]

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Elementwise sum over workers."""
        mine, none = tf.constant(values), tf.zeros_like(values)
        of_each = self.strategy.experimental_distribute_values_from_function(
            lambda context: mine if context.replica_id_in_sync_group == self._first else none
        )
        return np.asarray(self.strategy.reduce("SUM", of_each, axis=None))


def _made(name: str) -> Any:
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name != "multiworker":
        raise TrainingError(f"distributor is {name!r}: expected 'mirrored' or 'multiworker'")
    _check_cluster(os.environ.get("TF_CONFIG"))
    return _of_cluster()


def _first_like(strategy: Any) -> Any:
    """The first strategy of this process of the same devices: TensorFlow takes the exchanges of a second for those of the first."""
    exchange = type(getattr(strategy.extended, "_cross_device_ops", None))
    return _MADE.setdefault((type(strategy), tuple(strategy.extended.worker_devices), exchange), strategy)


@cache
def _of_cluster() -> Any:
    """The one of this process: TensorFlow joins a cluster once."""
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise TrainingError(
            "TensorFlow has started already: make Strategy('multiworker') before anything else of it runs"
        ) from error


def _check_cluster(config: str | None) -> None:
    """Refuses a `TF_CONFIG` of which TensorFlow would make one worker alone, or nothing.

    Raises:
      TrainingError: saying what is missing.
    """
    expected = (
        'expected TF_CONFIG=\'{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}\''
    )
    try:
        said = json.loads(config or "null")
        task, places = said["task"], said["cluster"]
        addresses = places[task["type"]]
        known = all(isinstance(one, list) and one and all(isinstance(a, str) for a in one) for one in places.values())
        if not known or not set(places) <= set(_TASKS) or not 0 <= int(task["index"]) < len(addresses):
            raise ValueError(task)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainingError(f"several workers of tf.distribute need to know each other: {expected}") from error


def _rank_in_cluster(resolver: Any) -> int:
    """Of this process: the chief is the first, where there is one."""
    if resolver is None or not resolver.cluster_spec().jobs:
        return 0
    chief = "chief" in resolver.cluster_spec().jobs
    return 0 if resolver.task_type == "chief" else int(resolver.task_id) + chief


def _of_first(create: Callable[..., Any], **options: Any) -> Any:
    """Variables of which each replica has its own are read as the first's: reading them then asks no other worker."""
    if options.get("synchronization") == tf.VariableSynchronization.ON_READ:
        options["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return create(**options)


def _state(model: Any) -> list[Any]:
    """All variables that training goes on from."""
    return [*model.weights, *optimizer_variables(model), *getattr(model.optimizer, "rate_state", [])]


def _assign(variables: list[Any], values: list[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def distributor_of(given: Any) -> Distributor:
    """What `fit` trains by: as it is given, a strategy of tf.distribute as a `Strategy`, one process where there is none."""
    if given is None:
        return OneProcess()
    made = Strategy(given) if isinstance(given, str | tf.distribute.Strategy) else given
    if not hasattr(made, "launch"):
        raise TrainingError(
            f"distributor is a {type(given).__name__}: expected a strategy of tf.distribute, 'mirrored', 'multiworker', or Horovod()"
        )
    return made


def scope_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The scope of the strategy of tf.distribute in which `model` was made, where Keras wants it compiled too."""
    strategy = model._distribution_strategy
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def check_scope(model: Any, distributor: Distributor) -> None:
    """Refuses what would train by a strategy of tf.distribute that `fit` was not given.

    Raises:
      TrainingError: `fit` is called in the scope of one, or the model was made in one and is to be trained without.
    """
    if tf.distribute.has_strategy():
        name = type(tf.distribute.get_strategy()).__name__
        raise TrainingError(f"fit was called in the scope of a {name}: call it outside, with distributor=strategy")
    made = model._distribution_strategy
    if made is not None and not isinstance(distributor, Strategy):
        raise TrainingError(
            f"model {model.name!r} was made in the scope of a {type(made).__name__}: expected distributor=strategy, or a model "
            "made outside of it"
        )
