"""The weights of a layer as arrays, whatever kind it is of: the one place where a layer is taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune.layers.distribution import Posterior
from tfp_bprune.layers.kind import Kind, kind_of, kinds
from tfp_bprune.layers.variational import Variational


@dataclass(frozen=True)
class Weights:
    """One weight tensor of a layer.

    Attributes:
      loc: means, 0 where pruned.
      scale: standard deviations of its shape, 0 where pruned; None for weights that are certain.
      mask: which weights are left: those not pruned, or of a plain layer those that are not 0.
      posterior: the distribution; None for weights that are certain.
      variable: the variable of weights that are certain; None where there is a distribution.
    """

    loc: np.ndarray
    scale: np.ndarray | None
    mask: np.ndarray
    posterior: Posterior | None = None
    variable: Any = None

    @property
    def uncertain(self) -> bool:
        """Whether the weights have a distribution."""
        return self.posterior is not None

    @property
    def variance(self) -> np.ndarray | None:
        """Variances; None for weights that are certain."""
        return None if self.scale is None else np.square(self.scale)

    def keep_only(self, mask: np.ndarray) -> None:
        """Removes from the layer the weights whose mask is False."""
        if self.posterior is not None:
            self.posterior.keep_only(mask)
        else:
            self.variable.assign(np.where(mask, self.variable.numpy(), 0))

    def copy_slice(self, other: Weights, index: tuple[np.ndarray, ...]) -> None:
        """Gives the layer the entries `index` of the weights `other` of a larger one, masks and all."""
        if self.posterior is not None and other.posterior is not None:
            self.posterior.copy_slice(other.posterior, index)
        else:
            self.variable.assign(other.loc[index])

    def shift(self, by: np.ndarray) -> None:
        """Adds to the means in the layer."""
        if self.posterior is not None:
            self.posterior.shift(by)
        else:
            self.variable.assign_add(by.astype(self.variable.dtype.as_numpy_dtype))


def weights_of(layer: Any) -> dict[str, Weights]:
    """The kernels of a layer that is of some kind, in their order, and "bias", if there is one; plain or Bayesian.

    Raises:
      ValueError: the layer is of no kind, or one of tfp.layers.
    """
    kind = kind_of(layer)
    raw = kind is not None and isinstance(layer, tuple(kind.raw)) and not isinstance(layer, Variational)
    if kind is None or raw:
        names = ", ".join(kind.name for kind in kinds())
        raise ValueError(f"layer {layer.name!r} is a {type(layer).__name__}: expected a layer of the kinds {names}")
    return {name: _weights(layer, name) for name in names_of(layer, kind)}


def kernels_of(layer: Any) -> dict[str, Weights]:
    """`weights_of` without the bias."""
    return {name: weights for name, weights in weights_of(layer).items() if name != "bias"}


def names_of(layer: Any, kind: Kind) -> list[str]:
    """The names of the weight tensors that a layer has."""
    has_bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, Variational):
        has_bias |= "bias" in layer.posteriors
    return [*kind.kernels, *(["bias"] if has_bias else [])]


def _weights(layer: Any, name: str) -> Weights:
    posterior = layer.posteriors.get(name) if isinstance(layer, Variational) else None
    if posterior is not None:
        return Weights(posterior.loc.numpy(), posterior.scale.numpy(), posterior.mask.numpy(), posterior)
    variable = getattr(layer, name)
    value = variable.numpy()
    return Weights(value, None, value != 0, variable=variable)
