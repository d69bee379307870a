"""What the evidence lower bound loses with one weight: its KL, and the likelihood by Taylor. Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import NormalPrior, ScaleMixturePrior
from tfp_bprune.types import BpruneError

_NODES = 32
_CHUNK = 65536  # weights whose quadrature is held in memory at once
_BATCH = 1000


def kl_of_each(loc: np.ndarray, scale: np.ndarray, prior: NormalPrior | ScaleMixturePrior) -> np.ndarray:
    """KL(N(loc, scale^2) || prior) of each weight, in nats, of the shape of `loc`.

    The entropy is known; E[log p(w)] is by Gauss-Hermite quadrature, exact for polynomials to degree 63.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    flat_loc, flat_scale = loc.ravel(), scale.ravel()
    expected = np.empty(loc.size)
    for begin in range(0, loc.size, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        draws = flat_loc[part, None] + flat_scale[part, None] * nodes
        expected[part] = prior.log_prob(tf.constant(draws, tf.float32)).numpy() @ weights
    entropy = 0.5 * np.log(2 * np.pi * np.e) + np.log(flat_scale)
    return (-entropy - expected).reshape(loc.shape)


def elbo_change(
    loc: np.ndarray, scale: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, kl: np.ndarray
) -> np.ndarray:
    """Rise of the negative ELBO when a weight is removed: -g mu + h (mu^2 - sigma^2) / 2 - KL, in nats, elementwise.

    LeCun et al. 1989 (Optimal brain damage), eq. 4, for a weight with a distribution, whose KL is saved.

    Args:
      gradient, curvature: of the negative log likelihood of all training data by the weight, at the mean.
      kl: from `kl_of_each`.
    """
    loc, scale = loc.astype(np.float64), scale.astype(np.float64)
    return -gradient * loc + 0.5 * curvature * (np.square(loc) - np.square(scale)) - kl


def likelihood_slopes(plain: Any, x: np.ndarray, y: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gradient and diagonal of the empirical Fisher information of the negative log likelihood, summed over examples.

    For dense layers the derivative by weight (i, j) of one example is a_i d_j, a its inputs and d the derivative by its
    outputs before the activation; so the sum of squares is a product of the squares.

    Args:
      plain: an ordinary chain of layers (an mlp); logits [n, classes].

    Returns:
      By `layer/kernel`: two arrays of the kernel's shape, in float64.

    Raises:
      BpruneError: the network is not a chain, or has convolutions.
    """
    dense = [layer for layer in plain.layers if isinstance(layer, keras.layers.Dense)]
    chained = all(isinstance(layer, _CHAIN) for layer in plain.layers)
    if not chained or not dense:
        raise BpruneError(f"network {plain.name!r} is not a chain of dense layers: expected an mlp or lenet300")
    sums = {layer.name: [np.zeros(layer.kernel.shape), np.zeros(layer.kernel.shape)] for layer in dense}
    step = tf.function(lambda xs, ys: _step(plain, xs, ys), reduce_retracing=True)
    for i in range(0, len(x), _BATCH):
        found = step(tf.constant(x[i : i + _BATCH], tf.float32), tf.constant(y[i : i + _BATCH]))
        for layer, (gradient, squares) in zip(dense, found, strict=True):
            sums[layer.name][0] += gradient.numpy()
            sums[layer.name][1] += squares.numpy()
    return {f"{name}/kernel": (gradient, squares) for name, (gradient, squares) in sums.items()}


_CHAIN = (
    keras.layers.InputLayer,
    keras.layers.Rescaling,
    keras.layers.Flatten,
    keras.layers.Dense,
    keras.layers.ReLU,
    keras.layers.Activation,
)


def _step(plain: Any, x: Any, y: Any) -> list[tuple[Any, Any]]:
    """For each dense layer the sum over the batch of derivatives, and of their squares."""
    inputs, outputs, value = [], [], x
    with tf.GradientTape(persistent=False) as tape:
        tape.watch(x)
        for layer in plain.layers:
            if isinstance(layer, keras.layers.Dense):
                inputs.append(value)
                before = tf.matmul(value, layer.kernel) + (layer.bias if layer.use_bias else 0.0)
                outputs.append(before)
                value = layer.activation(before)
            elif not isinstance(layer, keras.layers.InputLayer):
                value = layer(value)
        nll = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=value))
    slopes = tape.gradient(nll, outputs)
    return [
        (tf.matmul(a, d, transpose_a=True), tf.matmul(tf.square(a), tf.square(d), transpose_a=True))
        for a, d in zip(inputs, slopes, strict=True)
    ]
