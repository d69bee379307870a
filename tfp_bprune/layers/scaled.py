"""The posterior that goes with priors over scales: a product of a group's scale and a normal of each weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.layers.axes import Axes
from tfp_bprune.layers.distribution import Moment, Posterior, Terms, log_density_at_zero, register_posterior
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.layers.prior import NormalPrior, Prior
from tfp_bprune.layers.scales import NormalJeffreysPrior, ScalePrior
from tfp_bprune.types import BpruneError


@register_posterior
class Scaled(Posterior):
    """w = z v: z by the `ScalePrior`, whose variables say q(z), and q(v) independent normals, some of them removed.

    A forward pass draws z once, for all weights of a group and all examples; given z the weights are normals of the means
    z mu_v and deviations z sigma_v, which estimators draw as they do others. `loc` and `scale` are of the marginal
    distribution of each weight, which is what is pruned by, exported and carried by moments; that the weights of a group have z
    in common is not in them.

    Args:
      weight: q(v), and the mask.
      prior, prior_variables: of z; v ~ N(0, 1).
    """

    kind = "scaled"
    prior: ScalePrior

    def __init__(
        self, weight: MaskedNormal, prior: ScalePrior | None = None, prior_variables: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(weight.mask, prior or NormalJeffreysPrior(), prior_variables)
        weight.prior, weight.prior_variables = NormalPrior(), {}
        self.weight, self._rho = weight, -5.0

    @classmethod
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
    ) -> Scaled:
        """v starts as a weight does, and z as near to 1 as v to its mean."""
        options = (loc_initializer, loc_constraint, fan_in)
        made = cls(MaskedNormal.create(add_weight, name, shape, rho_init, seed, *options))
        made._rho = rho_init
        return made

    def take(self, prior: Prior, add_weight: Callable[..., Any], name: str, axes: Axes) -> None:
        """As any posterior's.

        Raises:
          BpruneError: the prior has no scales.
        """
        if not isinstance(prior, ScalePrior):
            raise BpruneError(
                f"posterior {self.kind!r} is for priors over scales, 'normal_jeffreys' and 'horseshoe', got prior {prior.kind!r}"
            )
        self.prior = prior
        self.prior_variables = prior.add_scales(add_weight, name, tuple(self.shape), self.sides, self._rho)

    @property
    def parts(self) -> dict[str, Any]:
        """Those of v."""
        return self.weight.parts

    @property
    def loc(self) -> Any:
        """E z mu_v, 0 where pruned."""
        loc = self.weight.loc
        return loc * tf.cast(self.prior.moments(self.prior_variables).mean, loc.dtype)

    @property
    def scale(self) -> Any:
        """The root of E z^2 sigma_v^2 + Var z mu_v^2, 0 where pruned."""
        z, loc, scale = self.prior.moments(self.prior_variables), self.weight.loc, self.weight.scale
        mean, variance = (tf.cast(part, loc.dtype) for part in z)
        whole = (tf.square(mean) + variance) * tf.square(scale) + variance * tf.square(loc)
        return tf.where(self.mask, tf.sqrt(tf.where(self.mask, whole, 1.0)), 0.0)  # the root of 0 has no slope

    def sample_centred(self, seed: Any) -> Any:
        """A draw of z, and one of v for each weight."""
        first, second = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        v, z = self.weight.sample(second), self.prior.draw(self.prior_variables, first)
        return tf.cast(z, v.dtype) * v - self.loc

    def kl(self, sample: Any = None) -> Any:
        """KL of v from N(0, 1), and of z once a group."""
        return self.weight.kl(None) + self.prior.kl_of_scales(self.prior_variables, self.mask)

    def terms(self, moment: Moment, seeds: Callable[[str], Any], every_value: bool = True) -> Terms:
        """Mean and noise of the weights given a draw of z."""
        v, z = self.weight.terms(moment, seeds, every_value), self.prior.draw(self.prior_variables, seeds("scales"))
        by = tf.square(z) if moment == "variance" else z
        kl = v.kl + self.prior.kl_of_scales(self.prior_variables, self.mask)
        return Terms(tf.cast(z, v.loc.dtype) * v.loc, tf.cast(by, v.second.dtype) * v.second, kl)

    def assign(self, loc: np.ndarray, scale: np.ndarray | None = None) -> None:
        """Puts v there, over E z; with deviations, all noise is v's, and z is certain."""
        if scale is not None:
            self.prior.make_certain(self.prior_variables)
        mean = self.prior.moments(self.prior_variables).mean.numpy()
        self.weight.assign(loc / mean, None if scale is None else scale / np.abs(mean))

    @property
    def resting(self) -> list[tuple[Any, float]]:
        """Those of v."""
        return [*self.weight.resting, *super().resting]

    def log_density_at_zero(self) -> np.ndarray:
        """log q(v = 0) of each weight in nats: w is 0 where v is, whatever z."""
        return log_density_at_zero(self.weight.loc.numpy(), self.weight.scale.numpy())

    def log_prior_at_zero(self) -> np.ndarray:
        """log p(v = 0) of each weight in nats."""
        return self.weight.log_prior_at_zero()

    def prior_deviation(self) -> np.ndarray:
        """The root of E z^2 of each weight."""
        mean, variance = self.prior.moments(self.prior_variables)
        return np.broadcast_to(np.sqrt(np.asarray(mean**2 + variance, np.float64)), tuple(self.shape))

    def log_alpha(self) -> np.ndarray:
        """log Var z / (E z)^2 of each weight."""
        return np.broadcast_to(self.prior.log_alpha(self.prior_variables).numpy(), tuple(self.shape))
