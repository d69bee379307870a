"""Negative log likelihoods in nats per example; the layers add their KL / N to them.

Where an example has labels for each pixel or step, the likelihood of an example is their product, so its nats are summed, those
of masked steps left out; metrics are means over labels, pixels or steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.targets import Target
from tfp_bprune.graphs.heads import Head
from tfp_bprune.types import Json, Task

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
PLAIN_NOISE = 0.5  # times the targets' standard deviation: where the noise of a `GaussianOutput` starts
OfLabels = Callable[[Any, Any], Any]


@keras.saving.register_keras_serializable("tfp_bprune")
def gaussian_nll(y: Any, prediction: Any) -> Any:
    """-log N(y; mean, std^2) [batch] for targets y [batch] and predictions (mean, std) [batch, 2].

    Of several targets [batch, k] their sum, for predictions of means and then standard deviations [batch, 2 k].
    """
    targets = prediction.shape[-1] // 2
    if targets == 1:
        return _normal_nll(y, prediction[..., 0], prediction[..., 1])
    return tf.reduce_sum(_normal_nll(y, prediction[..., :targets], prediction[..., targets:]), -1)


def _normal_nll(y: Any, mean: Any, std: Any) -> Any:
    standardized = (tf.reshape(tf.cast(y, mean.dtype), tf.shape(mean)) - mean) / std
    return 0.5 * tf.square(standardized) + tf.math.log(std) + _HALF_LOG_TWO_PI


def _mean_squared_error(y: Any, prediction: Any) -> Any:
    targets = prediction.shape[-1] // 2
    return _squared_error(y, prediction[..., 0] if targets == 1 else prediction[..., :targets])


def _squared_error(y: Any, mean: Any) -> Any:
    return tf.square(tf.reshape(tf.cast(y, mean.dtype), tf.shape(mean)) - mean)


def plain_nll(target: Target) -> OfLabels:
    """-log N(y; mean, noise^2) of a regression that says no deviation: half the targets' standard deviation is taken for it.

    The mean squared error alone has no unit in which it could be weighed against the KL; with this noise a network that says
    three quarters of the targets' variance is as sure as it should be. `GaussianOutput` learns the noise instead.
    """
    noise = PLAIN_NOISE * target.scale

    def nll(y: Any, mean: Any) -> Any:
        return _summed(_normal_nll(y, mean, tf.constant(noise, mean.dtype)), target)

    return nll


def _summed(values: Any, target: Target) -> Any:
    """Over the several labels or numbers of a position."""
    several = target.task == "multilabel" or (target.task == "regression" and target.classes > 1)
    return tf.reduce_sum(values, -1) if several else values


def _bernoulli_nll(head: Head, target: Target) -> OfLabels:
    def nll(y: Any, prediction: Any) -> Any:
        y, prediction = _alike(y, prediction)
        return _summed(keras.backend.binary_crossentropy(y, prediction, from_logits=head.logits), target)

    return nll


def _right(head: Head) -> OfLabels:
    limit = 0.0 if head.logits else 0.5

    def right(y: Any, prediction: Any) -> Any:
        y, prediction = _alike(y, prediction)
        return tf.cast(tf.equal(y > 0.5, prediction > limit), prediction.dtype)

    return right


def _alike(y: Any, prediction: Any) -> tuple[Any, Any]:
    """Zeros and ones in the type and, last axes of one aside, in the shape of the predictions."""
    y = tf.cast(y, prediction.dtype)
    smaller = y if y.shape.rank < prediction.shape.rank else prediction
    return tf.reshape(y, tf.shape(smaller)), tf.reshape(prediction, tf.shape(smaller))


@keras.saving.register_keras_serializable("tfp_bprune")
class _PerExample(keras.losses.Loss):
    """The mean over examples of the nats of each label [batch, ...], summed over an example's labels.

    Args:
      head, target: of an output, or what `to_json` gives of the one and `asdict` of the other.
      name: of the loss.
    """

    def __init__(self, head: Any, target: Any, name: str, **_: Any) -> None:
        super().__init__(name=name)
        self.head, self._target = _read(head, target)
        self._of_labels = _nats(self.head, self._target)

    def get_config(self) -> Json:
        """The arguments as plain data."""
        return {"name": self.name, "head": self.head.to_json(), "target": asdict(self._target)}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """A scalar; Keras hands over masks among the weights."""
        values = self._of_labels(y_true, _single(y_pred))
        batch = tf.cast(tf.shape(values)[0], values.dtype)
        if sample_weight is not None:
            weights = tf.cast(sample_weight, values.dtype)
            while weights.shape.rank > values.shape.rank:
                weights = tf.squeeze(weights, -1)
            while weights.shape.rank < values.shape.rank:
                weights = weights[..., None]
            values = values * weights
        return tf.reduce_sum(values) / batch


def _single(prediction: Any) -> Any:
    """Predictions of two bytes as float32, in which logarithms and sums lose nothing."""
    return tf.cast(prediction, tf.float32) if prediction.dtype.size < 4 else prediction


def _of_classes(head: Head) -> OfLabels:
    return lambda y, prediction: keras.losses.sparse_categorical_crossentropy(y, prediction, from_logits=head.logits)


def _read(head: Any, target: Any) -> tuple[Head, Target]:
    if isinstance(target, Mapping):
        target = Target(**{**target, "positions": tuple(target["positions"])})
    return Head(**head) if isinstance(head, Mapping) else head, target


def _nats(head: Head, target: Target) -> OfLabels:
    """The negative log likelihood of each label."""
    if head.task == "gaussian":
        return gaussian_nll
    if head.task == "regression":
        return plain_nll(target)
    return _of_classes(head) if head.task == "classification" else _bernoulli_nll(head, target)


_LOSS_NAMES = {
    "gaussian": "gaussian_nll", "regression": "gaussian_nll_of_fixed_noise",
    "classification": "sparse_categorical_crossentropy",
}  # fmt: skip


def loss_of(head: Head, target: Target, half: bool = False) -> Any:
    """The Keras loss of an output that means `head`, trained on `target`; `half`: it comes in two bytes."""
    if head.task == "gaussian" and not target.positions and not half:
        return gaussian_nll  # a function that Keras stores by name, where no labels of an example are to be summed
    if head.task == "classification" and not target.positions and not half:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=head.logits)
    return _PerExample(head, target, _LOSS_NAMES.get(head.task, "binary_crossentropy"))


@keras.saving.register_keras_serializable("tfp_bprune")
class _MeanOf(keras.metrics.MeanMetricWrapper):
    """A mean over labels, as a metric that Keras can store.

    Args:
      name: "nll", "accuracy" or "mse".
      head, target: as of `_PerExample`.
    """

    def __init__(self, name: str, head: Any, target: Any, dtype: Any = None) -> None:
        self._head, self._target = _read(head, target)
        squares = _squared_error if self._head.task == "regression" else _mean_squared_error
        of_labels = {"nll": _nats, "accuracy": lambda head, _: _right(head), "mse": lambda *_: squares}
        super().__init__(of_labels[name](self._head, self._target), name=name, dtype=dtype)

    def get_config(self) -> Json:
        """The arguments as plain data."""
        return {"name": self.name, "dtype": self.dtype, "head": self._head.to_json(), "target": asdict(self._target)}


def metrics_of(head: Head, target: Target) -> list[Any]:
    """What a run's history shows beside the loss: `nll`, and `accuracy` or `mse` (in squared target units)."""
    if head.task in ("gaussian", "regression"):
        return [_MeanOf("nll", head, target), _MeanOf("mse", head, target)]
    if head.task == "classification":
        return [
            keras.metrics.SparseCategoricalCrossentropy(name="nll", from_logits=head.logits),
            keras.metrics.SparseCategoricalAccuracy("accuracy"),
        ]
    return [_MeanOf("nll", head, target), _MeanOf("accuracy", head, target)]


def negative_log_likelihood(task: Task) -> Any:
    """The Keras loss of `task` for a network of `build`: cross entropy of logits, of integer labels or of zeros and ones, or
    `gaussian_nll`."""
    return loss_of(_built(task), _any(task))


def _built(task: Task) -> Head:
    return Head("gaussian") if task == "regression" else Head(task, logits=True)


def _any(task: Task) -> Target:
    return Target(task, 1 if task == "regression" else 2)
