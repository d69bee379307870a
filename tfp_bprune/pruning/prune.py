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
    """Removes the weights with the lowest scores: their mean and standard deviation are 0 in every draw, for good.

    Args:
      model: a functional or sequential Keras model of this package's layers; of raw tfp.layers, which come back as this
        package's; or of plain Keras layers, which are pruned by magnitude. A Keras 3 model or the path of a `.keras` file comes
        back as a model of tf_keras.
      sparsity: fraction of the prunable weights to remove in all, in [0, 1); weights removed earlier count.
      threshold: instead of `sparsity`, remove what scores below this: an SNR, a magnitude, or nats of evidence (for a unit, nats per
        weight). With neither, the evidence decides: all weights go whose removal raises the log evidence, and then those that
        are no longer on a path from input to output. Units under the priors "normal_jeffreys" and "horseshoe" go by "log_alpha"
        then. `report.requested` names the criterion.
      criterion: "snr", |mu| / sigma (Blundell et al. 2015, section 5.1); "magnitude", |mu| (Han et al. 2015); "evidence",
        log p(0) - log q(0) in nats (Friston and Penny 2011); "log_alpha", log((E z)^2 / Var z) of the scale z that a group
        shares (Louizos et al. 2017), which ends at 3; or a registered one. By default "snr", for a model without Bayesian
        layers "magnitude", and with neither sparsity nor threshold "evidence".
      scope: "global" ranks the weights of all layers together; "layer" removes the same fraction of every layer's weights or
        units.
      include_bias: whether Bayesian biases can be pruned too (granularity "weight").
      granularity: "weight", or "unit" for whole neurons and filters, which makes the network smaller and faster, not only sparser.
        `sparsity` is then the least fraction of weights to remove.
      aggregate: how the weights of a unit make its score: "max", "mean" or "norm"; see `pruning.groups.unit_scores`.
      inputs: with granularity "unit", whether features of the model's input can be removed too, and single positions of a filter
        whose flattened output a dense layer reads.
      counts: with granularity "unit", what `sparsity` is a fraction of: the "weights", or the "multiplications" for an example, of
        which a filter has one for each position. With "multiplications", criteria whose scores add up, such as "evidence", rank
        units by their score per multiplication.
      strict: raise an error if the sparsity cannot be reached; otherwise a warning says so, and `report.missed`.
      validation_data: (x, y), a split, all splits (the validation split is used) or batches of (x, y), on which the posterior mean
        is scored before and after (`report.scores`). A warning says if much was lost.

    Returns:
      The pruned model, not compiled, and a `Report` with `sparsity`, `layers` and `scores`. `model` itself is not changed.

    Raises:
      PruneError: both sparsity and threshold are given, or neither with a criterion that cannot choose the sparsity; one is out of
        range; weights are NaN; there is nothing to prune; or, if `strict`, the sparsity is not reached.
      BpruneError: the model is subclassed or not built, so that its graph is unknown.

    Example:
      pruned, report = bp.prune(model, sparsity=0.9)
      report.sparsity, [(layer.name, layer.sparsity) for layer in report.layers]
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
      PruneError: the criterion cannot choose the sparsity, or the weights of `model` have no distribution.
    """
    criterion = scoring.criterion or _ending(model, scoring.granularity)
    if CRITERIA[criterion].ends_at is None:
        raise PruneError(
            f"give either sparsity or threshold, got neither: criterion {criterion!r} cannot choose the sparsity, as these "
            f"can: {', '.join(repr(name) for name, known in CRITERIA.items() if known.ends_at is not None)}"
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
        raise PruneError("give either sparsity or threshold, got neither: plain weights have no evidence")
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
