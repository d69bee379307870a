"""`prune`: a new Keras model without the weights that carry no signal, and a report of what went."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tfp_bprune.layers import Variational
from tfp_bprune.models.convert import adopt, kind_of
from tfp_bprune.models.rebuild import rebuild
from tfp_bprune.prune import masks as masking
from tfp_bprune.prune.scores import CRITERIA
from tfp_bprune.types import Criterion, Json, PruneError, Scope


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
      criterion, scope: as asked.
      requested: the sparsity or threshold asked for.
      threshold: the lowest score that was kept.
      ties: kept weights whose score equals the highest that went; the cut among them was by position.
      layers: counts by weight tensor.
    """

    criterion: Criterion
    scope: Scope
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


@dataclass(frozen=True)
class Weights:
    """One prunable tensor as arrays; plain Keras layers have no scale."""

    loc: np.ndarray
    scale: np.ndarray | None
    mask: np.ndarray


def prune(
    model: Any,
    sparsity: float | None = None,
    threshold: float | None = None,
    criterion: Criterion = "snr",
    scope: Scope = "global",
    include_bias: bool = False,
) -> tuple[Any, Report]:
    """Removes the weights of lowest score: mu = 0 and sigma = 0, in every draw, in memory and after reload.

    Args:
      model: a functional or sequential Keras model of this package's layers, of raw tfp.layers (which come back as
        this package's), or, with criterion "magnitude", of plain Keras layers (whose kernels get zeros).
      sparsity: fraction of the prunable weights to remove in all, in [0, 1); weights gone before count.
      threshold: or remove what scores below this (an SNR, or a magnitude).
      criterion: "snr", |mu| / sigma (Blundell et al. 2015, section 5.1), or "magnitude", |mu| (Han et al. 2015).
      scope: "global" ranks all layers together, "layer" each by itself.
      include_bias: whether biases are prunable too; plain Keras layers' are not.

    Returns:
      The pruned model, not compiled, and a `Report`. `model` itself stays as it is.

    Raises:
      PruneError: both or none of sparsity and threshold, one out of range, NaN weights, or nothing to prune.
      BpruneError: the model's graph is not known to Keras.
    """
    if (sparsity is None) == (threshold is None):
        raise PruneError(f"give either sparsity or threshold, got sparsity={sparsity} and threshold={threshold}")
    if criterion not in CRITERIA:
        raise PruneError(f"unknown criterion {criterion!r}: expected one of {', '.join(CRITERIA)}")
    model = adopt(model)
    weights = prunable_weights(model, criterion, include_bias)
    before = {name: w.mask for name, w in weights.items()}
    scores = {name: scored(name, w, criterion) for name, w in weights.items()}
    if sparsity is not None:
        masks = masking.masks_at_sparsity(scores, sparsity, scope, before)
    else:
        masks = masking.masks_at_threshold(scores, threshold or 0.0, before)
    pruned = with_masks(model, masks)
    kept = np.concatenate([scores[name][masks[name]] for name in masks])
    layers = [LayerSparsity(name, m.size, m.size - int(np.count_nonzero(m))) for name, m in masks.items()]
    requested = {"sparsity": sparsity} if sparsity is not None else {"threshold": threshold}
    lowest = float(kept.min()) if kept.size else float("inf")
    return pruned, Report(criterion, scope, requested, lowest, masking.ties(scores, masks, before, scope), layers)


def prunable_weights(model: Any, criterion: Criterion = "snr", include_bias: bool = False) -> dict[str, Weights]:
    """The tensors of `model` that `prune` ranks, by name (`layer/kernel`, `layer/bias`).

    Raises:
      PruneError: there are none.
    """
    found: dict[str, Weights] = {}
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, Variational):
            for name, q in layer.posteriors.items():
                if name == "kernel" or include_bias:
                    found[f"{layer.name}/{name}"] = Weights(q.loc.numpy(), q.scale.numpy(), q.mask.numpy())
        elif criterion == "magnitude" and kind_of(layer):
            kernel = layer.kernel.numpy()
            found[f"{layer.name}/kernel"] = Weights(kernel, None, kernel != 0)
    if not found:
        hint = "; plain Keras layers have no sigma, use criterion='magnitude'" if criterion == "snr" else ""
        raise PruneError(f"model {model.name!r} has nothing to prune: expected Bayesian Dense or Conv layers{hint}")
    return found


def scored(name: str, weights: Weights, criterion: Criterion) -> np.ndarray:
    """The scores of one tensor.

    Raises:
      PruneError: a weight is NaN or infinite.
    """
    for part in (weights.loc, weights.scale):
        if part is not None and not np.isfinite(part).all():
            count = np.count_nonzero(~np.isfinite(part))
            raise PruneError(
                f"{name} has {count} weights of {part.size} that are NaN or infinite: expected a trained model; train it anew"
            )
    return CRITERIA[criterion](weights.loc, weights.scale)


def with_masks(model: Any, masks: dict[str, np.ndarray]) -> Any:
    """A copy of `model` in which the weights whose mask is False are gone."""
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    for layer in copy._flatten_layers(include_self=False):
        for part in ("kernel", "bias"):
            mask = masks.get(f"{layer.name}/{part}")
            if mask is not None:
                _apply(layer, part, mask)
    return copy


def _apply(layer: Any, part: str, mask: np.ndarray) -> None:
    if not isinstance(layer, Variational):
        layer.kernel.assign(layer.kernel.numpy() * mask)
        return
    posterior = layer.posteriors[part]
    posterior.mask.assign(mask)
    # The mask alone decides; the mean is zeroed besides so that a reader of the raw variable is not misled.
    posterior.loc_variable.assign(posterior.loc)
