"""Negative log likelihoods in nats per example; the layers add their KL / N to them."""

from __future__ import annotations

import math
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import Task

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@keras.saving.register_keras_serializable("tfp_bprune")
def gaussian_nll(y: Any, prediction: Any) -> Any:
    """-log N(y; mean, std^2) [batch] for targets y [batch] and predictions (mean, std) [batch, 2]."""
    mean, std = prediction[..., 0], prediction[..., 1]
    standardized = (tf.reshape(tf.cast(y, mean.dtype), tf.shape(mean)) - mean) / std
    return 0.5 * tf.square(standardized) + tf.math.log(std) + _HALF_LOG_TWO_PI


def _mean_squared_error(y: Any, prediction: Any) -> Any:
    mean = prediction[..., 0]
    return tf.square(tf.reshape(tf.cast(y, mean.dtype), tf.shape(mean)) - mean)


def negative_log_likelihood(task: Task) -> Any:
    """The Keras loss of `task`: cross entropy of logits and integer labels, or `gaussian_nll`."""
    if task == "regression":
        return gaussian_nll
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def training_metrics(task: Task) -> list[Any]:
    """What a run's history shows beside the loss: `nll`, and `accuracy` or `mse` (in squared target units)."""
    if task == "regression":
        metric = keras.metrics.MeanMetricWrapper
        return [metric(gaussian_nll, name="nll"), metric(_mean_squared_error, name="mse")]
    return [
        keras.metrics.SparseCategoricalCrossentropy(name="nll", from_logits=True),
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
    ]
