"""Which form of a kernel is faster, by costs that are given, saved or measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tfp_bprune.prediction import cost
from tfp_bprune.prediction.cost import BATCHES, FORMS, SPARSE, TYPICAL, Choice, Costs, choose
from tfp_bprune.types import ExportError, Product

SHAPE = (300, 200)


@pytest.mark.parametrize("seed", range(40))
def test_a_clearly_faster_form_is_chosen_at_every_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shipped = dataclasses.asdict(Costs())
    costs = Costs(**{name: value * 10 ** rng.uniform(-1, 1) for name, value in shipped.items()})
    stored = int(rng.integers(0, 60_001) * rng.choice([0.02, 0.2, 1]))
    choice = choose("auto", SHAPE, stored, costs)
    for batch in BATCHES:
        times = time_of(costs, batch, stored)
        assert times[choice.at(batch)] == min(times[form] for form in choice.forms)
        assert not (choice.limits and "dense" in choice.forms)
    alone = {form: behind(costs, stored, lambda batch, form=form: form) for form in FORMS}  # type: ignore[misc]
    best = min(alone.values())
    if choice.limits:
        costing = behind(costs, stored, choice.at, 1.1 ** len(choice.limits))
        assert costing <= best
    else:
        assert alone[choice.forms[0]] == best
    single = choose("auto", SHAPE, stored, costs, by_batch=False)
    times = time_of(costs, TYPICAL, stored)
    assert single == Choice((min(times, key=times.__getitem__),))
    two = choose("auto", SHAPE, stored, costs, by_batch=False, forms=("dense", "sparse"))
    assert two == Choice(("sparse" if times["sparse"] < times["dense"] else "dense",))


def behind(costs: Costs, stored: int, form: Callable[[int], Product], times: float = 1.0) -> float:
    """How many times the fastest product a call takes at most, with the 100 microseconds that each call takes."""
    ratios = []
    for batch in (batch for batch in BATCHES if batch <= 512):
        found = time_of(costs, batch, stored)
        ratios.append((100 + times * found[form(batch)]) / (100 + min(found.values())))
    return max(ratios)


def time_of(costs: Costs, batch: int, stored: int) -> dict[Product, float]:
    """Of each form."""
    sparse, csr = costs.sparse(batch, SHAPE, stored), costs.csr(batch, SHAPE, stored)
    return {"dense": costs.dense(batch, SHAPE), "sparse": sparse, "csr": csr}


def test_sparse_forms_take_turns_where_each_is_much_faster() -> None:
    """A dense product is the fastest at batch 1 here; in turns with sparse ones it would take columns."""
    costs = Costs(
        dense_call=10, read=1e-9, multiply=5e-3, sparse_call=500, entry=1e-9, entry_each=4e-2, turn=1e-9,
        csr_call=5000, csr_entry=1e-9, csr_entry_each=1e-5, csr_turn=1e-9,
    )  # fmt: skip
    # dense 10 + 300 batch, sparse 500 + 40 batch, csr 5000 + .01 batch
    assert choose("auto", SHAPE, 1000, costs) == Choice(("sparse", "csr"), (128,))


def test_by_the_shipped_costs_sparse_forms_change_where_that_clearly_saves() -> None:
    """As timed on two machines: a call with compressed rows costs more, an entry less."""
    choices = {shape: choose("auto", shape, round(part * np.prod(shape)), Costs()) for shape, part in {
        (784, 500): 0.05, (1200, 1200): 0.05, (300, 100): 0.02}.items()}  # fmt: skip
    assert choices[1200, 1200].forms == ("sparse", "csr")
    assert 1 < choices[1200, 1200].limits[0] <= 256
    assert choices[784, 500].forms[0] == "sparse"
    assert "csr" not in choices[300, 100].forms
    assert choose("auto", (1200, 1200), 72_000, Costs(), by_batch=False).limits == ()


@pytest.mark.parametrize(("sparsity", "sparse"), [(0.92, False), (0.95, True), (0.98, True), (0.999, True)])
def test_by_the_shipped_costs_one_form_serves_all_batches(sparsity: float, sparse: bool) -> None:
    """At 92 % 784-500 would be a tenth faster sparse, which another machine may reverse."""
    choice = choose("auto", (784, 500), round(392_000 * (1 - sparsity)), Costs())
    assert ("dense" in choice.forms, choice.sparse) == (not sparse, sparse)
    assert choose("auto", (16, 10), 1, Costs()) == Choice(("dense",))  # a call costs more than any product


def test_costs_are_sums_of_what_is_touched() -> None:
    costs = Costs(
        dense_call=1, read=2, multiply=3, sparse_call=4, entry=5, entry_each=6, turn=7, take_call=8, take=9, skip=10,
        csr_call=11, csr_entry=12, csr_entry_each=13, csr_turn=14,
    )  # fmt: skip
    assert costs.dense(10, (2, 3)) == 1 + 6 * (2 + 10 * 3)
    assert costs.sparse(10, (2, 3), 4) == 4 + 10 * (2 + 3) * 7 + 4 * (5 + 10 * 6)
    assert costs.csr(10, (2, 3), 4) == 11 + 10 * (2 + 3) * 14 + 4 * (12 + 10 * 13)
    assert [costs.of(form, 10, (2, 3), 4) for form in FORMS] == [
        costs.dense(10, (2, 3)), costs.sparse(10, (2, 3), 4), costs.csr(10, (2, 3), 4),
    ]  # fmt: skip
    assert costs.taken(10, 2, 3) == 8 + 10 * (2 * 9 + 3 * 10)


def test_what_was_asked_for_is_not_weighed() -> None:
    assert choose("dense", SHAPE, 0, Costs()) == Choice(("dense",))
    assert choose("sparse", SHAPE, 60_000, Costs()) == Choice(("sparse",))
    assert choose("csr", SHAPE, 60_000, Costs()) == Choice(("csr",))


def test_choices_are_told_to_people() -> None:
    told = {Choice(("csr",)): "csr", Choice(("dense", "csr"), (8,)): "dense below batch 8, then csr"}
    told[Choice(FORMS, (2, 64))] = "dense below batch 2, sparse below batch 64, then csr"
    assert {choice: choice.form for choice in told} == told
    assert [choice.sparse for choice in (Choice(("dense",)), *told)] == [False, True, True, True]


@pytest.mark.parametrize("batch", [1, 64, 1024])
def test_forms_break_even_where_they_cost_the_same(batch: int) -> None:
    costs = Costs()
    stored = (1 - costs.break_even(SHAPE, batch)) * 60_000
    assert costs.sparse(batch, SHAPE, stored) == pytest.approx(costs.dense(batch, SHAPE))  # type: ignore[arg-type]
    stored = (1 - costs.break_even(SHAPE, batch, ["csr"])) * 60_000
    assert costs.csr(batch, SHAPE, stored) == pytest.approx(costs.dense(batch, SHAPE))  # type: ignore[arg-type]
    first = costs.break_even(SHAPE, batch, SPARSE)
    assert first == min(costs.break_even(SHAPE, batch, [form]) for form in SPARSE)


def test_costs_of_before_never_choose_what_they_did_not_measure(tmp_path: Path) -> None:
    """Shipped numbers are another machine's, which may be the faster one."""
    slow = Costs(**{name: 100 * value for name, value in dataclasses.asdict(Costs()).items()})
    before = {name: value for name, value in dataclasses.asdict(slow).items() if not name.startswith("csr")}
    (tmp_path / "before.json").write_text(json.dumps(before))
    costs = cost.read(tmp_path / "before.json")
    assert dataclasses.asdict(costs).items() >= before.items()
    for stored in (100, 1000, 10_000):
        assert "csr" not in choose("auto", SHAPE, stored, costs).forms


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
