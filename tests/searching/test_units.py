"""Searches over whole units: the units that prune takes, refined by their gates, the same after an interruption."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits, from_arrays
from tfp_bprune.graphs import compact
from tfp_bprune.graphs.heads import Head, note_heads
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.searching import Budget, Found, Settings, analyse, search
from tfp_bprune.searching.results import network_at
from tfp_bprune.trials.ranking import _pulls, refined
from tfp_bprune.trials.times import Times, _fitted
from tfp_bprune.trials.trial import Evaluator
from tfp_bprune.trials.units import UnitRanking, units_by_score
from tfp_bprune.types import PruneError, RunError

L = keras.layers
X = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
Y = X[:, :3].argmax(1)
UNITS = {"first/kernel": 16, "second/kernel": 10}


@pytest.fixture(scope="module")
def model() -> Any:
    """A plain network whose last layer was fitted by least squares, in which two hidden layers are added up."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    first = L.Dense(16, "tanh", name="first")(inputs)
    second = L.Add()([L.Dense(10, "relu", name="second")(first), L.Dense(10, name="tied")(first)])
    made = keras.Model(inputs, L.Dense(3, "softmax", name="logits")(second))
    hidden = keras.Model(inputs, second)(X).numpy()
    solution = np.linalg.lstsq(np.column_stack([hidden, np.ones(len(X))]), 6 * np.eye(3)[Y] - 3, rcond=None)[0]
    made.get_layer("logits").set_weights([solution[:-1], solution[-1]])
    return note_heads(made, {"logits": Head("classification")})


@pytest.fixture(scope="module")
def data() -> Splits:
    return from_arrays((X, Y), (X[:60], Y[:60]), validation_fraction=0.6)


SETTINGS = Settings(Budget(0.3), "latency", 30, granularity="unit")


@pytest.fixture(scope="module")
def whole(model: Any, data: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """An uninterrupted search by the time of exports."""
    out = tmp_path_factory.mktemp("search")
    return search(model, data, out, settings=SETTINGS), out


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.8])
def test_units_go_in_the_order_of_prune(model: Any, sparsity: float) -> None:
    order = units_by_score(model, "magnitude")
    assert order.left == UNITS  # those of `tied` go with those of `second`
    pruned, report = bp.prune(model, sparsity=sparsity, granularity="unit")
    small = compact(pruned)
    counts = {"first/kernel": small.get_layer("first").units, "second/kernel": small.get_layer("second").units}
    masks = order.masks(counts)
    assert sum(int(mask.sum()) for mask in masks.values()) == report.prunable - report.pruned
    for name, mask in masks.items():
        np.testing.assert_array_equal(pruned.get_layer(name.split("/")[0]).kernel.numpy() != 0, mask)
    kernels = {
        name: (tuple(small.get_layer(name.split("/")[0]).kernel.shape), int(m.sum())) for name, m in masks.items()
    }
    assert order.kernels(counts) == kernels
    assert order.globally(1) == {"first/kernel": 1, "second/kernel": 1}  # every layer keeps one


def test_units_are_refined_by_the_slopes_of_their_gates(model: Any) -> None:
    order, evaluator = units_by_score(model, "magnitude"), Evaluator(model, "magnitude")
    kept = {name: np.arange(len(scores)) % 3 > 0 for name, scores in order.scores.items()}
    evaluator.hold(order.held(kept))
    taught = tf.constant(np.eye(3, dtype=np.float32)[Y])
    found = order.gathered(_pulls(evaluator)(tf.constant(X), taught).numpy())
    gates = [tf.Variable(kept[name].astype(np.float32)) for name in UNITS]
    with tf.GradientTape() as tape:
        h = model.get_layer("first")(X) * gates[0]
        h = (model.get_layer("second")(h) + model.get_layer("tied")(h)) * gates[1]
        loss = tf.reduce_mean(keras.losses.categorical_crossentropy(taught, model.get_layer("logits")(h)))
    slopes = np.concatenate([slope.numpy() for slope in tape.gradient(loss, gates)])
    np.testing.assert_allclose(found, slopes, rtol=1e-4, atol=1e-6)
    assert np.abs(slopes[~np.concatenate(list(kept.values()))]).min() > 0  # those that are gone are told too


def test_a_refined_order_takes_units_that_matter_less(model: Any, data: Splits) -> None:
    order, evaluator = units_by_score(model, "magnitude"), Evaluator(model, "magnitude")
    better = order.with_scores(refined(evaluator, data.examples("train"), order, 12, steps=200))
    answers = evaluator.on(data.examples("train"))
    assert answers.answers(better.masks(better.globally(12))).right.mean() >= (
        answers.answers(order.masks(order.globally(12))).right.mean()
    )


def test_a_search_ends_within_its_budget_in_whole_units(whole: tuple[Found, Path], model: Any, tmp_path: Path) -> None:
    found, out = whole
    assert found.layers.holds
    assert 2 <= sum(found.layers.counts.values()) < 26
    assert {row["ranking"] for row in found.rows} == {"score", "refined"}
    times = json.loads((out / "times.json").read_text())
    for row in found.rows:  # by the times that were measured once
        shapes = {n: shape for n, (shape, _) in found.rankings[row["ranking"]].kernels(row["counts"]).items()}
        parts = {n: np.prod(shape) / np.prod(times["shapes"][n]) for n, shape in shapes.items()}
        expected = times["call"] + sum(times["kernels"][n] * part for n, part in parts.items())
        assert row["latency"] == pytest.approx(expected)
    row, settings = found.front[0], json.loads((out / "settings.json").read_text())
    pruned = network_at(model, out, row, settings)
    assert compact(pruned).get_layer("first").units == row["counts"]["first/kernel"]
    assert compact(pruned).get_layer("second").units == row["counts"]["second/kernel"]


@pytest.mark.parametrize("cut", [3, 20])
def test_a_search_cut_short_ends_the_same(
    whole: tuple[Found, Path], model: Any, data: Splits, tmp_path: Path, cut: int
) -> None:
    result, out = whole
    again = Path(shutil.copytree(out, tmp_path / "again"))
    lines = (again / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (again / "trials.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
    found = search(model, data, again, settings=SETTINGS)
    assert (found.layers, found.single, found.rows, found.front) == (
        result.layers,
        result.single,
        result.rows,
        result.front,
    )
    assert found.speed["evaluated"] == len(lines) - cut
    (again / "times.json").write_text((again / "times.json").read_text().replace('"call": ', '"call": 1'))
    with pytest.raises(RunError, match="does not match its own SHA-256"):
        search(model, data, again, settings=SETTINGS)


def test_what_was_gone_before_stays_gone(model: Any) -> None:
    pruned, _ = bp.prune(model, sparsity=0.5, granularity="unit")
    order = units_by_score(pruned, "magnitude")
    assert sum(order.left.values()) < 26
    for name, mask in order.masks(order.left).items():
        np.testing.assert_array_equal(mask, pruned.get_layer(name.split("/")[0]).kernel.numpy() != 0)
    np.testing.assert_allclose(with_masks(pruned, order.masks(order.left))(X), pruned(X))


def test_times_are_found_from_designs() -> None:
    rng = np.random.default_rng(0)
    shapes = [{"a": (rng.integers(2, 10), 8), "b": (8, rng.integers(2, 10))} for _ in range(8)]
    shapes[0] = {"a": (10, 8), "b": (8, 10)}
    true = Times(30.0, {"a": 5.0, "b": 12.0}, shapes[0])
    found = _fitted(shapes, np.array([true.of(one) for one in shapes]))
    assert (found.call, *found.kernels.values()) == pytest.approx((30, 5, 12))


def test_wrong_requests_are_refused(data: Splits, model: Any, tmp_path: Path) -> None:
    towers = [
        keras.Sequential([keras.Input((4,)), L.Dense(4, name=name), L.ReLU(name="same")], f"of_{name}") for name in "ab"
    ]
    nested = keras.Sequential([keras.Input((4,)), *towers, L.Dense(3, "softmax")])
    with pytest.raises(PruneError, match="several layers named 'same', in models nested in it"):
        search(nested, data, tmp_path / "nested", settings=SETTINGS)
    alone = keras.Sequential([keras.Input((4,)), L.Dense(3, "softmax")])
    with pytest.raises(PruneError, match=r"no unit of model .* can go: search it by weight"):
        search(alone, data, tmp_path / "alone", settings=SETTINGS)
    with pytest.raises(PruneError, match="granularity must be"):
        Settings(granularity="layer")  # type: ignore[arg-type]
    with pytest.raises(RunError, match="expected 0 to 16"):
        units_by_score(model, "magnitude").check({"first/kernel": 17, "second/kernel": 1})


def test_one_layer_after_the_other_is_told_in_units(model: Any, data: Splits, tmp_path: Path) -> None:
    rows = analyse(model, data, tmp_path, granularity="unit")
    assert [row["layer"] for row in rows[:2]] == [None, "first"]
    assert isinstance(units_by_score(model, "magnitude"), UnitRanking)
    assert {row["counts"]["second/kernel"] for row in rows if row["layer"] == "first"} == {10}
