"""Uncertainties against what can be worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfp_bprune.evaluation.uncertainty import area_under_risk_coverage, decompose, entropy, ood_auroc, risk_coverage
from tfp_bprune.types import DataError


def test_draws_that_agree_leave_aleatoric_uncertainty_alone() -> None:
    found = decompose(np.tile([[[0.25, 0.75]]], (7, 3, 1)))
    expected = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    np.testing.assert_allclose(found["aleatoric"], expected)
    np.testing.assert_allclose(found["entropy"], expected)
    np.testing.assert_allclose(found["epistemic"], 0.0, atol=1e-15)


def test_certain_draws_that_disagree_leave_epistemic_uncertainty_alone() -> None:
    found = decompose(np.eye(4)[:, None, :])
    np.testing.assert_allclose(found["epistemic"], math.log(4))
    np.testing.assert_array_equal(found["aleatoric"], 0.0)
    np.testing.assert_allclose(found["probabilities"], 0.25)


@given(st.integers(1, 6), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_parts_add_up_and_none_is_negative(draws: int, classes: int, seed: int) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), size=(draws, 4))
    found = decompose(probabilities)
    np.testing.assert_allclose(found["aleatoric"] + found["epistemic"], found["entropy"], atol=1e-12)
    assert (found["epistemic"] >= 0).all()
    assert (found["entropy"] <= math.log(classes) + 1e-12).all()


def test_a_class_of_chance_zero_adds_nothing() -> None:
    assert entropy(np.array([1.0, 0.0])) == 0


def test_auroc_counts_pairs() -> None:
    # Of the six pairs four are in order, one is level and one is not.
    assert ood_auroc(np.array([0.1, 0.5, 0.6]), np.array([0.5, 0.7])) == pytest.approx(4.5 / 6)


def test_risk_counts_errors_in_the_order_of_certainty() -> None:
    coverage, risk = risk_coverage(np.array([0.3, 0.1, 0.2, 0.9]), np.array([True, True, False, False]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 2])


def test_level_uncertainties_share_their_errors_whatever_their_order() -> None:
    right = np.array([True, False, False, True])
    for order in (right, right[::-1]):
        np.testing.assert_allclose(risk_coverage(np.zeros(4), order)[1], 0.5)


def test_the_best_order_has_the_least_area() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.8
    best = area_under_risk_coverage(1.0 - right, right)
    assert (
        best < area_under_risk_coverage(rng.random(200), right) < area_under_risk_coverage(right.astype(float), right)
    )
    # With r errors among n and all of them last, risk is (k - (n - r)) / k from there on.
    n, wrong = 200, int((~right).sum())
    k = np.arange(n - wrong + 1, n + 1)
    # The errors are level with each other, and so are the right answers.
    assert best == pytest.approx(((k - (n - wrong)) / k).sum() / n)


@pytest.mark.parametrize(
    "call",
    [
        lambda: decompose(np.zeros((2, 3))),
        lambda: ood_auroc(np.zeros(0), np.zeros(3)),
        lambda: risk_coverage(np.zeros(0), np.zeros(0)),
        lambda: risk_coverage(np.zeros(2), np.zeros(3)),
    ],
)
def test_wrong_shapes_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(DataError):
        call()
