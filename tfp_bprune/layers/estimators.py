"""Three ways to draw the weights of a layer: one draw, one flipped for each example, or noise on the outputs instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import noise
from tfp_bprune.layers.fused import Moment, Terms

_LEAST_VARIANCE = 1e-24

# These classes are mixed in before a Keras layer; to a type checker they are layers already.
_LayerPart: Any = keras.layers.Layer if TYPE_CHECKING else object


class Reparameterization(_LayerPart):
    """One weight draw shared by the whole batch (Kingma and Welling 2014, arXiv 1312.6114)."""

    def _computed(self, moment: Moment, kernel: Terms) -> Terms:
        """The drawn weights in the place of their means: of a sum that is narrowed to 16 bits one number is rounded, not three."""
        return Terms(tf.cast(kernel.loc + kernel.second, self.compute_dtype), None, kernel.kl)

    def _apply_kernel(self, name: str, inputs: Any, kernel: Terms, step: Any) -> Any:
        return self._linear(name, inputs, kernel.loc)


class Flipout(_LayerPart):
    """One weight draw whose deviation from the mean is flipped by independent signs for each example.

    Wen et al. 2018 (arXiv 1803.04386), eq. 4: x W_mean + ((x * s) dW) * r with s, r in {-1, +1}. Each example sees a
    weight tensor of the right distribution, nearly independent of the other examples'.
    """

    def _apply_kernel(self, name: str, inputs: Any, kernel: Terms, step: Any) -> Any:
        mean = self._linear(name, inputs, kernel.loc)
        axes_in, axes_out = self.kind.sign_axes(self, name, len(inputs.shape), len(mean.shape))
        flipped = inputs
        if axes_in:
            flipped = inputs * self._signs(inputs, axes_in, mean.dtype, self._stream(step, name, "sign_in"))
        sign_out = self._signs(mean, axes_out, mean.dtype, self._stream(step, name, "sign_out"))
        return mean + self._linear(name, flipped, kernel.second) * sign_out

    def _stream(self, step: Any, name: str, stream: str) -> Any:
        # The streams of a layer with several kernels are told apart by the kernel's name.
        return self._seed(step, stream if len(self.kind.kernels) == 1 else f"{name}/{stream}")

    def _signs(self, like: Any, axes: tuple[int, ...], dtype: Any, seed: Any) -> Any:
        """One sign for each example and entry of the axes of `like`, broadcast over the others."""
        shape, rank, varied = tf.shape(like), len(like.shape), (0, *axes)
        extent = [shape[axis] if axis in varied else 1 for axis in range(rank)]
        signs = noise.signs(extent, seed, dtype)
        # Broadcasting against an unknown size would lose those of axes with one entry.
        return tf.ensure_shape(signs, [like.shape[axis] if axis in varied else 1 for axis in range(rank)])


class Local(Flipout):
    """Noise on the outputs instead of the weights: x mu + sqrt(x^2 sigma^2) epsilon, independent for each output.

    Kingma et al. 2015 (arXiv 1506.02557), eq. 6. Exact where each output of an example reads weights that no other
    output of it reads, as in a dense layer on vectors: outputs have the distribution that a weight draw for each
    example would give. Where positions share the weights (inputs of rank 3 and more) Flipout is used instead.
    """

    def _moment(self, inputs: Any) -> Moment:
        shared = len(self._inbound_nodes) > 1  # its calls see one draw, so none of them can draw its outputs instead
        return "variance" if len(inputs.shape) == 2 and not shared else "deviation"

    def _apply_kernel(self, name: str, inputs: Any, kernel: Terms, step: Any) -> Any:
        if self._moment(inputs) == "deviation":
            return super()._apply_kernel(name, inputs, kernel, step)
        mean = tf.matmul(inputs, kernel.loc)
        variance = tf.matmul(tf.square(tf.cast(inputs, kernel.second.dtype)), kernel.second)
        # The root has no gradient at 0, where a unit has no weight left.
        scale = tf.sqrt(variance + _LEAST_VARIANCE)
        noisy = scale * tf.cast(noise.normal(tf.shape(mean), self._seed(step, "outputs")), scale.dtype)
        return mean + tf.cast(noisy, mean.dtype)
