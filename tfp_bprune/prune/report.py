"""What a pruning did, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from tfp_bprune.types import Criterion, Granularity, Json, Scope


@dataclass(frozen=True)
class LayerSparsity:
    """Pruned and prunable weights of one tensor, named `layer/kernel` or `layer/bias`."""

    name: str
    prunable: int
    pruned: int

    @property
    def sparsity(self) -> float:
        """pruned / prunable."""
        return self.pruned / self.prunable


@dataclass(frozen=True)
class Report:
    """What a pruning did, counted on the masks that it left.

    Attributes:
      criterion, scope, granularity: as asked.
      requested: the sparsity or threshold asked for.
      threshold: the lowest score that was kept, of a weight or of a unit.
      ties: kept weights whose score equals the highest that went; the cut among them was by position.
      layers: counts by weight tensor.
    """

    criterion: Criterion
    scope: Scope
    granularity: Granularity
    requested: Json
    threshold: float
    ties: int
    layers: list[LayerSparsity] = field(default_factory=list)

    @property
    def prunable(self) -> int:
        """Weights that could have gone."""
        return sum(layer.prunable for layer in self.layers)

    @property
    def pruned(self) -> int:
        """Weights that are gone."""
        return sum(layer.pruned for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """pruned / prunable."""
        return self.pruned / self.prunable

    def to_json(self) -> Json:
        """The report as plain data."""
        counts = {"sparsity": self.sparsity, "prunable": self.prunable, "nonzeros": self.prunable - self.pruned}
        return (
            asdict(self) | counts | {"layers": [asdict(layer) | {"sparsity": layer.sparsity} for layer in self.layers]}
        )
