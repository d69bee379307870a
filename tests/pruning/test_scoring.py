"""The words that say how weights are ranked travel as one object, and are refused alike wherever they come in."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tfp_bprune as bp
from tfp_bprune.data.splits import Splits
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.types import PruneError

WRONG = [
    ({"criterion": "taste"}, "unknown criterion 'taste': expected one of snr, magnitude"),
    ({"scope": "column"}, "scope must be 'global' or 'layer', got 'column'"),
    ({"granularity": "atom"}, "granularity must be 'weight' or 'unit', got 'atom'"),
    ({"aggregate": "sum"}, "unknown aggregate 'sum': expected one of norm, mean, max"),
]


@pytest.mark.parametrize(("words", "said"), WRONG)
def test_a_word_that_is_none_is_refused_alike(
    mlp: Callable[..., Any], digits: Splits, tmp_path: Path, words: Any, said: str
) -> None:
    model = mlp()
    for asked in (
        lambda: Scoring(**words),
        lambda: bp.prune(model, sparsity=0.5, **words),
        lambda: bp.GradualPruning(0.5, **words),
        lambda: bp.sweep(model, digits.examples("valid"), tmp_path / "exports", **words),
    ):
        with pytest.raises(PruneError, match=said):
            asked()
    assert not list(tmp_path.iterdir())


def test_the_criterion_is_what_suits_the_model_where_nobody_says_it(mlp: Callable[..., Any]) -> None:
    assert Scoring().of(mlp()).by == "snr"
    assert Scoring().of(mlp("deterministic")).by == "magnitude"
    assert Scoring("magnitude").of(mlp()).by == "magnitude"


def test_public_functions_have_its_words_and_defaults() -> None:
    ours = {field.name: field.default for field in fields(Scoring)}
    for function, left_out in ((bp.prune, set()), (bp.sweep, {"include_bias"}), (bp.GradualPruning, {"include_bias"})):
        parameters = inspect.signature(function).parameters
        assert {n: parameters[n].default for n in ours if n in parameters} == {
            n: default for n, default in ours.items() if n not in left_out
        }


def test_units_go_by_the_aggregate_while_training_too(mlp: Callable[..., Any]) -> None:
    from tfp_bprune.pruning.paths import live_masks

    model = mlp(hidden=(40, 40), rho_init=-1.0)
    for aggregate in ("max", "norm"):
        pruned, _ = bp.prune(model, sparsity=0.5, granularity="unit", aggregate=aggregate)  # type: ignore[arg-type]
        found = live_masks(model, 0.5, Scoring(granularity="unit", aggregate=aggregate))  # type: ignore[arg-type]
        kept = found["dense_1/kernel"]
        assert kept.sum() > 0
        assert (pruned.get_layer("dense_1").kernel_posterior.mask.numpy() == kept).mean() > 0.9
