"""`prune`: a new Keras model without the weights or units that carry no signal, and a report of what went."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tfp_bprune.graphs.convert import adopt, weighted_layers
from tfp_bprune.graphs.inputs import read_inputs
from tfp_bprune.graphs.rebuild import check_graph, rebuild
from tfp_bprune.layers import variational_layers, weights_of
from tfp_bprune.pruning.cost import cost_of
from tfp_bprune.pruning.dead import remove_dead
from tfp_bprune.pruning.report import Report
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.pruning.scoring import Scoring, default_criterion
from tfp_bprune.pruning.select import choose_masks, prunable_weights, unit_ranking
from tfp_bprune.storage.keras3 import taken
from tfp_bprune.types import Aggregate, Counts, Criterion, Granularity, PruneError, Scope


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
    inputs: bool = False,
    counts: Counts = "weights",
    strict: bool = False,
    validation_data: Any = None,
) -> tuple[Any, Report]:
    """Removes the weights of lowest score: mu = 0 and sigma = 0, in every draw, in memory and after reload.

    Args:
      model: a functional or sequential Keras model of this package's layers, of raw tfp.layers (which come back as
        this package's), or, by magnitude, of plain Keras layers (whose kernels get zeros); a
        model of Keras 3 or the path of a `.keras` file, which come back as a model of tf_keras.
      sparsity: fraction of the prunable weights to remove in all, in [0, 1); weights gone before count.
      threshold: or remove what scores below this (an SNR, a magnitude, or nats of evidence, of a unit by weight). With neither, what the
        evidence says is better gone goes, or of units what the prior's own criterion does, and with it what is then on no path
        from input to output; `report.requested` is then {"criterion": "evidence"}.
      criterion: "snr", |mu| / sigma (Blundell et al. 2015, section 5.1), "magnitude", |mu| (Han et al. 2015), "evidence",
        log p(0) - log q(0) (Friston and Penny 2011), "log_alpha", (E z)^2 / Var z in logarithm, of scales z of groups (Louizos et
        al. 2017), which ends at 3, or one that was registered; by default the first, the second for a
        model without any Bayesian layer, and the third with neither sparsity nor threshold.
      scope: "global" ranks all layers together, "layer" each by itself: every layer loses the same part of its weights,
        or of its units.
      include_bias: whether Bayesian biases are prunable too, with granularity "weight".
      granularity: "weight", or "unit" for whole neurons and filters, which makes the network smaller and faster and
        not only sparser; `sparsity` is then the least fraction of weights to remove.
      aggregate: how a unit's weights make its score: "max", "mean" or "norm"; see `groups.unit_scores`.
      inputs: whether with granularity "unit" what a layer reads can go by itself, where it is no unit: a feature of the
        model's input, and each of the positions of a filter that a dense layer reads flattened.
      counts: what `sparsity` is a part of with granularity "unit": the "weights", or the "multiplications" that an example takes,
        of which a filter has one for each position. Criteria whose scores add up, as "evidence", then rank units by their score
        per multiplication, so that what costs much has to be worth much.
      strict: refuse a sparsity that cannot be reached, which else a warning and the report's `missed` say.
      validation_data: (x, y), a split, all splits (of which the validation split is taken) or batches of (x, y), on which the
        mean network is scored before and after: `report.scores`. A warning says where much was lost.

    Returns:
      The pruned model, not compiled, and a `Report`. `model` itself stays as it is.

    Raises:
      PruneError: both of sparsity and threshold, none for a criterion that has no end of its own, one out of range, NaN
        weights, or nothing to prune; with `strict` also a sparsity that is not reached.
      BpruneError: the model's graph is not known to Keras.
    """
    model = taken(model)
    check_graph(model)
    model = adopt(model)
    scoring = Scoring(criterion, scope, granularity, aggregate, include_bias, inputs, counts)
    if sparsity is None and threshold is None:
        pruned, report = _without_what_is_better_gone(model, scoring)
        return pruned, _scored(model, pruned, report, validation_data)
    selection = choose_masks(model, scoring, sparsity, threshold)
    if selection.report.missed:
        if strict:
            raise PruneError(selection.report.missed)
        warnings.warn(selection.report.missed, stacklevel=2)
    pruned = with_masks(model, selection.masks)
    report = replace(selection.report, inputs=read_inputs(pruned))
    return pruned, _scored(model, pruned, report, validation_data)


def _scored(model: Any, pruned: Any, report: Report, data: Any) -> Report:
    """The report with what the pruning cost, on data if there are any."""
    if data is None:
        return report
    cost = cost_of(model, pruned, data)
    if cost.lost:
        warnings.warn(cost.lost, stacklevel=3)
    return replace(report, scores={"before": cost.before, "after": cost.after})


def _without_what_is_better_gone(model: Any, scoring: Scoring) -> tuple[Any, Report]:
    """A copy to which a criterion's own end was applied until nothing more goes, and the report."""
    scoring = with_an_end(scoring, model)
    copy = with_masks(model, {})
    report = remove_to_the_end(copy, scoring)
    return copy, replace(report, inputs=read_inputs(copy))


def with_an_end(scoring: Scoring, model: Any = None) -> Scoring:
    """The scoring of a request without an extent: by the evidence where no criterion was said.

    Raises:
      PruneError: of the criterion nothing says where to end, or the weights of `model` have no distribution.
    """
    criterion = scoring.criterion or _ending(model, scoring.granularity)
    if CRITERIA[criterion].ends_at is None:
        raise PruneError(
            f"give either sparsity or threshold, got neither: of criterion {criterion!r} nothing says where to end, as it does "
            f"of {', '.join(repr(name) for name, known in CRITERIA.items() if known.ends_at is not None)}"
        )
    return replace(scoring, criterion=criterion)


def remove_to_the_end(model: Any, scoring: Scoring) -> Report:
    """Applies a criterion's own end to `model` itself, step by step, until nothing more goes.

    What is left is scored again after each step, since a prior over groups, a unit's sum and the paths depend on what is there.
    """
    while True:
        report, more = step_to_the_end(model, scoring)
        if not more:
            return replace(report, requested={"criterion": scoring.by})


def step_to_the_end(model: Any, scoring: Scoring) -> tuple[Report, bool]:
    """Takes from `model` itself what scores below the criterion's end, and says whether there was any.

    Of units the worst tenth of it, since neighbours share weights and both lose by the first that goes. Then weights on no path
    from input to output go: they are no part of the function, and the data say nothing for or against them. A sum of gains is
    not spent on weights that are better kept: weights are not independent, and on MNIST it would pay for all of them
    (docs/studies/evidence.md).
    """
    end = CRITERIA[scoring.by].ends_at
    assert end is not None, "expected what `with_an_end` gives"
    weights = prunable_weights(model, scoring.by, scoring.include_bias)
    gone = sum(int(np.count_nonzero(~w.mask)) for w in weights.values())
    selection = choose_masks(model, scoring, threshold=_first_end(model, end, scoring))
    if selection.report.pruned == gone:
        selection = choose_masks(model, scoring, threshold=end)
    if selection.report.pruned > gone:
        apply_masks(model, selection.masks)
        remove_dead(model)
    return selection.report, selection.report.pruned > gone


def _first_end(model: Any, end: float, scoring: Scoring) -> float:
    """The threshold of the next step."""
    if scoring.granularity != "unit":
        return end
    weights = prunable_weights(model, scoring.by, scoring.include_bias)
    below = np.sort(unit_ranking(model, weights, scoring).scores)
    below = below[below < end]
    return float(below[len(below) // 10 + 1]) if len(below) > 1 else end


def _ending(model: Any, granularity: Granularity) -> Criterion:
    """The criterion of a request without an extent."""
    if model is None:
        return "evidence"
    if default_criterion(model) == "magnitude":
        raise PruneError("give either sparsity or threshold, got neither: plain weights have no evidence to go by")
    said = {layer.prior.units_end_by for layer in variational_layers(model)}
    return said.pop() if granularity == "unit" and len(said) == 1 else "evidence"


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
