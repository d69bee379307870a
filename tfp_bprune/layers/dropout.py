"""Dropout whose noise is stateless, so that a network with dropout resumes as exactly as the Bayesian ones."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import noise
from tfp_bprune.layers.rules import Factors, rule_for
from tfp_bprune.types import BpruneError, Json, if_percent


@keras.saving.register_keras_serializable("tfp_bprune")
class StatelessDropout(keras.layers.Layer):
    """Sets a fraction `rate` of the inputs to 0 while training and scales the others by 1 / (1 - rate).

    Srivastava et al. 2014. The layer counts its calls; the noise follows from (seed, name, worker, count).
    Shape of inputs and outputs: any, the same.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise BpruneError(f"StatelessDropout: rate must be in [0, 1), got {rate}{if_percent(rate)}")
        self.rate, self.seed = float(rate), int(seed)

    def build(self, input_shape: Any) -> None:
        """Creates the call counter."""
        self.noise_step = self.add_weight(
            name="noise_step", shape=(), dtype=tf.int64, initializer="zeros", **noise.of_each_replica()
        )
        super().build(input_shape)

    def call(self, inputs: Any, training: Any = None) -> Any:
        """Inputs with dropout while training, unchanged otherwise."""
        if training is None:
            training = keras.backend.learning_phase()
        return tf.cond(tf.cast(training, tf.bool), lambda: self._dropped(inputs), lambda: tf.identity(inputs))

    def _dropped(self, inputs: Any) -> Any:
        seed = noise.example_seed_pair(noise.next_step(self.noise_step, self.name), self.seed, self.name)
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed=seed)

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars."""
        return super().get_config() | {"rate": self.rate, "seed": self.seed}


rule_for(StatelessDropout)(Factors)
