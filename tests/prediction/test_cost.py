"""Which form of a kernel is faster, by costs that are given, saved or measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tfp_bprune.prediction import cost
from tfp_bprune.prediction.cost import BATCHES, TYPICAL, Choice, Costs, choose
from tfp_bprune.types import ExportError

SHAPE = (300, 200)


@pytest.mark.parametrize("seed", range(40))
def test_the_faster_form_is_chosen_at_every_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shipped = dataclasses.asdict(Costs())
    costs = Costs(**{name: value * 10 ** rng.uniform(-1, 1) for name, value in shipped.items()})
    stored = int(rng.integers(0, 60_001) * rng.choice([0.02, 0.2, 1]))
    choice = choose("auto", SHAPE, stored, costs)
    for batch in BATCHES:
        sparse = choice.sparse if choice.limit is None or batch < choice.limit else not choice.sparse
        times = costs.dense(batch, SHAPE), costs.sparse(batch, SHAPE, stored)
        assert times[sparse] == min(times)
    single = choose("auto", SHAPE, stored, costs, by_batch=False)
    times = costs.dense(TYPICAL, SHAPE), costs.sparse(TYPICAL, SHAPE, stored)
    assert single == Choice(times[1] < times[0])


@pytest.mark.parametrize(("sparsity", "sparse"), [(0.92, False), (0.95, True), (0.98, True), (0.999, True)])
def test_by_the_shipped_costs_one_form_serves_all_batches(sparsity: float, sparse: bool) -> None:
    """At 92 % 784-500 would be a tenth faster sparse, which another machine may reverse."""
    assert choose("auto", (784, 500), round(392_000 * (1 - sparsity)), Costs()) == Choice(sparse)
    assert choose("auto", (16, 10), 1, Costs()) == Choice(False)  # a call costs more than both products


def test_costs_are_sums_of_what_is_touched() -> None:
    costs = Costs(
        dense_call=1, read=2, multiply=3, sparse_call=4, entry=5, entry_each=6, turn=7, take_call=8, take=9, skip=10
    )
    assert costs.dense(10, (2, 3)) == 1 + 6 * (2 + 10 * 3)
    assert costs.sparse(10, (2, 3), 4) == 4 + 10 * (2 + 3) * 7 + 4 * (5 + 10 * 6)
    assert costs.taken(10, 2, 3) == 8 + 10 * (2 * 9 + 3 * 10)


def test_what_was_asked_for_is_not_weighed() -> None:
    assert choose("dense", SHAPE, 0, Costs()) == Choice(False)
    assert choose("sparse", SHAPE, 60_000, Costs()) == Choice(True)
    assert not Choice(True).both
    assert Choice(True, 8).both


@pytest.mark.parametrize("batch", [1, 64, 1024])
def test_forms_break_even_where_they_cost_the_same(batch: int) -> None:
    costs = Costs()
    stored = (1 - costs.break_even(SHAPE, batch)) * 60_000
    assert costs.sparse(batch, SHAPE, stored) == pytest.approx(costs.dense(batch, SHAPE))  # type: ignore[arg-type]


def test_costs_are_read_as_they_were_saved(tmp_path: Path) -> None:
    costs = dataclasses.replace(Costs(), entry=0.125)
    cost.save(costs, tmp_path / "costs.json")
    assert cost.read(tmp_path / "costs.json") == costs
    (tmp_path / "before.json").write_text(json.dumps(dataclasses.asdict(costs)))  # without a hash, as it was
    assert cost.read(tmp_path / "before.json") == costs


def test_costs_that_were_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    cost.save(dataclasses.replace(Costs(), entry=0.125), path)
    path.write_bytes(path.read_bytes().replace(b"0.125", b"0.225"))
    with pytest.raises(ExportError, match=r"holds no costs of products .*does not match its own SHA-256"):
        cost.read(path)


@pytest.mark.parametrize("content", [None, "", "no JSON", "[]", "3", "{}", json.dumps({"dense_call": 1})])
def test_a_file_of_something_else_is_one_clear_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "costs.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ExportError, match=r"costs.json holds no costs of products .*expected a file that --calibrate"):
        cost.read(path)


@pytest.mark.parametrize("value", ["a word", None, [1]])
def test_a_cost_that_is_no_number_is_the_same_error(tmp_path: Path, value: object) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(dataclasses.asdict(Costs()) | {"entry": value}))
    with pytest.raises(ExportError, match="holds no costs of products"):
        cost.read(tmp_path / "costs.json")


def test_coefficients_are_found_again_and_never_negative() -> None:
    rng = np.random.default_rng(0)
    terms = rng.uniform(1, 1000, (30, 3))
    found = cost._fitted([(*row, row @ [12.0, 1e-4, 3.0]) for row in terms])
    np.testing.assert_allclose(found, [12, 1e-4, 3], rtol=1e-4)
    assert min(cost._fitted([(*row, row @ [12.0, -0.01, 3.0]) for row in terms])) >= 0
