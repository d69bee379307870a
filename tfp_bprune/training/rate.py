"""Adam whose learning rate follows a schedule until somebody sets it, also where losses are scaled for float16."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import TrainingError

_NOTHING = -1.0  # no rate


@keras.saving.register_keras_serializable("tfp_bprune")
class SettableAdam(keras.optimizers.legacy.Adam):
    """Adam on a learning-rate schedule, whose rate can be read and set as that of an Adam without one.

    `optimizer.lr` and `optimizer.learning_rate` are a variable that shows the rate at the current step. Once somebody has
    given it another value, as `LearningRateScheduler` and `ReduceLROnPlateau` do, that is the rate, and the schedule is
    no longer looked at.
    """

    def __init__(self, learning_rate: Any = 1e-3, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        # The schedule holds as long as the two are equal.
        self._rate, self._shown = (tf.Variable(self._scheduled(0), trainable=False) for _ in range(2))

    @property
    def rate_state(self) -> list[Any]:
        """The variables that say what the rate is, and whether somebody set it."""
        return [self._rate, self._shown]

    @property
    def rate_is_set(self) -> bool:
        """Whether the schedule is no longer followed."""
        return bool(self._rate.numpy() != self._shown.numpy())

    def leave_schedule(self) -> None:
        """From now on keeps the rate at what it is, until somebody sets it."""
        self._shown.assign(_NOTHING)

    def _scheduled(self, step: Any) -> Any:
        rate = self._hyper["learning_rate"]
        scheduled = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
        return tf.cast(rate(tf.cast(step, tf.float32)) if scheduled else rate, tf.float32)

    def _decayed_lr(self, dtype: Any) -> Any:
        return tf.where(self._rate == self._shown, super()._decayed_lr(dtype), tf.cast(self._rate, dtype))

    def __getattribute__(self, name: str) -> Any:
        if name not in ("lr", "learning_rate"):
            return super().__getattribute__(name)
        if not tf.executing_eagerly():
            return self._decayed_lr(tf.float32)
        if not self.rate_is_set:
            for variable in self.rate_state:
                variable.assign(self._scheduled(self.iterations))
        return self._rate

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("lr", "learning_rate"):
            super().__setattr__(name, value)
        elif callable(value):
            raise TrainingError(
                "the learning rate was set to a function or schedule during training: expected a number"
            )
        else:
            self._rate.assign(value)
            self._shown.assign(_NOTHING)


_LossScale: Any = keras.src.mixed_precision.loss_scale_optimizer.LossScaleOptimizer


@keras.saving.register_keras_serializable("tfp_bprune")
class ScaledAdam(_LossScale):
    """A `SettableAdam` behind Keras's loss scaling, with which gradients of float16 do not underflow."""

    @property
    def rate_state(self) -> list[Any]:
        """As Adam's."""
        return self.inner_optimizer.rate_state

    def leave_schedule(self) -> None:
        """As Adam's."""
        self.inner_optimizer.leave_schedule()


def for_precision(optimizer: Any, model: Any) -> Any:
    """The optimizer, behind loss scaling where a layer of `model` computes in float16 and it is not yet."""
    policies = {getattr(layer.dtype_policy, "name", "") for layer in model._flatten_layers(include_self=False)}
    if "mixed_float16" not in policies or isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        return optimizer
    return (
        ScaledAdam(optimizer)
        if hasattr(optimizer, "rate_state")
        else keras.mixed_precision.LossScaleOptimizer(optimizer)
    )
