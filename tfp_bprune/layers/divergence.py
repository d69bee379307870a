"""KL(q || p) of normals from their prior, in nats, pruned weights skipped; and its one scaling by 1/N.

A pruned weight has no distribution left and costs nothing.
"""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.layers.prior import Prior
from tfp_bprune.types import TrainingError


def kl_divergence(posterior: Any, prior: Prior, sample: Any) -> Any:
    """KL(q || p) summed over one weight tensor, in nats: exact where the prior's is, else by Monte Carlo.

    Args:
      posterior: a `MaskedNormal`.
      sample: a draw from the posterior, of its shape: the one the forward pass used, if there is one.

    Returns:
      A scalar, an unbiased estimate at least.
    """
    kl = prior.kl(posterior.normals, sample, posterior.prior_variables)
    return tf.reduce_sum(tf.where(posterior.mask, kl, 0.0))


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
            "pass train_size=... to it, or call tfp_bprune.layers.set_train_size(model, n) before training"
        )
    return schedule * kl / tf.cast(train_size, kl.dtype)
