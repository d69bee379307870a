"""Metrics of probabilities for `model.compile(metrics=[...])`: calibration, Brier score, negative log likelihood.

`loss` and `val_loss` of a Bayesian network hold its KL, most of the time more of it than of anything else: what says how well
the network predicts, and what `EarlyStopping` should watch, is `val_nll`.
"""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import BpruneError, Json

_BINS = 15


class _OfProbabilities(keras.metrics.Metric):
    """Takes labels and outputs as Keras hands them over.

    Args:
      from_logits: whether outputs are logits.
      name, dtype: as of any metric.
    """

    called = ""

    def __init__(self, from_logits: bool = False, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(name=name or self.called, dtype=dtype)
        self.from_logits = bool(from_logits)

    def get_config(self) -> Json:
        """The arguments."""
        return {**super().get_config(), "from_logits": self.from_logits}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch: class numbers [batch, ...] or one-hot rows, or for one output zeros and ones, and outputs [batch, ..., classes].

        Raises:
          BpruneError: labels are of another shape.
        """
        labels, probabilities = self._read(y_true, y_pred)
        weights = tf.ones(tf.shape(labels), self.dtype)
        if sample_weight is not None:
            given = tf.cast(sample_weight, self.dtype)
            while given.shape.rank > weights.shape.rank:
                given = tf.squeeze(given, -1)
            while given.shape.rank < weights.shape.rank:
                given = given[..., None]
            weights *= given
        flat = tf.reshape(probabilities, [-1, probabilities.shape[-1]])
        self._add(tf.reshape(labels, [-1]), flat, tf.reshape(weights, [-1]))

    def reset_state(self) -> None:
        """Forgets what was added."""
        for variable in self.variables:
            variable.assign(tf.zeros_like(variable))

    def _read(self, y_true: Any, y_pred: Any) -> tuple[Any, Any]:
        """Class numbers [batch, ...] and probabilities [batch, ..., classes], of one output those of both classes."""
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.cast(y_pred, self.dtype)
        width = y_pred.shape[-1]
        if self.from_logits:
            y_pred = tf.math.sigmoid(y_pred) if width == 1 else tf.nn.softmax(y_pred)
        if width == 1:
            y_pred = tf.concat([1 - y_pred, y_pred], -1)
        same_rank = y_true.shape.rank == y_pred.shape.rank
        if same_rank and y_true.shape[-1] not in (1, None, width):
            raise BpruneError(
                f"{self.name} got labels {y_true.shape} for outputs {y_pred.shape}: expected class numbers"
            )
        if same_rank:
            y_true = y_true[..., 0] if y_true.shape[-1] == 1 else tf.argmax(y_true, -1)
        return tf.cast(y_true, tf.int64), y_pred

    def _add(self, labels: Any, probabilities: Any, weights: Any) -> None:
        raise NotImplementedError


class _Mean(_OfProbabilities):
    """A mean over labels."""

    def __init__(self, from_logits: bool = False, name: str | None = None, dtype: Any = None) -> None:
        super().__init__(from_logits, name, dtype)
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def _add(self, labels: Any, probabilities: Any, weights: Any) -> None:
        self.total.assign_add(tf.reduce_sum(weights * self._of_each(labels, probabilities)))
        self.count.assign_add(tf.reduce_sum(weights))

    def _of_each(self, labels: Any, probabilities: Any) -> Any:
        raise NotImplementedError

    def result(self) -> Any:
        """The mean so far."""
        return tf.math.divide_no_nan(self.total, self.count)


@keras.saving.register_keras_serializable("tfp_bprune")
class NegativeLogLikelihood(_Mean):
    """Negative log-likelihood as a Keras metric, in nats per example or label: the loss without its KL.

    `bp.fit` logs it as `nll` and `val_nll`.

    Args:
      from_logits: whether outputs are logits.

    >>> metric = NegativeLogLikelihood()
    >>> metric.update_state([1, 0], [[0.5, 0.5], [1.0, 0.0]])
    >>> round(float(metric.result()), 4)
    0.3466
    """

    called = "nll"

    def _of_each(self, labels: Any, probabilities: Any) -> Any:
        return -tf.math.log(tf.maximum(tf.gather(probabilities, labels, axis=1, batch_dims=1), keras.backend.epsilon()))


@keras.saving.register_keras_serializable("tfp_bprune")
class BrierScore(_Mean):
    """Brier score as a Keras metric: the sum over classes of the squared difference between probability and truth, from 0 to 2.

    Args:
      from_logits: whether outputs are logits.

    >>> metric = BrierScore()
    >>> metric.update_state([1, 0], [[0.5, 0.5], [1.0, 0.0]])
    >>> float(metric.result())
    0.25
    """

    called = "brier"

    def _of_each(self, labels: Any, probabilities: Any) -> Any:
        truth = tf.one_hot(labels, probabilities.shape[-1], dtype=probabilities.dtype)
        return tf.reduce_sum(tf.square(probabilities - truth), -1)


@keras.saving.register_keras_serializable("tfp_bprune")
class ExpectedCalibrationError(_OfProbabilities):
    """Expected calibration error as a Keras metric: the mean gap between confidence and accuracy over equal bins of confidence.

    Guo et al. 2017, arXiv 1706.04599, eq. 3.

    Args:
      from_logits: whether outputs are logits.
      bins: number of bins.

    >>> metric = ExpectedCalibrationError()
    >>> metric.update_state([0, 1], [[0.75, 0.25], [0.75, 0.25]])
    >>> float(metric.result())
    0.25
    """

    called = "ece"

    def __init__(
        self, from_logits: bool = False, bins: int = _BINS, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(from_logits, name, dtype)
        if bins < 1:
            raise BpruneError(f"bins must be at least 1, got {bins}")
        self.bins = int(bins)
        self.gaps = self.add_weight(name="gaps", shape=(self.bins,), initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def _add(self, labels: Any, probabilities: Any, weights: Any) -> None:
        confidence = tf.reduce_max(probabilities, -1)
        right = tf.cast(tf.equal(tf.argmax(probabilities, -1), labels), confidence.dtype)
        bins = tf.minimum(tf.cast(confidence * self.bins, tf.int32), self.bins - 1)
        self.gaps.assign_add(tf.math.unsorted_segment_sum(weights * (right - confidence), bins, self.bins))
        self.count.assign_add(tf.reduce_sum(weights))

    def result(self) -> Any:
        """The error so far."""
        return tf.math.divide_no_nan(tf.reduce_sum(tf.abs(self.gaps)), self.count)

    def get_config(self) -> Json:
        """The arguments."""
        return {**super().get_config(), "bins": self.bins}
