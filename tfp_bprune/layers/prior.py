"""Priors of the weights: the protocol, a Gaussian scale mixture, a plain normal, and either around a trained weight.

A prior goes into a layer's JSON config whole. What it learns or is told are variables, which it makes for each weight.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from tfp_bprune._keras import tf, tfp
from tfp_bprune._registry import Registry
from tfp_bprune.layers.axes import Axes, Sides
from tfp_bprune.layers.names import of_part
from tfp_bprune.types import BpruneError, Json

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
_ENTROPY_CONSTANT = 0.5 * math.log(2 * math.pi * math.e)
Variables = Mapping[str, Any]  # a prior's own, or their values as tensors, by name


class Normals(NamedTuple):
    """What a prior sees of normals q(w) over a weight tensor, all of its shape.

    Attributes:
      loc, scale: mean and standard deviation; what stands where a weight is pruned does not count.
      log_scale: log of the scale, finite where the scale underflows.
      mask: what is left.
      sides: the axes that tell the input and the output of a weight.
    """

    loc: Any
    scale: Any
    log_scale: Any
    mask: Any
    sides: Sides = Sides()


class Prior(ABC):
    """A prior over weight tensors, to which the KL of a posterior is measured, in nats. Base class of priors.

    To write one, derive a class with `kind`, `get_config` and `log_density`; or, if the KL between normals has a closed form, with
    `kl` and `exact`; and register it with `register_prior`. Derivatives are found automatically; defining `pulls` by hand only
    makes them faster. All methods must depend on their arguments alone: for large tensors they are compiled once for each
    config, and what the prior learns is passed in as `variables`.

    Attributes:
      kind: the name that it is registered by, which is part of its config.
      exact: whether `kl` is a closed form. Otherwise the KL is that of independent weights, estimated at one draw.
      about_zero: whether the prior is centred at 0 by its nature and cannot be moved to a trained weight.
      resting: variables of the weight's shape whose entries are set to a fixed value where the weight is pruned.
      family: name of the family of posteriors that it requires; None if it works with any.
      units_end_by: the criterion that removes units if no sparsity is given; it must have an `ends_at`.
    """

    kind: ClassVar[str]
    family: ClassVar[str | None] = None
    units_end_by: ClassVar[str] = "evidence"
    exact: bool = False
    about_zero: bool = False
    resting: Mapping[str, float] = {}

    @abstractmethod
    def get_config(self) -> Json:
        """The arguments as JSON values, and `kind`; `prior_from` builds the same prior from them."""

    def add_variables(
        self, add_weight: Callable[..., Any], name: str, shape: tuple[int, ...], axes: Axes
    ) -> dict[str, Any]:
        """Creates the variables that the prior owns for the weight tensor `name`, with a layer's `add_weight`; none by default.

        Args:
          add_weight: as in Keras; call each variable `of_part(name, ...)`.
          axes: which axes of the shape are inputs and outputs.

        Returns:
          Variables by name, trained or not, whose shapes broadcast to `shape` or do not depend on it.
        """
        return {}

    def around(self, loc: Any, variables: Variables) -> None:  # noqa: B027
        """Receives the trained weights (`bayesianize(moped=...)`); ignores them by default."""

    def log_density(self, w: Any, variables: Variables) -> Any:
        """log p(w) of each weight, of the shape of w."""
        raise BpruneError(f"prior {self.kind!r} has no log density: write `log_density`, or `kl` with exact = True")

    def log_density_at_zero(self, q: Normals, variables: Variables) -> Any:
        """log p(0) of each weight; a prior over groups also gets the posterior `q` of all weights."""
        return self.log_density(tf.zeros(q.mask.shape), variables)

    def deviation(self, q: Normals, variables: Variables) -> Any:
        """For a prior over groups, its standard deviation of each weight, given the posterior `q` of all weights; else None."""
        return None

    def kl(self, q: Normals, sample: Any, variables: Variables) -> Any:
        """KL(q || p) of each weight, of the weight's shape; where pruned it may be anything.

        By default E_q[log q] in closed form minus log p at `sample` (Blundell et al. 2015, eq. 2, one draw): the entropy of a
        normal is known, so only log p(w) is estimated: unbiased, with less variance than log q(w) - log p(w).
        """
        return -_ENTROPY_CONSTANT - q.log_scale - self.log_density(sample, variables)

    def kl_parts(self, q: Normals, sample: Any, variables: Variables) -> Any:
        """A few numbers that add up to the KL of the weights that are left: by default the sums over the last axis.

        Few enough to be added one after another. A prior over groups may know its KL without computing that of each weight.
        """
        return tf.reduce_sum(tf.where(q.mask, self.kl(q, sample, variables), 0.0), -1)

    def found(self, q: Normals, variables: Variables) -> dict[str, Any]:
        """What an exact prior computes once from all weights; `kl` and `pulls` get it among the variables.

        It is computed once in a training step. Derivatives treat it as constant, so it should be at an optimum of the KL.
        """
        return {}

    def pull(self, w: Any, variables: Variables) -> Any:
        """-d log p / d w of each weight."""
        with tf.GradientTape() as tape:
            tape.watch(w)
            density = tf.reduce_sum(self.log_density(w, variables))
        return -tape.gradient(density, w)

    def pulls(self, q: Normals, epsilon: Any, variables: Variables) -> tuple[Any, Any]:
        """Derivatives of the KL by loc and by scale at the draw loc + scale * epsilon, for each weight.

        They leave out the part of -log sigma, whose derivative by scale is unbounded; it is taken by rho instead.
        """
        if not self.exact:
            pull = self.pull(q.loc + q.scale * epsilon, variables)
            return pull, pull * epsilon
        whole = q._replace(scale=tf.where(q.mask, q.scale, 1.0))
        with tf.GradientTape() as tape:
            tape.watch(whole[:3])
            kl = tf.reduce_sum(tf.where(q.mask, self.kl(whole, whole.loc, variables), 0.0))
        by_loc, by_scale, by_log = tape.gradient(kl, whole[:3], unconnected_gradients="zero")
        return by_loc, by_scale + (by_log + 1) / whole.scale  # 1: without -log sigma, in whichever form it was written

    def slopes(self, q: Normals, sample: Any, variables: Variables, trained: Variables) -> dict[str, Any]:
        """Derivatives of the KL by the trained variables, at their values `trained`."""
        if not trained:
            return {}
        with tf.GradientTape() as tape:
            tape.watch(trained)
            kl = tf.reduce_sum(tf.where(q.mask, self.kl(q, sample, {**variables, **trained}), 0.0))
        found: dict[str, Any] = tape.gradient(kl, trained, unconnected_gradients="zero")
        return found


PRIORS: Registry[Callable[..., Prior]] = Registry("prior")


def register_prior(prior: Any) -> Any:
    """Registers a class of priors by its `kind`, for `prior="kind"` and stored configs; a decorator.

    Raises:
      BpruneError: the name is taken by another class.
    """
    return PRIORS.add(prior.kind, prior, prior)


@register_prior
class NormalPrior(Prior, tfp.distributions.Normal):
    """N(loc, scale^2) for every weight.

    Args:
      scale: standard deviation.
      loc: mean.

    Raises:
      BpruneError: `scale` is not a positive finite number, or `loc` not a finite one.

    Example:
      model = bp.build("mlp", data.info, prior=bp.NormalPrior(scale=0.1))
    """

    kind = "normal"
    exact = True

    def __init__(self, scale: float = 1.0, loc: float = 0.0, name: str = "NormalPrior") -> None:
        _check("scale", scale, scale > 0 and math.isfinite(scale), "a positive number")
        _check("loc", loc, math.isfinite(loc), "a finite number")
        self._config = {"kind": self.kind, "scale": float(scale), "loc": float(loc)}
        parameters = dict(locals())
        super().__init__(loc=float(loc), scale=float(scale), name=name)
        self._parameters = parameters

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {"scale": tfp.util.ParameterProperties(), "loc": tfp.util.ParameterProperties()}

    def get_config(self) -> Json:
        """The arguments as JSON scalars; `prior_from` builds the same prior from them."""
        return dict(self._config)

    def log_density(self, w: Any, variables: Variables) -> Any:
        """log N(w | loc, scale^2)."""
        return self.log_prob(w)

    def kl(self, q: Normals, sample: Any, variables: Variables) -> Any:
        """The KL between normals in closed form (Kingma and Welling 2014, appendix B, with any prior mean and scale)."""
        standardized = tf.square(q.loc - self.loc) + tf.square(q.scale)
        return 0.5 * standardized / tf.square(self.scale) - 0.5 - q.log_scale + tf.math.log(self.scale)

    def pulls(self, q: Normals, epsilon: Any, variables: Variables) -> tuple[Any, Any]:
        """Those of the closed form."""
        precision = 1 / tf.square(self.scale)
        return precision * (q.loc - self.loc), precision * q.scale


@register_prior
class ScaleMixturePrior(Prior, tfp.distributions.Distribution):
    """Mixture of two normals, pi N(0, scale1^2) + (1 - pi) N(0, scale2^2), independently for every weight; the default prior.

    Blundell et al. 2015 (arXiv 1505.05424), eq. 7. The wide component leaves room for useful weights, the narrow one draws all
    others to zero. log p(w) is the log-add-exp of the components, so it is finite for every finite w.

    Args:
      pi: probability of the wide component, in (0, 1).
      scale1, scale2: standard deviations, scale1 > scale2 > 0. The defaults, 1 and exp(-6), are in the grid searched in the paper.

    Raises:
      BpruneError: an argument is out of range.

    Example:
      model = bp.build("mlp", data.info, prior=bp.ScaleMixturePrior(pi=0.25))
    """

    kind = "scale_mixture"

    def __init__(
        self, pi: float = 0.5, scale1: float = 1.0, scale2: float = math.exp(-6), name: str = "ScaleMixturePrior"
    ) -> None:
        _check("pi", pi, 0 < pi < 1, "in (0, 1)")
        _check("scale1", scale1, math.isfinite(scale1) and scale1 > scale2, f"a finite number above scale2 = {scale2}")
        _check("scale2", scale2, scale2 > 0, "a positive number")
        parameters = dict(locals())
        self.pi, self.scale1, self.scale2 = float(pi), float(scale1), float(scale2)
        super().__init__(
            dtype=tf.float32,
            reparameterization_type=tfp.distributions.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=False,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {}

    def get_config(self) -> Json:
        """The arguments as JSON scalars; `prior_from` builds the same prior from them."""
        return {"kind": self.kind, "pi": self.pi, "scale1": self.scale1, "scale2": self.scale2}

    def _batch_shape(self) -> Any:
        return tf.TensorShape([])

    def _batch_shape_tensor(self) -> Any:
        return tf.constant([], tf.int32)

    def _event_shape(self) -> Any:
        return tf.TensorShape([])

    def _event_shape_tensor(self) -> Any:
        return tf.constant([], tf.int32)

    def _log_prob(self, w: Any) -> Any:
        square = tf.square(w)
        wide = math.log(self.pi / self.scale1) - _HALF_LOG_TWO_PI - square * (0.5 / self.scale1**2)
        return wide + tf.math.softplus(self._log_odds(square))  # log(a + b) = log a + log(1 + b / a)

    def log_density(self, w: Any, variables: Variables) -> Any:
        """log p(w)."""
        return self.log_prob(w)

    def pull(self, w: Any, variables: Variables | None = None) -> Any:
        """-d log p / d w: w over the mean of 1 / scale^2 under the parts' probabilities given w."""
        wide, narrow = 1 / self.scale1**2, 1 / self.scale2**2
        return w * (wide + (narrow - wide) * tf.math.sigmoid(self._log_odds(tf.square(w))))

    def _log_odds(self, square: Any) -> Any:
        """Logarithm of the narrow part's density over the wide part's, at w^2."""
        constant = math.log((1 - self.pi) / self.scale2) - math.log(self.pi / self.scale1)
        return constant - square * (0.5 / self.scale2**2 - 0.5 / self.scale1**2)

    def _sample_n(self, n: Any, seed: Any = None) -> Any:
        which, value = tfp.random.split_seed(seed, n=2, salt="ScaleMixturePrior")
        wide = tf.random.stateless_uniform([n], which) < self.pi
        return tf.where(wide, self.scale1, self.scale2) * tf.random.stateless_normal([n], value)

    def _mean(self) -> Any:
        return tf.zeros([])

    def _variance(self) -> Any:
        return tf.constant(self.pi * self.scale1**2 + (1 - self.pi) * self.scale2**2, tf.float32)


@register_prior
class CentredPrior(Prior):
    """Another prior, moved for each weight to a centre of its own, which starts at 0 and is not trained.

    `bayesianize(moped=...)` puts the centre at the trained weights: Krishnan et al. 2020, "Specifying weight priors in Bayesian
    deep neural networks with empirical Bayes", eq. 5. The centre is the variable `prior_loc`.

    Args:
      prior: the prior to move, or its config.

    Raises:
      BpruneError: the prior cannot be moved, because it draws units to 0, as those over groups do.
    """

    kind = "centred"

    def __init__(self, prior: Prior | Json | str | None = "normal") -> None:
        self.prior = prior_from(prior)
        if self.prior.about_zero:
            raise BpruneError(
                f"prior {self.prior.kind!r} draws weights to 0 and cannot be centred at trained weights: use 'normal' or "
                "'scale_mixture' with moped or own_prior_loc"
            )
        self.exact, self.resting = self.prior.exact, {**self.prior.resting, "prior_loc": 0.0}

    def get_config(self) -> Json:
        """The arguments as JSON values."""
        return {"kind": self.kind, "prior": self.prior.get_config()}

    def add_variables(
        self, add_weight: Callable[..., Any], name: str, shape: tuple[int, ...], axes: Axes
    ) -> dict[str, Any]:
        """The centre, and what the moved prior owns."""
        centre = add_weight(name=of_part(name, "prior_loc"), shape=shape, initializer="zeros", trainable=False)
        return {"prior_loc": centre, **self.prior.add_variables(add_weight, name, shape, axes)}

    def around(self, loc: Any, variables: Variables) -> None:
        """Puts the centre at the trained weights."""
        variables["prior_loc"].assign(loc)
        self.prior.around(loc, variables)

    def log_density(self, w: Any, variables: Variables) -> Any:
        """log p(w - centre)."""
        return self.prior.log_density(w - variables["prior_loc"], variables)

    def kl(self, q: Normals, sample: Any, variables: Variables) -> Any:
        """The KL of q from this prior, which is that of the moved q from the prior that was not moved."""
        by = variables["prior_loc"]
        return self.prior.kl(q._replace(loc=q.loc - by), None if sample is None else sample - by, variables)

    def pull(self, w: Any, variables: Variables) -> Any:
        """That at w - centre."""
        return self.prior.pull(w - variables["prior_loc"], variables)

    def pulls(self, q: Normals, epsilon: Any, variables: Variables) -> tuple[Any, Any]:
        """Of a closed form those of the moved normals, else at the draw, which is moved as it is for the KL."""
        if not self.exact:
            return super().pulls(q, epsilon, variables)
        return self.prior.pulls(q._replace(loc=q.loc - variables["prior_loc"]), epsilon, variables)


def prior_from(given: Prior | Json | str | None) -> Prior:
    """The prior meant by `given`: one of ours, its config, its kind, or None for the default scale mixture.

    Raises:
      BpruneError: `given` names no known prior or has an argument that it does not take.
    """
    if given is None:
        return ScaleMixturePrior()
    if isinstance(given, Prior):
        return given
    config: Any = {"kind": given} if isinstance(given, str) else given
    if not isinstance(config, dict) or config.get("kind") not in PRIORS:
        raise BpruneError(
            f"unknown prior {given!r}: expected a NormalPrior, a ScaleMixturePrior, another `Prior`, or a config with kind in {sorted(PRIORS)}"
        )
    arguments = {key: value for key, value in config.items() if key != "kind"}
    try:
        return PRIORS[config["kind"]](**arguments)
    except TypeError as error:
        raise BpruneError(f"prior {config['kind']!r} does not take {sorted(arguments)}: {error}") from error


def _check(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise BpruneError(f"prior: {name} must be {expected}, got {value}")
