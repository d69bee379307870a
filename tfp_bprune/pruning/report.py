"""What a pruning did, counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from tfp_bprune.graphs.inputs import InputUse
from tfp_bprune.types import Criterion, Granularity, Json, Scope


@dataclass(frozen=True)
class LayerSparsity:
    """Pruned and prunable weights of one tensor, named `layer/kernel` or `layer/bias`.

    Attributes:
      multiplied: how often an example multiplies each; None where that cannot be followed.
    """

    name: str
    prunable: int
    pruned: int
    multiplied: int | None = None

    @property
    def sparsity(self) -> float:
        """pruned / prunable."""
        return self.pruned / self.prunable


@dataclass(frozen=True)
class Report:
    """What was pruned, counted on the masks of the pruned model.

    Attributes:
      criterion, scope, granularity: as given to `prune`.
      requested: the sparsity or threshold that was asked for, and what it `counts` if not the weights; or the criterion that chose
        the sparsity.
      threshold: the lowest score that was kept, of a weight or of a unit.
      ties: how many kept weights have the same score as the highest that was removed; among these, position decided.
      layers: counts for each weight tensor.
      pinned: with granularity "unit", the tensors from which no unit can be removed: they make outputs, or are read by a layer
        through which channels cannot be followed.
      scores: of the posterior mean on the validation data given to `prune`, "before" and "after", by name; else empty.
      inputs: what is still read of each input of the network, by name (`InputUse`); empty where that cannot be followed.
    """

    criterion: Criterion
    scope: Scope
    granularity: Granularity
    requested: Json
    threshold: float
    ties: int
    layers: list[LayerSparsity] = field(default_factory=list)
    pinned: list[str] = field(default_factory=list)
    inputs: dict[str, InputUse] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

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

    @property
    def multiplications(self) -> tuple[int, int] | None:
        """Of an example by prunable weights: those by weights that are left, and all; None where that cannot be followed."""
        if any(layer.multiplied is None for layer in self.layers):
            return None
        each = [(layer.multiplied or 0, layer) for layer in self.layers]
        return sum(n * (one.prunable - one.pruned) for n, one in each), sum(n * one.prunable for n, one in each)

    @property
    def counted(self) -> float:
        """The part that is gone of what the request counts."""
        if "counts" not in self.requested or self.multiplications is None:
            return self.sparsity
        left, whole = self.multiplications
        return 1 - left / whole

    @property
    def reached(self) -> bool:
        """Whether as much is gone as was asked for, but for the rounding to whole weights, which units are not subject to; of a
        threshold always."""
        rounding = 1e-9 if self.granularity == "unit" else 0.5 * (len(self.layers) + 1) / self.prunable
        return self.counted >= self.requested.get("sparsity", 0.0) - rounding

    @property
    def missed(self) -> str:
        """What was asked for, what was reached, and why that is less, in one line; empty where it was reached."""
        if self.reached:
            return ""
        held = f"; no unit of {_listed(self.pinned)} can go" if self.pinned else ""
        return (
            f"pruning by {self.granularity} reached a sparsity of {self.counted:.4f}, asked for "
            f"{self.requested['sparsity']:g}: every layer keeps a {self.granularity}{held}; prune by weight, or ask for less"
        )

    def to_json(self) -> Json:
        """The report as plain data."""
        counts = {
            "sparsity": self.sparsity,
            "reached": self.reached,
            "prunable": self.prunable,
            "nonzeros": self.prunable - self.pruned,
        }
        told = {name: value for name, value in asdict(self).items() if name != "scores" or value}
        return told | {
            **counts,
            "layers": [asdict(layer) | {"sparsity": layer.sparsity} for layer in self.layers],
            "inputs": {name: use.to_json() for name, use in self.inputs.items()},
        }


def _listed(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name.removesuffix("/kernel") for name in names[:most]) + more
