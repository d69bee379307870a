"""KL(q || p) of a masked posterior from its prior, in nats, pruned weights skipped; and its one scaling by 1/N.

A pruned weight has no distribution left and costs nothing.
"""

from __future__ import annotations

import math
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.layers.prior import NormalPrior, Prior
from tfp_bprune.types import TrainingError

_ENTROPY_CONSTANT = 0.5 * math.log(2 * math.pi * math.e)


def kl_divergence(posterior: MaskedNormal, prior: Prior, sample: Any) -> Any:
    """KL(q || p) summed over one weight tensor, in nats: exact for a normal prior, else by Monte Carlo.

    Args:
      sample: a draw from the posterior, of its shape: the one the forward pass used, if there is one.

    Returns:
      A scalar, an unbiased estimate at least.
    """
    return tf.reduce_sum(of_each_weight(posterior, prior, sample))


def of_each_weight(posterior: MaskedNormal, prior: Prior, sample: Any) -> Any:
    """The terms of `kl_divergence`, of the shape of the weight tensor; 0 where pruned."""
    each = exact(posterior, prior) if isinstance(prior, NormalPrior) else monte_carlo(posterior, prior, sample)
    return tf.where(posterior.mask, each, 0.0)


def exact(posterior: MaskedNormal, prior: NormalPrior) -> Any:
    """Of each weight: the closed form between normals (Kingma and Welling 2014, appendix B, with any prior mean and scale)."""
    standardized = tf.square(posterior.from_prior_loc(posterior.loc) - prior.loc) + tf.square(posterior.scale)
    return 0.5 * standardized / tf.square(prior.scale) - 0.5 - posterior.log_scale + tf.math.log(prior.scale)


def monte_carlo(posterior: MaskedNormal, prior: Prior, sample: Any) -> Any:
    """Of each weight: E_q[log q] in closed form minus log p at `sample` (Blundell et al. 2015, eq. 2, one draw).

    The entropy of a normal is known, so only log p(w), which has no closed-form mean under the mixture, is estimated:
    unbiased, with less variance than log q(w) - log p(w) and fewer operations.
    """
    return -_ENTROPY_CONSTANT - posterior.log_scale - prior.log_prob(posterior.from_prior_loc(sample))


def pulls(posterior: MaskedNormal, prior: Prior, loc: Any, scale: Any, epsilon: Any) -> tuple[Any, Any]:
    """Derivatives of `kl_divergence` at the draw loc + scale * epsilon by loc and by scale, weight by weight.

    Without the part of -log sigma, whose derivative by scale has no bound; `posterior.log_scale_slope` gives that by rho.
    """
    if isinstance(prior, NormalPrior):
        precision = 1 / tf.square(prior.scale)
        return precision * (posterior.from_prior_loc(loc) - prior.loc), precision * scale
    pull = prior.pull(posterior.from_prior_loc(loc + scale * epsilon))
    return pull, pull * epsilon


def scaled(kl: Any, train_size: int, schedule: Any, layer_name: str) -> Any:
    """The share of the KL in the loss per example: schedule * KL / N.

    Every KL reaches a loss through here and nowhere else. Keras averages the likelihood over the batch, so the
    negative evidence lower bound per example is that mean plus KL / N, N being the training examples of the whole job:
    not the batch's, not one worker's.

    Args:
      train_size: N.
      schedule: a factor of mean 1 over training, 1 when nothing is scheduled.

    Raises:
      TrainingError: N is unknown.
    """
    if not train_size or train_size < 1:
        raise TrainingError(
            f"layer {layer_name!r} does not know the number of training examples that its KL is divided by: "
            "pass train_size=... to it, or call set_train_size(model, n) before training"
        )
    return schedule * kl / tf.cast(train_size, kl.dtype)
