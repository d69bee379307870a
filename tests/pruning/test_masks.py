"""From scores to masks: exact counts, nesting, ties, and what an earlier pruning removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tfp_bprune.pruning.masks import masks_at_sparsity, masks_at_threshold, sparsity_of, ties
from tfp_bprune.types import PruneError

# Few different values, so that most examples hold ties.
tensors = arrays.arrays(
    np.float64,
    arrays.array_shapes(min_dims=1, max_dims=3, max_side=4),
    elements=st.sampled_from([0, 0.5, 1, 2, 3, np.inf]),
)
several = st.dictionaries(st.sampled_from("abc"), tensors, min_size=1)
sparsities = st.floats(0, 1, exclude_max=True)
scopes = st.sampled_from(["global", "layer"])


def gone(mask: np.ndarray) -> int:
    return mask.size - int(np.count_nonzero(mask))


@given(several, sparsities)
def test_global_counts_are_exact(scores: dict[str, np.ndarray], sparsity: float) -> None:
    masks = masks_at_sparsity(scores, sparsity)
    size = sum(s.size for s in scores.values())
    assert sum(map(gone, masks.values())) == round(sparsity * size)
    assert sparsity_of(masks) == pytest.approx(round(sparsity * size) / size)
    assert {name: m.shape for name, m in masks.items()} == {name: s.shape for name, s in scores.items()}


@given(several, sparsities)
def test_layer_counts_are_exact_in_each_tensor(scores: dict[str, np.ndarray], sparsity: float) -> None:
    for mask in masks_at_sparsity(scores, sparsity, "layer").values():
        assert gone(mask) == round(sparsity * mask.size)


@given(several, sparsities, scopes)
def test_nothing_that_goes_scores_above_what_stays(scores: dict[str, np.ndarray], sparsity: float, scope: Any) -> None:
    masks = masks_at_sparsity(scores, sparsity, scope)
    groups = [[name] for name in scores] if scope == "layer" else [list(scores)]
    for names in groups:
        removed = np.concatenate([scores[n][~masks[n]] for n in names])
        kept = np.concatenate([scores[n][masks[n]] for n in names])
        assert removed.size == 0 or kept.size == 0 or removed.max() <= kept.min()


@given(several, sparsities, sparsities, scopes)
def test_a_higher_sparsity_removes_more_and_returns_nothing(
    scores: dict[str, np.ndarray], one: float, other: float, scope: Any
) -> None:
    low, high = (masks_at_sparsity(scores, s, scope) for s in sorted((one, other)))
    assert all((high[name] <= low[name]).all() for name in scores)


@given(several, sparsities, sparsities, scopes, scopes)
def test_what_is_gone_stays_gone(
    scores: dict[str, np.ndarray], first: float, second: float, scope: Any, other_scope: Any
) -> None:
    before = masks_at_sparsity(scores, first, scope)
    after = masks_at_sparsity(scores, second, other_scope, before)
    assert all((after[name] <= before[name]).all() for name in scores)
    if scope == other_scope == "global":
        # Weights gone before count, so pruning in two steps ends where pruning in one step would.
        direct = masks_at_sparsity(scores, max(first, second))
        assert all((after[name] == direct[name]).all() for name in scores)


@given(several, st.floats(0, 4), sparsities)
def test_a_threshold_keeps_what_scores_at_least_that(
    scores: dict[str, np.ndarray], threshold: float, first: float
) -> None:
    before = masks_at_sparsity(scores, first)
    for name, mask in masks_at_threshold(scores, threshold, before).items():
        np.testing.assert_array_equal(mask, (scores[name] >= threshold) & before[name])


@given(st.permutations(range(1, 25)), sparsities)
def test_the_lowest_kept_score_as_threshold_gives_the_same_mask(order: list[int], sparsity: float) -> None:
    scores = {"a": np.array(order[:12], float).reshape(3, 4), "b": np.array(order[12:], float)}
    masks = masks_at_sparsity(scores, sparsity)
    kept = np.concatenate([scores[name][masks[name]] for name in scores])
    if kept.size:
        again = masks_at_threshold(scores, kept.min())
        assert all((again[name] == masks[name]).all() for name in scores)
        assert ties(scores, masks) == 0


def test_among_equals_the_first_go_and_the_cut_is_reported() -> None:
    scores = {"a": np.ones((2, 2)), "b": np.array([0.5, 1.0])}
    masks = masks_at_sparsity(scores, 0.5)
    assert masks["a"].tolist() == [[False, False], [True, True]]
    assert masks["b"].tolist() == [False, True]
    assert ties(scores, masks) == 3


def test_no_tie_is_reported_where_equals_all_went() -> None:
    scores = {"a": np.array([1.0, 1.0, 2.0, 3.0])}
    assert ties(scores, masks_at_sparsity(scores, 0.5)) == 0
    assert ties(scores, masks_at_sparsity(scores, 0.0)) == 0


def test_ties_of_one_layer_are_not_hidden_by_the_cut_of_another() -> None:
    scores = {"low": np.array([1.0, 1.0, 2.0, 3.0]), "high": np.array([5.0, 6.0, 7.0, 8.0])}
    assert ties(scores, masks_at_sparsity(scores, 0.25, "layer"), scope="layer") == 1
    # Nor does a weight tie with one that another layer lost.
    scores = {"low": np.array([1.0, 5.0]), "high": np.array([5.0, 6.0])}
    assert ties(scores, masks_at_sparsity(scores, 0.5, "layer"), scope="layer") == 0


def test_what_was_gone_before_is_no_tie() -> None:
    scores, before = {"a": np.array([1.0, 1.0, 2.0])}, {"a": np.array([False, True, True])}
    assert ties(scores, masks_at_sparsity(scores, 0.3, before=before), before) == 0


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_must_leave_something(sparsity: float) -> None:
    with pytest.raises(PruneError, match=r"sparsity must be in \[0, 1\), got"):
        masks_at_sparsity({"a": np.ones(3)}, sparsity)


@pytest.mark.parametrize("threshold", [-1e-9, float("nan")])
def test_a_threshold_is_a_score(threshold: float) -> None:
    with pytest.raises(PruneError, match="threshold must be at least 0"):
        masks_at_threshold({"a": np.ones(3)}, threshold)


def test_nan_scores_are_refused_with_their_tensor() -> None:
    scores = {"fine": np.ones(2), "broken": np.array([1.0, np.nan, np.nan])}
    for attempt in (lambda: masks_at_sparsity(scores, 0.5), lambda: masks_at_threshold(scores, 0.5)):
        with pytest.raises(PruneError, match="broken has 2 NaN scores of 3"):
            attempt()


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(PruneError, match="scope must be 'global' or 'layer', got 'column'"):
        masks_at_sparsity({"a": np.ones(3)}, 0.5, "column")  # type: ignore[arg-type]
