"""Layers that give their input back outside training: dropout, noise, augmentation. Some can be asked to be random anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.rules.moves import Keeps
from tfp_bprune.layers.rules.rule import Channels, Spread, rule_for

_L = keras.layers
_ALPHA_P = -1.6732632423543772 * 1.0507009873554805  # what AlphaDropout puts in the place of what it drops


class Identity(Keeps):
    """Gives its input back outside training."""

    is_identity = True
    meaning = "same"

    def returned(self, layer: Any, inputs: Any) -> Any:
        """What it gives for a tensor: the same numbers."""
        return inputs

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        """The same."""
        return inputs

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        """Those of the input."""
        return inputs[0]


class Random(Protocol):
    """Random numbers of draws, shaped [draws, 1, ...] to meet values [draws, batch, ...]."""

    def uniform(self) -> Any:
        """Uniform on [0, 1)."""

    def normal(self) -> Any:
        """Standard normal."""


class Noise(Identity):
    """Random where it is called with training=True, as Monte-Carlo dropout (Gal and Ghahramani 2016, arXiv 1506.02142).

    Such a call is drawn in the predictive "sampled", carried as a variance in "moments", and off in "mean".

    Attributes:
      keeps_zeros: whether a 0 stays one.
    """

    keeps_zeros: ClassVar[bool] = False

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        """Those of the input, unless the noise was made for as many as there are."""
        said = getattr(layer, "noise_shape", None)
        return None if said and said[-1] not in (None, 1) else super().channels(layer, inputs, shape)

    def strength(self, layer: Any) -> float:
        """Of the noise; 0 where there is none."""
        return float(layer.rate)

    def noisy(self, layer: Any, values: Any, random: Random) -> Any:
        """What the layer makes of values [draws, batch, ...], of that shape; all examples of a draw share its noise."""
        raise NotImplementedError

    def noise_shape(self, layer: Any, inputs: Any) -> Any:
        """Of the noise of inputs [batch, ...], with 1 along axes that share it; None for the shape of the inputs."""
        return None

    def noise_variance(self, layer: Any, mean: Any, variance: Any) -> Any:
        """The variance that is added to independent numbers, of which the means stay.

        Args:
          variance: None for certain ones.

        Returns:
          A tensor of the shape of `mean`; None where numbers share noise or means do not stay: moments are refused then.
        """
        return None

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        """That of the input; of a call that is random, none but 0."""
        if training and self.keeps_zeros:
            return np.where(values[0] == 0, 0.0, np.nan)
        return super().constant(layer, values, training)


class Factors(Noise):
    """Factors of mean 1 for each number by itself, as dropout: 1 / q with probability q = 1 - rate, else 0.

    The variance of x becomes E[x^2] / q - E[x]^2: E[x^2] (1 - q) / q are added, with Gaussian factors of that variance too.
    """

    keeps_zeros = True

    def noisy(self, layer: Any, values: Any, random: Random) -> Any:
        """Values that are kept are divided by their probability."""
        rate = self.strength(layer)
        return values * tf.cast(random.uniform() >= rate, values.dtype) / (1 - rate)

    def noise_variance(self, layer: Any, mean: Any, variance: Any) -> Any:
        """E[x^2] (1 - q) / q."""
        rate, square = self.strength(layer), tf.square(mean)
        return (square if variance is None else square + variance) * (rate / (1 - rate))


@rule_for(_L.Dropout, _L.SpatialDropout1D, _L.SpatialDropout2D, _L.SpatialDropout3D)
class _Masked(Factors):
    """With a mask of the inputs' shape, or of `noise_shape`, or of one that the class says, as Keras invites to."""

    overridable = frozenset({"_get_noise_shape"})

    def noise_shape(self, layer: Any, inputs: Any) -> Any:
        return layer._get_noise_shape(inputs)

    def noise_variance(self, layer: Any, mean: Any, variance: Any) -> Any:
        shared = [said not in (None, size) for said, size in zip(layer.noise_shape or (), mean.shape, strict=False)]
        if any(shared) or type(layer)._get_noise_shape is not _L.Dropout._get_noise_shape:
            return None
        return super().noise_variance(layer, mean, variance)


@rule_for(_L.GaussianDropout)
class _GaussianFactors(Factors):
    def noisy(self, layer: Any, values: Any, random: Random) -> Any:
        rate = self.strength(layer)
        return values * (1 + math.sqrt(rate / (1 - rate)) * random.normal())


@rule_for(_L.GaussianNoise)
class _Added(Noise):
    def strength(self, layer: Any) -> float:
        return float(layer.stddev)

    def noisy(self, layer: Any, values: Any, random: Random) -> Any:
        return values + self.strength(layer) * random.normal()

    def noise_variance(self, layer: Any, mean: Any, variance: Any) -> Any:
        return tf.fill(tf.shape(mean), np.float32(self.strength(layer) ** 2))


@rule_for(_L.AlphaDropout)
class _Alpha(Noise):
    """Keeps mean and variance of standard normals (Klambauer et al. 2017)."""

    def noise_shape(self, layer: Any, inputs: Any) -> Any:
        return layer._get_noise_shape(inputs)

    def noisy(self, layer: Any, values: Any, random: Random) -> Any:
        rate = self.strength(layer)
        kept = tf.cast(random.uniform() >= rate, values.dtype)
        factor = ((1 - rate) * (1 + rate * _ALPHA_P**2)) ** -0.5
        return factor * (values * kept + _ALPHA_P * (1 - kept) - _ALPHA_P * rate)


rule_for(_L.ActivityRegularization)(Identity)


@rule_for(
    _L.RandomFlip, _L.RandomTranslation, _L.RandomRotation, _L.RandomZoom, _L.RandomContrast, _L.RandomBrightness,
    _L.RandomHeight, _L.RandomWidth,
)  # fmt: skip
class _Augmented(Identity):
    """Also of whole numbers it makes such as it computes in. `RandomCrop` is none of these: it cuts outside training too."""

    def returned(self, layer: Any, inputs: Any) -> Any:
        return tf.cast(inputs, layer.compute_dtype)
