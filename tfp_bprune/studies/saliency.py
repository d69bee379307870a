"""What the evidence lower bound loses with one weight: its KL, and the likelihood by Taylor. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import Prior
from tfp_bprune.types import BpruneError

_NODES = 32
_CHUNK = 65536  # weights whose quadrature is held in memory at once
_BATCH = 1000


def kl_of_each(loc: np.ndarray, scale: np.ndarray, prior: Prior) -> np.ndarray:
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
        expected[part] = prior.log_density(tf.constant(draws, tf.float32), {}).numpy() @ weights
    entropy = 0.5 * np.log(2 * np.pi * np.e) + np.log(flat_scale)
    return (-entropy - expected).reshape(loc.shape)


def nll_change(loc: np.ndarray, scale: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Rise of the expected negative log likelihood when a weight goes: -g mu + h (mu^2 - sigma^2) / 2, in nats, elementwise.

    E_q[L] is L(mu) + h sigma^2 / 2 to second order, and L(mu) - g mu + h mu^2 / 2 without the weight: LeCun et al. 1989
    (Optimal brain damage), eq. 4, for a weight with a distribution, and with its first-order term.

    Args:
      gradient, curvature: first and second derivative of L by the weight, from `likelihood_slopes`.
    """
    loc, scale = loc.astype(np.float64), scale.astype(np.float64)
    return -gradient * loc + 0.5 * curvature * (np.square(loc) - np.square(scale))


def elbo_change(
    loc: np.ndarray, scale: np.ndarray, gradient: np.ndarray, curvature: np.ndarray, kl: np.ndarray
) -> np.ndarray:
    """Rise of the negative ELBO when a weight goes: `nll_change` less the weight's KL, which is saved; in nats."""
    return nll_change(loc, scale, gradient, curvature) - kl


def likelihood_slopes(
    plain: Any,
    x: np.ndarray,
    y: np.ndarray,
    scales: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    batch: int = _BATCH,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Gradient of the negative log likelihood and diagonal of the Fisher information, summed over examples.

    The Fisher information, with labels as the network expects them, is the Gauss-Newton part of the second derivative. For
    dense layers the derivative by weight (i, j) of one example is a_i d_j, a its inputs and d the derivative by its
    outputs before the activation; so the sum of squares is a product of squares.

    Args:
      plain: an ordinary chain of layers (an mlp) at the posterior mean; logits [n, classes].
      scales: sigma by `layer/kernel`: each batch then sees a draw of the kernels, so that what is returned estimates
        the mean over q; without, all is at the mean.
      seed: of the draws.
      batch: examples that share a draw.

    Returns:
      By `layer/kernel`: two arrays of the kernel's shape, in float64.

    Raises:
      BpruneError: the network is not a chain, or has convolutions.
    """
    dense = [layer for layer in plain.layers if isinstance(layer, keras.layers.Dense)]
    if not dense or not all(isinstance(layer, _CHAIN) for layer in plain.layers):
        raise BpruneError(f"network {plain.name!r} is not a chain of dense layers: expected an mlp or lenet300")
    random, means = np.random.default_rng(seed), [layer.kernel.numpy() for layer in dense]
    sigmas = [(scales or {}).get(f"{layer.name}/kernel", np.float32(0)) for layer in dense]
    sums = [[np.zeros(mean.shape), np.zeros(mean.shape)] for mean in means]
    step = tf.function(lambda kernels, xs, ys: _step(plain, kernels, xs, ys), reduce_retracing=True)
    for i in range(0, len(x), batch):
        kernels = [
            tf.constant(mean + sigma * random.standard_normal(mean.shape, np.float32))
            for mean, sigma in zip(means, sigmas, strict=True)
        ]
        found = step(kernels, tf.constant(x[i : i + batch], tf.float32), tf.constant(y[i : i + batch]))
        for total, part in zip(sums, found, strict=True):
            total[0] += part[0].numpy()
            total[1] += part[1].numpy()
    return {f"{layer.name}/kernel": (g, h) for layer, (g, h) in zip(dense, sums, strict=True)}


_CHAIN = (
    keras.layers.InputLayer,
    keras.layers.Rescaling,
    keras.layers.Flatten,
    keras.layers.Dense,
    keras.layers.ReLU,
    keras.layers.Activation,
)


def _step(plain: Any, kernels: list[Any], x: Any, y: Any) -> list[tuple[Any, Any]]:
    """For each dense layer the sum over the batch of derivatives, and of expected squares."""
    inputs: list[Any] = []
    outputs: list[Any] = []
    value, left = x, list(kernels)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(kernels)
        for layer in plain.layers:
            if isinstance(layer, keras.layers.Dense):
                inputs.append(value)
                outputs.append(tf.matmul(value, left.pop(0)) + (layer.bias if layer.use_bias else 0.0))
                value = layer.activation(outputs[-1])
            elif not isinstance(layer, keras.layers.InputLayer):
                value = layer(value)
    probabilities = tf.nn.softmax(value)
    classes = value.shape[-1]
    slopes = tape.gradient(value, outputs, output_gradients=probabilities - tf.one_hot(y, classes))
    gradients = [tf.matmul(a, d, transpose_a=True) for a, d in zip(inputs, slopes, strict=True)]
    squares = [tf.zeros_like(gradient) for gradient in gradients]
    for c in range(classes):
        weight = tf.sqrt(probabilities[:, c : c + 1])
        seen = weight * (probabilities - tf.one_hot(c, classes))
        slopes = tape.gradient(value, outputs, output_gradients=seen)
        squares = [
            s + tf.matmul(tf.square(a), tf.square(d), transpose_a=True)
            for s, a, d in zip(squares, inputs, slopes, strict=True)
        ]
    return list(zip(gradients, squares, strict=True))
