"""`prune`: a new Keras model without the weights or units that carry no signal, and a report of what went."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfp_bprune.graphs.convert import adopt, weighted_layers
from tfp_bprune.graphs.rebuild import check_graph, rebuild
from tfp_bprune.layers import weights_of
from tfp_bprune.pruning.report import Report
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.pruning.select import choose_masks
from tfp_bprune.types import Aggregate, Criterion, Granularity, PruneError, Scope


def prune(
    model: Any,
    *,
    sparsity: float | None = None,
    threshold: float | None = None,
    criterion: Criterion | None = None,
    scope: Scope = "global",
    include_bias: bool = False,
    granularity: Granularity = "weight",
    aggregate: Aggregate = "max",
    strict: bool = False,
) -> tuple[Any, Report]:
    """Removes the weights of lowest score: mu = 0 and sigma = 0, in every draw, in memory and after reload.

    Args:
      model: a functional or sequential Keras model of this package's layers, of raw tfp.layers (which come back as
        this package's), or, by magnitude, of plain Keras layers (whose kernels get zeros).
      sparsity: fraction of the prunable weights to remove in all, in [0, 1); weights gone before count.
      threshold: or remove what scores below this (an SNR, or a magnitude).
      criterion: "snr", |mu| / sigma (Blundell et al. 2015, section 5.1), or "magnitude", |mu| (Han et al. 2015); by
        default the first, and the second for a model without any Bayesian layer.
      scope: "global" ranks all layers together, "layer" each by itself: every layer loses the same part of its weights,
        or of its units.
      include_bias: whether Bayesian biases are prunable too, with granularity "weight".
      granularity: "weight", or "unit" for whole neurons and filters, which makes the network smaller and faster and
        not only sparser; `sparsity` is then the least fraction of weights to remove.
      aggregate: how a unit's weights make its score: "max", "mean" or "norm"; see `groups.unit_scores`.
      strict: refuse a sparsity that cannot be reached, which else a warning and the report's `missed` say.

    Returns:
      The pruned model, not compiled, and a `Report`. `model` itself stays as it is.

    Raises:
      PruneError: both or none of sparsity and threshold, one out of range, NaN weights, or nothing to prune;
        with `strict` also a sparsity that is not reached.
      BpruneError: the model's graph is not known to Keras.
    """
    check_graph(model)
    model = adopt(model)
    scoring = Scoring(criterion, scope, granularity, aggregate, include_bias)
    selection = choose_masks(model, scoring, sparsity, threshold)
    if selection.report.missed:
        if strict:
            raise PruneError(selection.report.missed)
        warnings.warn(selection.report.missed, stacklevel=2)
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    apply_masks(copy, selection.masks)
    return copy, selection.report


def with_masks(model: Any, masks: Mapping[str, np.ndarray]) -> Any:
    """A copy of `model` without the weights whose mask is False; tensors by name, "layer/kernel"."""
    copy = rebuild(adopt(model), lambda layer: None, lambda old, new: None)
    apply_masks(copy, dict(masks))
    return copy


def apply_masks(model: Any, masks: dict[str, np.ndarray]) -> None:
    """Removes from `model` itself the weights whose mask is False; masks by `layer/kernel` or `layer/bias`."""
    for layer in weighted_layers(model):
        for name, weights in weights_of(layer).items():
            mask = masks.get(f"{layer.name}/{name}")
            if mask is not None:
                weights.keep_only(mask)
