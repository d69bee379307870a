"""Priors over the scale of each group of weights: normal-Jeffreys and horseshoe (Louizos et al. 2017, arXiv 1705.08665).

A weight is w = z v: z a scale that the weights of its group share, v ~ N(0, 1) a weight of its own. Where the data want none of
the weights, z is left to its prior, whose mass is at 0 and whose tails let all others be as large as they are.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.axes import Sides, axes_of_one, check_groups
from tfp_bprune.layers.names import of_part
from tfp_bprune.layers.posterior import log_scale_of, scale_of
from tfp_bprune.layers.prior import Prior, Variables, register_prior
from tfp_bprune.types import BpruneError, Groups, Json

SHARED = "shared"  # of parts that all groups of a tensor share, the beginning of the name
_LEAST_SQUARE = 1e-12  # of a mean, so that its logarithm and slope are finite
_CERTAIN = -20.0  # rho of a scale without noise


class Normal(NamedTuple):
    """q of one part of the scales: its mean, deviation, and the log of that; of a shape that broadcasts to the weight's."""

    loc: Any
    scale: Any
    log_scale: Any


class Scales(NamedTuple):
    """Mean and variance of the scales of one side, of a shape that broadcasts to the weight's."""

    mean: Any
    variance: Any


class ScalePrior(Prior):
    """A prior of w = z v with a scale z for each group and v ~ N(0, 1) for each weight.

    A new one says what z is made of, `parts`, and how; each part has a normal posterior of its own, whose mean and rho are
    trained. With groups of both sides z is the product of the scales of its input and its output, independent of each other.

    Args:
      groups: as in `ARDPrior`.

    Attributes:
      parts: where the means of the parts start, by name; those whose name begins with "shared" are one for all groups.
    """

    family = "scaled"
    units_end_by = (
        "log_alpha"  # the evidence of v says little of units, most of whose weights may be noise while some are needed
    )
    exact = True
    about_zero = True

    def __init__(self, *, groups: Groups = "both") -> None:
        self.groups = check_groups(groups)

    @property
    @abstractmethod
    def parts(self) -> Mapping[str, float]:
        """See above."""

    @abstractmethod
    def scales(self, parts: Mapping[str, Normal]) -> Scales:
        """Mean and variance of the scales of a side."""

    @abstractmethod
    def scale_at(self, values: Mapping[str, Any]) -> Any:
        """The scales of a side at a draw of their parts."""

    @abstractmethod
    def kl_of(self, name: str, q: Normal) -> Any:
        """KL of each entry of a part from its prior, in nats."""

    def get_config(self) -> Json:
        """The arguments as JSON values."""
        return {"kind": self.kind, "groups": self.groups}

    def add_scales(
        self, add_weight: Callable[..., Any], name: str, shape: tuple[int, ...], sides: Sides, rho: float
    ) -> dict[str, Any]:
        """As `add_variables`, by the sides of the weight tensor; `rho` is where those of the parts start."""
        found = {}
        for side, axes in sides.groups(self.groups).items():
            for part, start in self.parts.items():
                own = () if part.startswith(SHARED) else axes
                of = [size if axis in own else 1 for axis, size in enumerate(shape)]
                for what, value in (("loc", start), ("rho", rho)):
                    variable = f"{side}_{part}_{what}"
                    initial = keras.initializers.Constant(value)
                    found[variable] = add_weight(name=of_part(name, variable), shape=of, initializer=initial)
        return found

    def moments(self, variables: Variables) -> Scales:
        """Mean and variance of z, of a shape that broadcasts to the weight's."""
        sides = [self.scales(parts) for parts in _sides(variables).values()]
        if len(sides) == 1:
            return sides[0]
        (a, b), (c, d) = sides
        return Scales(a * c, tf.square(a) * d + b * tf.square(c) + b * d)

    def draw(self, variables: Variables, seed: Any) -> Any:
        """One draw of z; `seed` is a stateless seed [2]."""
        z, sides = tf.ones([]), _sides(variables)
        seeds = iter(tf.unstack(tf.random.experimental.stateless_split(seed, sum(map(len, sides.values())))))
        for parts in sides.values():
            drawn = {
                n: q.loc + q.scale * tf.random.stateless_normal(q.loc.shape, next(seeds)) for n, q in parts.items()
            }
            z = z * self.scale_at(drawn)
        return z

    def kl_of_scales(self, variables: Variables, mask: Any) -> Any:
        """KL of all scales of groups of which a weight is left; a scalar, in nats."""
        total = tf.zeros([])
        for parts in _sides(variables).values():
            for name, q in parts.items():
                left = tf.reduce_any(mask, axes_of_one(q.loc.shape), keepdims=True)
                total += tf.reduce_sum(tf.where(left, self.kl_of(name.removeprefix(SHARED + "_"), q), 0.0))
        return total

    def log_alpha(self, variables: Variables) -> Any:
        """log Var z / (E z)^2: how much noise a group bears; large where nothing is lost with it."""
        mean, variance = self.moments(variables)
        return tf.math.log(variance) - tf.math.log(tf.square(mean) + _LEAST_SQUARE)

    def make_certain(self, variables: Variables) -> None:
        """Takes the noise from the scales."""
        for name, variable in variables.items():
            if name.endswith("_rho"):
                variable.assign(tf.fill(variable.shape, tf.constant(_CERTAIN, variable.dtype)))


def _sides(variables: Variables) -> dict[str, dict[str, Normal]]:
    """The posteriors of the parts, by side and name."""
    found: dict[str, dict[str, Normal]] = {}
    for name in variables:
        side, _, rest = name.partition("_")
        if rest.endswith("_loc"):
            part = rest.removesuffix("_loc")
            loc, rho = (
                tf.cast(tf.convert_to_tensor(variables[f"{side}_{part}_{w}"]), tf.float32) for w in ("loc", "rho")
            )
            found.setdefault(side, {})[part] = Normal(loc, scale_of(rho), log_scale_of(rho))
    return found


@register_prior
class NormalJeffreysPrior(ScalePrior):
    """Normal-Jeffreys prior: groups of weights share a scale z with p(z) proportional to 1 / |z| and a normal posterior.

    Louizos et al. 2017, section 4.1 (BC-GNJ). The KL of z depends only on log alpha = log sigma_z^2 - log mu_z^2 and has no
    closed form; it is approximated as in Molchanov et al. 2017 (arXiv 1701.05369, eq. 14), within .01 nats of quadrature.

    Args:
      groups: as in `ARDPrior`.

    Example:
      model = bp.bayesianize(plain, prior="normal_jeffreys")
    """

    kind = "normal_jeffreys"
    parts: ClassVar[Mapping[str, float]] = {"z": 1.0}

    def scales(self, parts: Mapping[str, Normal]) -> Scales:
        """Those of a normal."""
        return Scales(parts["z"].loc, tf.square(parts["z"].scale))

    def scale_at(self, values: Mapping[str, Any]) -> Any:
        """z."""
        return values["z"]

    def kl_of(self, name: str, q: Normal) -> Any:
        """k1 - k1 sigmoid(k2 + k3 log alpha) + softplus(-log alpha) / 2, which falls to 0 where z is noise."""
        log_alpha = 2 * q.log_scale - tf.math.log(tf.square(q.loc) + _LEAST_SQUARE)
        k1, k2, k3 = 0.63576, 1.87320, 1.48695
        return k1 * tf.math.sigmoid(-k2 - k3 * log_alpha) + 0.5 * tf.math.softplus(-log_alpha)


@register_prior
class HorseshoePrior(ScalePrior):
    """Horseshoe prior: groups of weights share a scale z ~ half-Cauchy(tau), with tau ~ half-Cauchy(tau0).

    Louizos et al. 2017, section 4.2 (BC-GHS); Carvalho et al. 2010. z^2 = s_a s_b alpha beta, with s_a ~ Gamma(1/2, tau0^2),
    alpha ~ Gamma(1/2, 1), and s_b and beta ~ inverse Gamma(1/2, 1). s_a and s_b are common to all groups of one side of a
    tensor. Each of the four has a log-normal posterior, so z is log-normal, and the KL has a closed form.

    Args:
      groups: as in `ARDPrior`.
      tau0: scale of the global scale tau.

    Raises:
      BpruneError: `tau0` is not a positive finite number.

    Example:
      model = bp.bayesianize(plain, prior=bp.HorseshoePrior(groups="input"))
    """

    kind = "horseshoe"

    def __init__(self, *, groups: Groups = "both", tau0: float = 1e-5) -> None:
        super().__init__(groups=groups)
        if not (1e-15 < tau0 < 1e15):
            raise BpruneError(f"prior: tau0 must be a positive number, got {tau0}")
        self.tau0 = float(tau0)

    def get_config(self) -> Json:
        """The arguments as JSON values."""
        return super().get_config() | {"tau0": self.tau0}

    @property
    def parts(self) -> Mapping[str, float]:
        """The logarithms of the four; they start at z = 1, the far tail of s_b, which costs as many nats as log tau0."""
        log_c = 2 * math.log(self.tau0)
        return {"shared_a": log_c, "shared_b": -log_c, "alpha": 0.0, "beta": 0.0}

    def scales(self, parts: Mapping[str, Normal]) -> Scales:
        """Those of a log-normal."""
        loc, variance = (
            sum(values) for values in zip(*((q.loc, tf.square(q.scale)) for q in parts.values()), strict=True)
        )
        mean = tf.exp(0.5 * loc + 0.125 * variance)
        return Scales(mean, tf.math.expm1(0.25 * variance) * tf.square(mean))

    def scale_at(self, values: Mapping[str, Any]) -> Any:
        """The root of the product."""
        return tf.exp(0.5 * sum(values.values()))

    def kl_of(self, name: str, q: Normal) -> Any:
        """KL(LN(m, v) || Gamma(1/2, c)) = -m/2 + exp(m + v/2) / c - log(v)/2 + log(c/2)/2 - 1/2, and of the inverse with -m."""
        inverse = name in ("b", "beta")
        log_c = 2 * math.log(self.tau0) if name == "a" else 0.0
        m = -q.loc if inverse else q.loc - log_c
        return -0.5 * m + tf.exp(m + 0.5 * tf.square(q.scale)) - q.log_scale - 0.5 * math.log(2) - 0.5
