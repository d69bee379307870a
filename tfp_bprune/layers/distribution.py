"""What a posterior over one weight tensor is, whatever its family: all that the rest of the package asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune._registry import Registry
from tfp_bprune.layers.axes import Axes, Sides
from tfp_bprune.layers.names import sliced
from tfp_bprune.layers.prior import Normals, Prior, ScaleMixturePrior

Moment = Literal["deviation", "variance"]


@dataclass(frozen=True)
class Terms:
    """What the forward pass and the loss take from a weight tensor.

    Attributes:
      loc: posterior mean, 0 where pruned.
      second: one draw of w - loc ("deviation"), or its variance ("variance"); 0 where pruned.
      kl: the KL in nats: exact, or an estimate, with "deviation" from the draw that `second` is.

    Estimators take w - loc for symmetric and independent from weight to weight. What weights have in common, as a scale of
    their group, is drawn before: `loc` and `second` are then those given that draw, other ones in each pass.
    """

    loc: Any
    second: Any
    kl: Any


def log_density_at_zero(loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log q(0) = log N(0 | mu, sigma^2) in nats; any shape. High where 0 is a likely value of the weight.

    A weight with sigma = 0 is certain: infinite where mu is 0 too, minus infinity elsewhere.
    """
    loc, scale = np.asarray(loc, np.float64), np.asarray(scale, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = -0.5 * np.log(2 * np.pi) - np.log(scale) - 0.5 * np.square(loc / scale)
    return np.where(scale > 0, density, np.where(loc == 0, np.inf, -np.inf))


class Posterior(ABC):
    """A distribution over one weight tensor, in which some weights are removed: they are 0 in every draw. Base class of posteriors.

    To write one, derive a class with `create`, `parts`, `loc`, `scale`, `sample_centred`, `kl` and `assign`; everything else
    follows. Register it with `register_posterior` and name it in the config of a layer (`posterior="kind"`). `loc` and `scale`
    describe the marginal distribution of each weight, and are 0 where it is pruned.

    Attributes:
      kind: the name that it is registered by.
      mask: boolean variable of the weight's shape, not trained: True for the weights that are left.
      prior, prior_variables: its prior, and the variables that the prior owns, by name.
      sides: the axes of the inputs and of the outputs of the weight, set by the layer.
      changes: how often `keep_only` has changed the mask.
    """

    kind: ClassVar[str]

    def __init__(self, mask: Any, prior: Prior | None = None, prior_variables: Mapping[str, Any] | None = None) -> None:
        self.mask, self.changes, self.sides = mask, 0, Sides()
        self.prior = prior or ScaleMixturePrior()
        self.prior_variables = dict(prior_variables or {})

    @classmethod
    @abstractmethod
    def create(
        cls,
        add_weight: Callable[..., Any],
        name: str,
        shape: Any,
        rho_init: float,
        seed: int,
        loc_initializer: Any = None,
        loc_constraint: Any = None,
        fan_in: int | None = None,
    ) -> Any:
        """A new one, of variables `{name}_{part}` made by a layer's `add_weight`, the mask after its own parts.

        Args:
          loc_initializer, loc_constraint: of the means; None or Keras's.
          fan_in: weights that an output reads; by default all but those of the last axis.
        """

    def take(self, prior: Prior, add_weight: Callable[..., Any], name: str, axes: Axes) -> None:
        """Receives its prior and the prior's variables, once `sides` is known; arguments as in `create`."""
        self.prior = prior
        self.prior_variables = prior.add_variables(add_weight, name, tuple(self.shape), axes)

    @property
    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Its own variables by name; those of other shapes than the weight's broadcast to it."""

    @property
    @abstractmethod
    def loc(self) -> Any:
        """Mean of each weight, 0 where pruned."""

    @property
    @abstractmethod
    def scale(self) -> Any:
        """Standard deviation of each weight, 0 where pruned."""

    @abstractmethod
    def sample_centred(self, seed: Any) -> Any:
        """One draw of w - loc, of the weight's shape; `seed` is a stateless seed [2]."""

    @abstractmethod
    def kl(self, sample: Any) -> Any:
        """KL from the prior in nats, a scalar with a gradient; pruned weights cost nothing. `sample` is a draw of w."""

    @abstractmethod
    def assign(self, loc: np.ndarray, scale: np.ndarray | None = None) -> None:
        """Sets the marginal means to `loc` and, if given, the standard deviations to `scale`; both have the weight's shape."""

    @property
    def normals(self) -> Normals:
        """Normal distributions with its means and standard deviations."""
        scale = self.scale
        return Normals(self.loc, scale, tf.math.log(tf.where(self.mask, scale, 1.0)), self.mask, self.sides)

    @property
    def shape(self) -> Any:
        """Shape of the weight tensor."""
        return self.mask.shape

    @property
    def variables(self) -> dict[str, Any]:
        """All variables by name: its own, the mask, and the prior's."""
        return self.parts | {"mask": self.mask} | self.prior_variables

    @property
    def resting(self) -> list[tuple[Any, float]]:
        """The variables of the weight's shape whose pruned entries have a fixed value, so that files can leave them out."""
        own = self.prior_variables
        return [(own[name], value) for name, value in self.prior.resting.items() if name in own]

    def sample(self, seed: Any) -> Any:
        """One draw of w, of the weight's shape; `seed` is a stateless seed [2]."""
        return self.loc + self.sample_centred(seed)

    def terms(self, moment: Moment, seeds: Callable[[str], Any], every_value: bool = True) -> Terms:
        """The terms of one training step; its gradient is TensorFlow's own.

        Args:
          seeds: gives a stateless seed [2] by the name of a stream.
          every_value: whether the KL's value has to be of all weights, and not of a sample of them.
        """
        loc, draw = self.loc, self.sample_centred(seeds("draw"))
        second = draw if moment == "deviation" else tf.square(self.scale)
        return Terms(loc, second, self.kl(loc + draw))

    def log_density_at_zero(self) -> np.ndarray:
        """log q(0) of each weight in nats; by default that of the normal with its mean and standard deviation."""
        return log_density_at_zero(self.loc.numpy(), self.scale.numpy())

    def log_prior_at_zero(self) -> np.ndarray:
        """log p(0) of each weight in nats, of the weight's shape."""
        found = self.prior.log_density_at_zero(self.normals, self.prior_variables)
        return np.broadcast_to(np.asarray(found, np.float64), tuple(self.shape))

    def prior_deviation(self) -> np.ndarray | None:
        """For a prior over groups, its standard deviation of each weight, in the weight's shape; else None."""
        found = self.prior.deviation(self.normals, self.prior_variables)
        return None if found is None else np.broadcast_to(np.asarray(found, np.float64), tuple(self.shape))

    def keep_only(self, mask: np.ndarray) -> None:
        """Removes the weights whose mask is False."""
        self.mask.assign(mask)
        # The mask alone decides; the mean is zeroed besides so that a reader of the raw variable is not misled. With one
        # value for all pruned entries of a variable, a file can leave them out and lose nothing.
        for variable, value in self.resting:
            variable.assign(tf.where(self.mask, variable, tf.cast(value, variable.dtype)))
        self.changes += 1

    def shift(self, by: np.ndarray) -> None:
        """Adds to the means."""
        self.assign(self.loc.numpy() + by)

    def copy_slice(self, other: Posterior, index: tuple[np.ndarray, ...]) -> None:
        """Copies the entries `index`, an open mesh, of a larger posterior of its family, and of the prior's variables."""
        larger = other.variables
        for name, own in self.variables.items():
            own.assign(sliced(name, larger[name].numpy(), tuple(other.shape), tuple(own.shape), index))


POSTERIORS: Registry[type[Posterior]] = Registry("posterior")


def register_posterior(family: type[Posterior]) -> type[Posterior]:
    """Registers a family of posteriors by its `kind`, for `posterior="kind"` of a layer; a decorator.

    Raises:
      BpruneError: the name is taken by another class.
    """
    return POSTERIORS.add(family.kind, family, family)
