"""All that a training step needs of one weight tensor, in few passes over memory and with a gradient of its own.

A Bayesian layer needs, for every weight, its mean, its scale, noise, and the gradient of its KL. Written one operation
after another, and differentiated by TensorFlow, these cost more than the products with the data. Here all of it has
one gradient, written by hand, that touches each weight as few times as it can.

While training the KL is that of a random block of rows, one of `parts` equal ones, times their number. Each weight is
in the block with probability 1 / parts, so KL and gradient are unbiased: over `parts` steps a weight gets the KL's pull
as often as if it came each time, in one piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tfp_bprune._keras import tf
from tfp_bprune.layers import divergence, noise
from tfp_bprune.layers.posterior import MaskedNormal, scale_of
from tfp_bprune.layers.prior import Prior

Moment = Literal["deviation", "variance"]
_PARTS = 8
_SMALLEST_BLOCK = 8192  # weights; below it the whole KL costs less than finding a part of it


@dataclass(frozen=True)
class Terms:
    """What the forward pass and the loss take from a weight tensor.

    Attributes:
      loc: posterior mean, 0 where pruned.
      second: one draw of w - loc ("deviation"), or sigma^2 ("variance"); 0 where pruned.
      kl: the KL in nats, an unbiased estimate.
    """

    loc: Any
    second: Any
    kl: Any


class FusedWeights:
    """Computes the `Terms` of one weight tensor; made when its layer is built.

    Args:
      posterior: the weight tensor's posterior.
      prior: its prior.
    """

    def __init__(self, posterior: MaskedNormal, prior: Prior) -> None:
        self._posterior, self._prior = posterior, prior
        self._rows, self._columns = _as_matrix(posterior.shape)
        self._parts = _parts_of(self._rows, self._columns)

    def terms(self, moment: Moment, seeds: Callable[[str], Any], training: bool) -> Terms:
        """The terms of one step; `seeds` gives a stateless seed [2] by the name of a stream."""
        posterior = self._posterior
        mask, prior_loc = posterior.mask.read_value(), posterior.prior_loc
        parts = self._parts if training else 1
        epsilon = noise.normal(posterior.shape, seeds("kernel")) if moment == "deviation" else None

        @tf.custom_gradient
        def compute(loc: Any, rho: Any) -> Any:
            block = _Block(self._rows, self._columns, parts, seeds("block"))
            drawn = block.noise(seeds("kl")) if epsilon is None else block.of(epsilon)
            centre = None if prior_loc is None else block.of(prior_loc)
            kl, loc_pull, rho_pull = self._kl_and_pulls(block.of(loc), block.of(rho), block.of(mask), drawn, centre)
            scale = tf.where(mask, scale_of(rho), 0.0)
            second = tf.square(scale) if epsilon is None else scale * epsilon

            def gradient(d_loc: Any, d_second: Any, d_kl: Any) -> tuple[Any, Any]:
                d_scale = d_second * (2 * scale if epsilon is None else epsilon)
                d_rho = tf.where(mask, d_scale * tf.math.sigmoid(rho), 0.0)  # the derivative of softplus
                factor = parts * d_kl
                return (
                    block.add_to(tf.where(mask, d_loc, 0.0), factor * loc_pull),
                    block.add_to(d_rho, factor * rho_pull),
                )

            return (tf.where(mask, loc, 0.0), second, parts * kl), gradient

        return Terms(*compute(posterior.loc_variable.read_value(), posterior.rho_variable.read_value()))

    def _kl_and_pulls(self, loc: Any, rho: Any, mask: Any, epsilon: Any, prior_loc: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch((loc, rho))
            q = MaskedNormal(loc, rho, mask, prior_loc)
            kl = divergence.kl_divergence(q, self._prior, q.loc + q.scale * epsilon)
        return (kl, *tape.gradient(kl, (loc, rho), unconnected_gradients="zero"))


class _Block:
    """One of `parts` equal blocks of the rows of a matrix, drawn with equal probabilities."""

    def __init__(self, rows: int, columns: int, parts: int, seed: Any) -> None:
        self._shape, self._whole, self._size = (rows, columns), parts == 1, rows // parts
        if not self._whole:
            which = tf.random.stateless_uniform([], seed, 0, parts, dtype=tf.int32)
            self._first = which * self._size

    def of(self, tensor: Any) -> Any:
        """The block's rows of a weight-shaped tensor [rows of the block, columns]."""
        matrix = tf.reshape(tensor, self._shape)
        return matrix if self._whole else tf.slice(matrix, [self._first, 0], [self._size, self._shape[1]])

    def noise(self, seed: Any) -> Any:
        """Standard normals of the block's shape."""
        return noise.normal([self._size, self._shape[1]], seed)

    def add_to(self, tensor: Any, addend: Any) -> Any:
        """The tensor with `addend` added to the block's rows."""
        if self._whole:
            return tensor + tf.reshape(addend, tensor.shape)
        rows = (self._first + tf.range(self._size))[:, None]
        return tf.reshape(tf.tensor_scatter_nd_add(tf.reshape(tensor, self._shape), rows, addend), tensor.shape)


def _as_matrix(shape: Any) -> tuple[int, int]:
    columns = int(shape[-1])
    return int(shape.num_elements()) // max(1, columns), columns


def _parts_of(rows: int, columns: int) -> int:
    """The largest number of equal blocks of rows that is at most `_PARTS` and leaves a block worth the effort."""
    fitting = [p for p in range(1, _PARTS + 1) if rows % p == 0 and rows // p * columns >= _SMALLEST_BLOCK]
    return max(fitting, default=1)
