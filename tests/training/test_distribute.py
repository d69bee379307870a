"""What workers are told and asked, with a Horovod of the test's own: who they are, what they share, and what N is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits, from_arrays
from tfp_bprune.graphs.slots import optimizer_variables
from tfp_bprune.layers import noise, variational_layers
from tfp_bprune.training.distribute import Begun, Horovod
from tfp_bprune.training.fit import Settings, compile_model, fit
from tfp_bprune.training.workers import AverageMetrics, SameMasks, mask_digest
from tfp_bprune.types import TrainingError

RANK, SIZE = 1, 3


@pytest.fixture
def data() -> Splits:
    """A hundred training examples of three classes, in batches of 8 a worker."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(110, 4)), np.arange(110) % 3
    return from_arrays((x, y), (x[:9], y[:9]), batch_size=8, validation_fraction=10 / 110)


@pytest.fixture
def model() -> Any:
    """A Bayesian layer before a plain one."""
    hidden = keras.layers.Dense(5, activation="relu", name="hidden")
    plain = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3, name="logits")])
    return bp.bayesianize(plain, exclude=["logits"], train_size=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A Horovod of which this process is the second of three workers, and which keeps what it was given."""
    kept = SimpleNamespace(variables=[], root=None, op=None)

    def broadcast(variables: Any, root_rank: int) -> None:
        kept.variables, kept.root = list(variables), root_rank

    def reduced(values: Any, op: str) -> Any:
        kept.op = op
        return values

    functions: dict[str, Any] = {
        "init": lambda: None, "rank": lambda: RANK, "size": lambda: SIZE, "local_rank": lambda: RANK, "allreduce": reduced,
        "broadcast_object": lambda value, root_rank: value, "broadcast_variables": broadcast, "allgather_object": None,
        "Compression": SimpleNamespace(none="none", fp16="fp16"), "Sum": "sum", "Average": "average",
    }  # fmt: skip
    for name in ("horovod", "horovod.tensorflow", "horovod.tensorflow.keras", "horovod.tensorflow.keras.callbacks"):
        module = ModuleType(name)
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, name, module)
    yield kept
    noise.set_rank(0)


def test_a_worker_has_noise_and_examples_of_its_own(asked: SimpleNamespace, data: Splits) -> None:
    mine = noise.seed_pair(1, "layer").numpy().tolist()
    workers = Horovod()
    assert (workers.rank, workers.size) == (RANK, SIZE)
    assert noise.seed_pair(1, "layer").numpy().tolist() != mine
    assert (workers.shard(data).rank, workers.shard(data).workers) == (RANK, SIZE)


def test_numbers_are_summed_over_workers_and_the_state_is_the_firsts(
    asked: SimpleNamespace, data: Splits, model: Any
) -> None:
    workers = Horovod()
    compile_model(model, data, settings=Settings(epochs=1))
    workers.start(model, Begun([]))
    wanted = [*model.weights, *optimizer_variables(model), *model.optimizer.rate_state]
    assert {id(v) for v in wanted} <= {id(v) for v in asked.variables}
    assert asked.root == 0
    np.testing.assert_array_equal(workers._sum(np.arange(3.0)), np.arange(3.0))
    assert asked.op == "sum"


def test_n_and_the_rate_are_of_the_whole_job(data: Splits, model: Any) -> None:
    distributor: Any = SimpleNamespace(size=4, wrap=lambda optimizer: optimizer)
    settings = Settings(epochs=7, learning_rate=0.01, scaling="root", scaling_warmup=2)
    mine = data.shard(1, 4)
    assert mine.seen("train") < mine.train_size == 100
    compile_model(model, mine, settings=settings, distributor=distributor)
    assert [layer.train_size for layer in variational_layers(model)] == [100]
    rate = model.optimizer._hyper["learning_rate"].get_config()
    assert rate == {"initial": 0.01, "steps": 7 * mine.steps, "scale": 2.0, "warmup": 2 * mine.steps}


@pytest.mark.parametrize("kl", ["constant", "warmup"])
def test_the_kl_counts_as_much_as_is_asked(kl: Any, data: Splits, model: Any) -> None:
    fit(model, data, settings=Settings(epochs=1, kl=kl, kl_weight=0.25), progress=False)
    [layer] = variational_layers(model)
    assert float(layer.kl_schedule) == 0.25


def test_metrics_are_of_all_workers_examples(data: Splits) -> None:
    first, second = (data.shard(rank, 2) for rank in range(2))
    seen = [first.seen("train"), second.seen("train")]
    parts: list[np.ndarray] = []

    def summed(part: np.ndarray) -> np.ndarray:
        parts.append(part)
        return np.sum(parts, 0)

    logs: list[dict[str, float]] = [{"loss": 1.0, "val_loss": 4.0}, {"loss": 3.0, "val_loss": 7.0}]
    uneven = [SimpleNamespace(seen=lambda name, n=n: n if name == "train" else 5) for n in (30, 10)]
    for one, mine in zip(logs, uneven, strict=True):
        AverageMetrics(summed, mine).on_epoch_end(0, one)  # type: ignore[arg-type]
    assert sum(seen) == data.train_size
    assert logs[1] == {"loss": pytest.approx((30 * 1 + 10 * 3) / 40), "val_loss": pytest.approx(5.5)}


def test_masks_that_differ_end_the_training_at_the_step_that_changed_them(model: Any) -> None:
    theirs, gathered = mask_digest(model), []

    def gather(digest: str) -> list[str]:
        gathered.append(digest)
        return [theirs, digest]

    callback = SameMasks(gather)
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_train_batch_end(0)
    assert len(gathered) == 1  # no mask has changed
    [layer] = variational_layers(model)
    posterior = layer.posteriors["kernel"]
    posterior.keep_only(np.arange(20).reshape(4, 5) != 7)
    with pytest.raises(TrainingError, match="the masks of rank 1 differ"):
        callback.on_train_batch_end(1)


def test_zeros_of_plain_kernels_are_masks_too(model: Any) -> None:
    before, kernel = mask_digest(model), model.get_layer("logits").kernel
    kernel.assign(2 * kernel)
    assert mask_digest(model) == before
    kernel.assign(np.where(np.arange(15).reshape(5, 3) == 4, 0, kernel))
    assert mask_digest(model) != before
