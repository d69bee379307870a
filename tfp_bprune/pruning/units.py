"""What is known of each unit: how much speaks for it, and the scale that a prior over groups gives its weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune.graphs.convert import adopt
from tfp_bprune.layers import Weights
from tfp_bprune.pruning import groups
from tfp_bprune.pruning.scoring import Scoring
from tfp_bprune.pruning.select import prunable_weights, unit_ranking
from tfp_bprune.types import Json


def units_table(model: Any, *, inputs: bool = False) -> list[Json]:
    """A row for each unit, layer by layer, as they are numbered in it.

    Args:
      model: with Bayesian layers.
      inputs: whether inputs of layers that are no units by themselves have rows too, by the tensor that reads them.

    Returns:
      Rows of `layer`, the tensor that makes the unit, or reads the input; `unit`, its number; `removable`, whether it may go;
      `weights`, how many that belong to it are left, on all its sides; `evidence`, in nats by weight, and `snr` ("norm"), as
      `prune` ranks by; `scale`, the deviation that the prior over groups gives its weights, on the side where it is
      less (root mean square; 0 where none is left), None under other priors.

    Raises:
      PruneError: nothing to prune, channels cannot be followed, or a weight is NaN or infinite.

    Example:
      pandas.DataFrame(bp.pruning.units_table(model)).groupby("layer").scale.describe()
    """
    model = adopt(model)
    weights = prunable_weights(model, "evidence")
    evidence = unit_ranking(model, weights, Scoring("evidence", granularity="unit", inputs=inputs))
    snr = unit_ranking(model, weights, Scoring("snr", granularity="unit", inputs=inputs, aggregate="norm"))
    units, left = evidence.units, {name: w.mask for name, w in weights.items()}
    about = {"evidence": evidence.scores, "snr": snr.scores, "scale": _scales(units, weights)}
    counts = groups.unit_counts(units, left)
    return [
        {"layer": side.tensor, "unit": number, "removable": bool(units.removable[label]), "weights": int(counts[label])}
        | {name: None if values is None else float(values[label]) for name, values in about.items()}
        for side in units.layers
        for number, label in enumerate(side.labels)
    ]


def _scales(units: groups.Units, weights: dict[str, Weights]) -> np.ndarray | None:
    """The deviation that the priors give each unit's weights; [labels]. None where some prior is not over groups."""
    found = {name: None if w.posterior is None else w.posterior.prior_deviation() for name, w in weights.items()}
    variances = {name: np.square(s) for name, s in found.items() if s is not None}
    if len(variances) < len(weights):
        return None
    left = {name: w.mask for name, w in weights.items()}
    return np.sqrt(groups.least_means(units, variances, left))
