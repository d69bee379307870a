"""How weights are ranked: the arguments of `prune` that travel together, checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

from tfp_bprune.graphs.convert import is_raw
from tfp_bprune.layers import Variational
from tfp_bprune.pruning.masks import check_scope
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.types import Aggregate, Counts, Criterion, Granularity, PruneError, Scope


@dataclass(frozen=True)
class Scoring:
    """What is ranked, by what, and among what.

    Attributes:
      criterion: by what; None for what suits a model, see `of`.
      scope: among all layers together, or in each by itself.
      granularity: single weights, or whole units.
      aggregate: how a unit's weights make its score.
      include_bias: whether Bayesian biases are among the weights.
      inputs: whether inputs of layers that are no units by themselves are ranked among units.
      counts: what a sparsity is a part of: the weights, or the multiplications that they take.

    Raises:
      PruneError: a word that is none of those that there are.
    """

    criterion: Criterion | None = None
    scope: Scope = "global"
    granularity: Granularity = "weight"
    aggregate: Aggregate = "max"
    include_bias: bool = False
    inputs: bool = False
    counts: Counts = "weights"

    def __post_init__(self) -> None:
        if self.criterion is not None and self.criterion not in list(CRITERIA):
            raise PruneError(f"unknown criterion {self.criterion!r}: expected one of {', '.join(CRITERIA)}")
        check_scope(self.scope)
        if self.granularity not in get_args(Granularity):
            raise PruneError(f"granularity must be 'weight' or 'unit', got {self.granularity!r}")
        if self.inputs and self.granularity != "unit":
            raise PruneError("inputs=True needs granularity='unit': single weights do not remove a whole input")
        if self.counts not in get_args(Counts):
            raise PruneError(f"unknown counts {self.counts!r}: expected one of {', '.join(get_args(Counts))}")
        if self.counts == "multiplications" and self.granularity != "unit":
            raise PruneError(
                "counts='multiplications' needs granularity='unit': single weights save none in dense kernels"
            )
        if self.aggregate not in get_args(Aggregate):
            raise PruneError(f"unknown aggregate {self.aggregate!r}: expected one of {', '.join(get_args(Aggregate))}")

    def of(self, model: Any) -> Scoring:
        """The same for `model`, with the criterion that suits it where none was said."""
        return self if self.criterion is not None else replace(self, criterion=default_criterion(model))

    @property
    def by(self) -> Criterion:
        """The criterion, once it is settled."""
        assert self.criterion is not None, "expected what `of` gives"
        return self.criterion


def default_criterion(model: Any) -> Criterion:
    """ "snr" where some weight has a distribution, else "magnitude"."""
    layers = model._flatten_layers(include_self=False)
    return "snr" if any(isinstance(layer, Variational) or is_raw(layer) for layer in layers) else "magnitude"
