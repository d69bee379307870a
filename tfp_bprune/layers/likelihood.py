"""The Gaussian likelihood of regression: a last layer that puts a noise scale beside the predicted mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.posterior import rho_of, scale_of
from tfp_bprune.layers.rules import LayerRule, Spread, rule_for
from tfp_bprune.types import BpruneError, Json


@keras.saving.register_keras_serializable("tfp_bprune")
class GaussianOutput(keras.layers.Layer):
    """Turns a standardized prediction [batch, 1] into (mean, noise standard deviation) [batch, 2] in target units.

    Args:
      loc, scale: mean and standard deviation of the training targets.
      noise: standard deviation of the noise in target units, fixed; None learns it, starting from `scale` / 2.

    It computes in the type of its weights also where others are of mixed precision: in 16 bits a mean far from 0 would be
    rounded by more than the noise.

    Raises:
      BpruneError: a scale or noise that is not positive.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0, noise: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._set_dtype_policy(self.variable_dtype)
        for name, value in (("scale", scale), ("noise", noise)):
            if value is not None and not value > 0:
                raise BpruneError(f"GaussianOutput: {name} must be positive, got {value}")
        self.loc, self.scale, self.noise = float(loc), float(scale), noise

    def build(self, input_shape: Any) -> None:
        """Creates the noise parameter, trainable unless the noise is fixed."""
        start = 0.5 if self.noise is None else self.noise / self.scale
        initial = keras.initializers.Constant(float(rho_of(start)))
        self.noise_rho = self.add_weight(name="noise_rho", shape=(), initializer=initial, trainable=self.noise is None)
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        """Mean and noise standard deviation, [batch, 2]."""
        mean = self.loc + self.scale * inputs
        return tf.concat([mean, tf.ones_like(mean) * (self.scale * scale_of(self.noise_rho))], axis=-1)

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars."""
        return super().get_config() | {"loc": self.loc, "scale": self.scale, "noise": self.noise}


@rule_for(GaussianOutput)
class _InTargetUnits(LayerRule):
    by_example = True

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        mean, variance = inputs[0]
        return Spread(layer(mean), tf.concat([variance * layer.scale**2, tf.zeros_like(variance)], -1))
