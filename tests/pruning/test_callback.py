"""Pruning while training: the schedule is met, and what is gone stays gone through Adam's momentum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune import Settings, fit, load, prune
from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers import DenseFlipout, set_train_size
from tfp_bprune.networks import build
from tfp_bprune.pruning import GradualPruning, KeepPruned, polynomial, remove_dead
from tfp_bprune.pruning.masks import sparsity_of
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.types import PruneError


def tiny(layers: Any) -> tuple[Any, Any]:
    """Digits and a small network with these layers."""
    data = load("digits")
    return data, build("mlp", data.info, layers=layers, options={"hidden": (16,)})


@pytest.mark.parametrize(("layers", "criterion"), [("flipout", "snr"), ("deterministic", "magnitude")])
def test_gradual_pruning_ends_at_the_final_sparsity(layers: Any, criterion: Any) -> None:
    data, model = tiny(layers)
    schedule = polynomial(0.8, 0, data.steps)
    callback = GradualPruning(schedule, steps_per_epoch=data.steps, every=5, criterion=criterion)
    fit(model, data, settings=Settings(epochs=2), callbacks=[callback], progress=False)
    _, report = prune(model, sparsity=0.0, criterion=criterion)  # removes nothing, counts what is gone
    assert abs(report.sparsity - 0.8) < 1e-3


def test_a_sparsity_alone_is_reached_over_the_whole_training() -> None:
    data, model = tiny("flipout")
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(prune(self.model, sparsity=0.0)[1].sparsity)

    fit(model, data, settings=Settings(epochs=8), callbacks=[GradualPruning(0.9), Watch()], progress=False)
    assert seen[0] == 0  # the first fifth prunes nothing
    assert 0 < seen[3] < seen[5]
    assert abs(seen[5] - 0.9) < 1e-3
    assert seen[5] == seen[7]  # nor does the last quarter


def test_a_sparsity_out_of_range_is_refused() -> None:
    with pytest.raises(PruneError, match=r"sparsity must be in \[0, 1\), got 1.0"):
        GradualPruning(1.0)


def test_retraining_keeps_plain_weights_pruned() -> None:
    data, model = tiny("deterministic")
    fit(model, data, settings=Settings(epochs=1), progress=False)
    pruned, _ = prune(model, sparsity=0.7, criterion="magnitude")
    before = pruned.get_layer("dense_1").kernel.numpy()
    fit(pruned, data, settings=Settings(epochs=2), callbacks=[KeepPruned()], progress=False)
    after = pruned.get_layer("dense_1").kernel.numpy()
    np.testing.assert_array_equal(after[before == 0], 0)
    varies = (
        data.examples("train").x.reshape(data.train_size, -1).std(0) > 0
    )  # a border that is always blank trains nothing
    left = (before != 0) & varies[:, None]
    assert (after[left] != before[left]).mean() > 0.9  # the others did train


X, Y = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32), np.arange(200) % 4
STEPS = 10  # batches of 20


def compiled(execution: int | None = None, kind: Any = DenseFlipout, hidden: tuple[int, ...] = (12,)) -> Any:
    layers = [kind(units, activation="relu", name=f"hidden_{i}") for i, units in enumerate(hidden)]
    model = keras.Sequential([keras.Input((16,)), *layers, kind(4, name="logits")])
    set_train_size(model, len(X))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.legacy.Adam(1e-2), loss, steps_per_execution=execution)
    return model


def sparsity(model: Any, criterion: Any = None) -> float:
    weights = prunable_weights(model, criterion or "snr")
    return sparsity_of({name: w.mask for name, w in weights.items()})


class At(keras.callbacks.Callback):
    """Steps done, and the sparsity, at the end of each execution."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append((int(self.model.optimizer.iterations), sparsity(self.model)))


@pytest.mark.parametrize("execution", [1, 3, 4, 7, 10])
def test_several_steps_an_execution_prune_when_every_is_reached(execution: int) -> None:
    model, at = compiled(execution), At()
    pruning = GradualPruning(polynomial(0.6, 0, 12), every=6)
    model.fit(X, Y, 20, epochs=2, callbacks=[pruning, at], verbose=0)
    ends = [start + min(execution * (i + 1), STEPS) for start in (0, STEPS) for i in range(-(-STEPS // execution))]
    assert [step for step, _ in at.seen] == ends
    due = [after for before, after in zip([0, *ends], ends, strict=False) if after // 6 > before // 6]
    expected = 0.0
    for step, found in at.seen:
        expected = polynomial(0.6, 0, 12)(step) if step in due else expected
        assert abs(found - expected) < 5e-3
    assert abs(sparsity(model) - 0.6) < 1e-3


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("final", [0.3, 0.7, 0.95])
def test_dead_weights_count_toward_the_schedule(final: float, scope: Any) -> None:
    model = compiled(hidden=(30, 3))
    middle = model.get_layer("hidden_1").kernel_posterior  # a bottleneck that goes first, and what is before it with it
    middle.loc_variable.assign(middle.loc_variable * 1e-3)
    model.fit(X, Y, 20, callbacks=[GradualPruning(polynomial(final, 0, 1), every=1, scope=scope)], verbose=0)
    size = 16 * 30 + 30 * 3 + 3 * 4
    assert abs(sparsity(model) - final) <= max(5e-3, 1 / size)
    assert remove_dead(model) == 0


def test_the_final_sparsity_is_reached_though_training_is_shorter() -> None:
    for schedule in (polynomial(0.6, 5, 1000), polynomial(0.6, 4, 9)):  # beyond the end; between two prunings
        model = compiled()
        pruning = GradualPruning(schedule, every=6)
        with pytest.warns(UserWarning, match=r"training ended at step 10 .* without training afterwards"):
            model.fit(X, Y, 20, callbacks=[pruning], verbose=0)
        assert abs(sparsity(model) - 0.6) < 1e-3
        assert pruning.sparsity == sparsity(model)


def test_a_schedule_of_ones_own_ends_with_its_last_step() -> None:
    model = compiled()
    with pytest.warns(UserWarning, match="without training afterwards"):
        model.fit(X, Y, 20, callbacks=[GradualPruning(lambda step: step / 20, every=7)], verbose=0)
    assert abs(sparsity(model) - 0.5) < 1e-3


@pytest.mark.parametrize("epochs", [2, 8])  # at one step an execution: Keras wants to know the length for more
def test_the_length_of_an_epoch_is_learned(epochs: int) -> None:
    data = tf.data.Dataset.from_generator(
        lambda: ((X[i : i + 20], Y[i : i + 20]) for i in range(0, 200, 20)),
        output_signature=(tf.TensorSpec((None, 16)), tf.TensorSpec((None,), tf.int64)),
    )
    model, at = compiled(), At()
    model.fit(data, epochs=epochs, callbacks=[GradualPruning(0.7), at], verbose=0)
    assert all(found == 0 for step, found in at.seen if step <= STEPS)
    reached = next(step for step, found in at.seen if found > 0.699)
    assert reached <= round(0.9 * epochs * STEPS)
    assert abs(sparsity(model) - 0.7) < 1e-3


def test_an_unknown_length_is_asked_for_where_it_cannot_be_learned() -> None:
    def batches() -> Any:
        while True:
            yield X[:20], Y[:20]

    data = tf.data.Dataset.from_generator(
        batches, output_signature=(tf.TensorSpec((None, 16)), tf.TensorSpec((None,), tf.int64))
    )
    with pytest.raises(PruneError, match=r"how many batches an epoch has.*give steps_per_epoch"):
        compiled().fit(data.take(10), callbacks=[GradualPruning(0.7)], verbose=0)
    with pytest.raises(PruneError, match=r"how many batches an epoch has.*give steps_per_epoch"):
        compiled().fit(data.take(10), epochs=3, initial_epoch=1, callbacks=[GradualPruning(0.7)], verbose=0)
    model = compiled()
    model.fit(batches(), steps_per_epoch=10, epochs=2, callbacks=[GradualPruning(0.7)], verbose=0)
    assert abs(sparsity(model) - 0.7) < 1e-3


@pytest.mark.parametrize("execution", [3, 10])
def test_plain_weights_stay_pruned_at_the_end_of_each_execution(execution: int) -> None:
    model = compiled(execution, keras.layers.Dense)
    model.fit(X, Y, 20, verbose=0)  # momentum
    kernel = model.get_layer("hidden_0").kernel
    gone = np.random.default_rng(0).random(kernel.shape) < 0.5
    kernel.assign(np.where(gone, 0, kernel))
    seen: list[int] = []
    watch = keras.callbacks.LambdaCallback(
        on_batch_end=lambda batch, logs: seen.append(int(np.count_nonzero(kernel.numpy()[gone])))
    )
    model.fit(X, Y, 20, epochs=2, callbacks=[KeepPruned(), watch], verbose=0)
    assert len(seen) >= 2
    assert not any(seen)


def test_raw_tfp_layers_are_refused_before_training() -> None:
    model = keras.Sequential([keras.Input((16,)), tfp.layers.DenseFlipout(4, name="raw")])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(PruneError, match=r"layer 'raw' is of raw tfp.layers.*adopt"):
        model.fit(X, Y, callbacks=[GradualPruning(0.5)], verbose=0)
