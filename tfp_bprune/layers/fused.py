"""All that a training step needs of one weight tensor, with a gradient of its own.

A Bayesian layer needs, for every weight, its mean, its scale, noise, and the KL with its gradient. Written one operation
after another, and differentiated by TensorFlow, these cost more than the products with the data. Here all of it has one
gradient, written by hand, that touches each weight as few times as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tfp_bprune._keras import tf
from tfp_bprune.layers import divergence, noise
from tfp_bprune.layers.posterior import MaskedNormal, log_scale_slope, scale_of
from tfp_bprune.layers.prior import Prior

Moment = Literal["deviation", "variance"]


@dataclass(frozen=True)
class Terms:
    """What the forward pass and the loss take from a weight tensor.

    Attributes:
      loc: posterior mean, 0 where pruned.
      second: one draw of w - loc ("deviation"), or sigma^2 ("variance"); 0 where pruned.
      kl: the KL in nats: exact, or the estimate of one draw, with "deviation" the draw that `second` is.
    """

    loc: Any
    second: Any
    kl: Any


def terms(posterior: MaskedNormal, prior: Prior, moment: Moment, seeds: Callable[[str], Any]) -> Terms:
    """The terms of one step.

    Args:
      seeds: gives a stateless seed [2] by the name of a stream.
    """
    mask = posterior.mask.read_value()
    centre = None if posterior.prior_loc is None else tf.convert_to_tensor(posterior.prior_loc)
    epsilon = noise.normal(posterior.shape, seeds("draw"))

    @tf.custom_gradient
    def compute(loc: Any, rho: Any) -> Any:
        kept, scale = tf.where(mask, loc, 0.0), tf.where(mask, scale_of(rho), 0.0)
        deviation = scale * epsilon
        second = deviation if moment == "deviation" else tf.square(scale)
        q = MaskedNormal(kept, rho, mask, centre)
        kl = divergence.kl_divergence(q, prior, kept + deviation)

        def gradient(d_loc: Any, d_second: Any, d_kl: Any) -> tuple[Any, Any]:
            loc_pull, scale_pull = divergence.pulls(q, prior, kept, scale, epsilon)
            d_scale = d_second * (epsilon if moment == "deviation" else 2 * scale) + d_kl * scale_pull
            d_rho = d_scale * tf.math.sigmoid(rho) - d_kl * log_scale_slope(rho)  # sigmoid: the slope of softplus
            return tf.where(mask, d_loc + d_kl * loc_pull, 0.0), tf.where(mask, d_rho, 0.0)

        return (kept, second, kl), gradient

    return Terms(*compute(posterior.loc_variable.read_value(), posterior.rho_variable.read_value()))
