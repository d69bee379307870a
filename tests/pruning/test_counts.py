"""Sparsities that count multiplications: what each layer's weights cost, and units that have to be worth it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.graphs import compact
from tfp_bprune.graphs.products import multiplications
from tfp_bprune.layers import LAYERS, set_train_size
from tfp_bprune.pruning import groups, scores_of
from tfp_bprune.pruning.select import prunable_weights

K = keras.layers


def network(prior: Any = "ard") -> Any:
    """Filters at many positions, and units of a dense layer at one."""
    conv, dense = LAYERS["Conv2D", "reparameterization"], LAYERS["Dense", "reparameterization"]
    layers = [
        conv(6, 3, prior=prior, name="a"),  # 10 x 10
        K.MaxPooling2D(),
        conv(5, 2, prior=prior, name="b"),  # 4 x 4
        K.Flatten(),
        dense(12, prior=prior, name="c"),
        dense(3, prior=prior, name="d"),
    ]
    model = keras.Sequential([keras.Input((12, 12, 1)), *layers])
    random = np.random.default_rng(0)
    for name in "abcd":
        q = model.get_layer(name).posteriors["kernel"]
        size = np.exp(random.normal(0, 1.0, q.shape[-1]))
        q.assign(0.1 * size * random.normal(size=q.shape), np.exp(random.normal(-2.5, 0.1, q.shape)))
    return model


def compiled(examples: int) -> Any:
    """Ready for `model.fit`."""
    model = network()
    set_train_size(model, examples)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


COSTS = {"a/kernel": 100, "b/kernel": 16, "c/kernel": 1, "d/kernel": 1}
SIZES = {"a/kernel": 54, "b/kernel": 120, "c/kernel": 960, "d/kernel": 36}
WHOLE = sum(COSTS[name] * SIZES[name] for name in COSTS)


def test_the_report_says_how_many_multiplications_are_left() -> None:
    for granularity in ("weight", "unit"):
        pruned, report = bp.prune(network(), sparsity=0.5, granularity=granularity)
        left = {one.name: one.prunable - one.pruned for one in report.layers}
        assert report.multiplications == (sum(COSTS[name] * left[name] for name in left), WHOLE)
        assert {one.name: one.multiplied for one in report.layers} == COSTS
    assert multiplications(compact(bp.strip(pruned))) == report.multiplications[0]


@pytest.mark.parametrize("criterion", ["evidence", "snr"])
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_the_fewest_units_go_that_save_the_part_that_was_asked_for(criterion: Any, sparsity: float) -> None:
    model = network()
    given: Any = {"criterion": criterion, "granularity": "unit", "counts": "multiplications", "inputs": True}
    report = bp.prune(model, sparsity=sparsity, **given)[1]
    left, whole = report.multiplications or (0, 0)
    assert whole == WHOLE
    assert report.reached
    assert left <= (1 - sparsity) * whole
    assert report.counted == pytest.approx(1 - left / whole)
    one_less = bp.prune(model, sparsity=sparsity - 1e-6, **given)[1]  # the same units, or one fewer
    assert (one_less.multiplications or (0, 0))[0] >= left
    assert report.counted - sparsity < 0.2, "the last unit saves less than that here"


def test_units_go_by_their_evidence_per_multiplication() -> None:
    model = network()
    evidence = scores_of(model, criterion="evidence")
    weights = prunable_weights(model, "evidence")
    left = {name: w.mask for name, w in weights.items()}
    units = groups.units_of(model, left, counts="multiplications")
    means = groups.unit_means(units, evidence, left)
    side = next(side for side in units.made if side.tensor == "a/kernel")
    for unit, label in enumerate(side.labels):
        made, read = evidence["a/kernel"][..., unit], evidence["b/kernel"][:, :, unit]
        cost = 100 * made.size + 16 * read.size
        assert means[label] == pytest.approx((made.sum() + read.sum()) / cost, rel=1e-5)


def test_what_costs_most_goes_first_where_all_is_worth_the_same() -> None:
    """All weights alike: filters of the first layer, multiplied at most positions, go before units of others."""
    model = network(prior="normal")
    for name in "abcd":
        q = model.get_layer(name).posteriors["kernel"]
        q.assign(np.full(q.shape, 0.3), np.full(q.shape, 0.05))
    report = bp.prune(model, sparsity=0.3, criterion="evidence", granularity="unit", counts="multiplications")[1]
    gone = {one.name: one.pruned for one in report.layers}
    assert 0 < gone["a/kernel"] < SIZES["a/kernel"]
    assert gone["c/kernel"] == gone["d/kernel"] == 0


@pytest.mark.parametrize(
    ("layer", "shape", "times"),
    [
        (K.Conv1D(4, 3, strides=2), (11, 2), 5),
        (K.Conv2D(4, 3, padding="same", data_format="channels_first"), (2, 6, 7), 42),
        (K.Conv2DTranspose(4, 3, strides=2, padding="same"), (5, 6, 2), 30),
        (K.Dense(4), (7, 2), 7),
        (K.DepthwiseConv2D(2), (5, 5, 3), 16),
    ],
)
def test_a_weight_is_multiplied_once_a_position(layer: Any, shape: tuple[int, ...], times: int) -> None:
    model = keras.Sequential([keras.Input(shape), layer])
    name = f"{layer.name}/kernel"
    assert groups.costs_of(model, [name, f"{layer.name}/bias"], "multiplications") == {
        name: times,
        f"{layer.name}/bias": 0,
    }
    assert multiplications(model) == times * layer.get_weights()[0].size


def test_only_whole_units_save_multiplications() -> None:
    with pytest.raises(bp.BpruneError, match="counts='multiplications' needs granularity='unit'"):
        bp.prune(network(), sparsity=0.5, counts="multiplications")
    with pytest.raises(bp.BpruneError, match="unknown counts 'flops': expected one of weights, multiplications"):
        bp.prune(network(), sparsity=0.5, granularity="unit", counts="flops")  # type: ignore[arg-type]


@pytest.mark.parametrize("shrinks", [False, True])
def test_pruned_while_it_trains_a_network_saves_what_was_asked_for(shrinks: bool) -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(64, 12, 12, 1)).astype("float32"), random.integers(0, 3, 64)
    model = compiled(len(x))
    gradual = bp.GradualPruning(
        0.8, granularity="unit", criterion="evidence", counts="multiplications", over=(0.1, 0.5), every=1
    )
    model.fit(x, y, batch_size=16, epochs=6, verbose=0, callbacks=[gradual, *[bp.Shrink()][: int(shrinks)]])
    assert gradual.sparsity >= 0.8
    assert multiplications(compact(bp.strip(model))) <= 0.2 * WHOLE


def test_a_schedule_over_a_part_of_the_training_keeps_to_it() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(40, 12, 12, 1)).astype("float32"), random.integers(0, 3, 40)
    model, seen = compiled(len(x)), []
    gradual = bp.GradualPruning(0.6, over=(0.2, 0.5), every=1)
    note = keras.callbacks.LambdaCallback(on_batch_end=lambda batch, logs: seen.append(gradual.sparsity or 0.0))
    model.fit(x, y, batch_size=8, epochs=4, verbose=0, callbacks=[gradual, note])  # 20 steps
    assert seen[3] == 0
    assert 0 < seen[5] < 0.6 - 1e-3
    assert seen[9] == pytest.approx(0.6, abs=1e-3)
    for over in ((0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(bp.BpruneError, match="over must be two parts of the training"):
            bp.GradualPruning(0.6, over=over)


def test_units_that_are_outputs_stay_however_little_they_are_worth() -> None:
    model = network()
    q = model.get_layer("d").posteriors["kernel"]
    loc = q.loc.numpy()
    loc[:, 1] = 1e-6
    q.assign(loc, np.full(q.shape, 0.1))
    pruned, report = bp.prune(model, sparsity=0.5, granularity="unit")
    assert pruned.get_layer("d").posteriors["kernel"].mask.numpy().any(0).all()
    assert "d/kernel" in report.pinned


def test_a_training_that_goes_on_goes_on_with_the_schedule() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=(40, 12, 12, 1)).astype("float32"), random.integers(0, 3, 40)
    seen: list[int] = []
    gradual = bp.GradualPruning(lambda step: seen.append(step) or 0.0, every=1)  # type: ignore[func-returns-value]
    compiled(len(x)).fit(x, y, batch_size=8, initial_epoch=2, epochs=3, verbose=0, callbacks=[gradual])
    assert seen[:5] == [11, 12, 13, 14, 15]
