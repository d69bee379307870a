"""Priors of the weights: a Gaussian scale mixture, and a plain normal.

Both are TFP distributions whose parameters are Python numbers, so that they go into a layer's JSON config whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tfp_bprune._keras import tf, tfp
from tfp_bprune.types import BpruneError, Json

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class NormalPrior(tfp.distributions.Normal):
    """N(loc, scale^2) for every weight, with a JSON config.

    Raises:
      BpruneError: scale is not a positive finite number, or loc not a finite one.
    """

    kind = "normal"

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


class ScaleMixturePrior(tfp.distributions.Distribution):
    """pi N(0, scale1^2) + (1 - pi) N(0, scale2^2), independently for every weight.

    Blundell et al. 2015 (arXiv 1505.05424), eq. 7. The wide part gives useful weights room, the narrow one draws the
    others to zero. log p(w) is a log-add-exp of the two parts and so finite for every finite w.

    Args:
      pi: probability of the wide part, in (0, 1).
      scale1, scale2: standard deviations, scale1 > scale2 > 0. The defaults, 1 and exp(-6), are in the grid searched
        in the paper.

    Raises:
      BpruneError: an argument outside its range.
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

    def pull(self, w: Any) -> Any:
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


Prior = NormalPrior | ScaleMixturePrior
_KINDS: dict[str, Callable[..., Prior]] = {NormalPrior.kind: NormalPrior, ScaleMixturePrior.kind: ScaleMixturePrior}


def prior_from(given: Prior | Json | str | None) -> Prior:
    """The prior meant by `given`: one of ours, its config, its kind, or None for the default scale mixture.

    Raises:
      BpruneError: `given` names no known prior or has an argument that it does not take.
    """
    if given is None:
        return ScaleMixturePrior()
    if isinstance(given, NormalPrior | ScaleMixturePrior):
        return given
    config: Any = {"kind": given} if isinstance(given, str) else given
    if not isinstance(config, dict) or config.get("kind") not in _KINDS:
        raise BpruneError(
            f"unknown prior {given!r}: expected a NormalPrior, a ScaleMixturePrior, or a config with kind in {sorted(_KINDS)}"
        )
    arguments = {key: value for key, value in config.items() if key != "kind"}
    try:
        return _KINDS[config["kind"]](**arguments)
    except TypeError as error:
        raise BpruneError(f"prior {config['kind']!r} does not take {sorted(arguments)}: {error}") from error


def _check(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise BpruneError(f"prior: {name} must be {expected}, got {value}")
