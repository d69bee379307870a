"""What an export does to its answers so that they hold what they promise: a temperature, sets of classes, intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.graphs.heads import Head
from tfp_bprune.prediction.answers import Outputs
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import ExportError

SET, INTERVAL = "prediction_set", "interval"


@dataclass(frozen=True)
class Calibration:
    """Of a network with one output.

    Attributes:
      temperature: what logits are divided by (Guo et al. 2017, arXiv 1706.04599), those of each draw before probabilities
        are made and averaged; a number, a variable while it is fitted, or None.
      reach: of classes, by how much less than 1 the probability of a class in the set may be; of a regression, how many
        deviations an interval goes from the mean, [targets] or one; None for neither.
    """

    temperature: Any = None
    reach: Any = None

    def cooled(self, value: Value) -> Value:
        """Logits with their variances, divided by the temperature."""
        if self.temperature is None:
            return value
        variance = None if value.certain else value.variance / tf.square(self.temperature)
        return replace(value, mean=value.mean / self.temperature, variance=variance)

    def around(self, body: Callable[..., Outputs], head: Head) -> Callable[..., Outputs]:
        """`body`, which also gives sets or intervals if there is a reach."""
        if self.reach is None:
            return body

        def answered(*inputs: Any) -> Outputs:
            outputs = body(*inputs)
            return outputs | (self._set(outputs, head) if head.classifies else self._interval(outputs))

        return answered

    def _set(self, outputs: Outputs, head: Head) -> Outputs:
        """All classes that are probable enough (LAC, Sadinle et al. 2019, arXiv 1609.00451): `prediction_set` [batch, classes]."""
        probabilities = outputs["probabilities"]
        if head.task == "binary":
            probabilities = tf.concat([1.0 - probabilities, probabilities], -1)
        return {SET: 1.0 - probabilities <= tf.constant(self.reach, tf.float32)}

    def _interval(self, outputs: Outputs) -> Outputs:
        """`interval` [batch, 2] or [batch, targets, 2]: its lower and its upper end."""
        mean = outputs["mean"]
        half = tf.constant(self.reach, tf.float32) * deviation(outputs, tf.ones_like(mean))
        return {INTERVAL: tf.stack([mean - half, mean + half], -1)}


def deviation(outputs: Mapping[str, Any], otherwise: Any) -> Any:
    """By what an interval goes: the deviation of a target, where the network says one (Lei et al. 2018, arXiv 1604.04173,
    section 5.2); `otherwise` the same for all."""
    if "noise_std" not in outputs:
        return otherwise
    noise, weights = outputs["noise_std"], outputs.get("weights_std")
    if weights is None:
        return noise
    return (noise**2 + weights**2) ** 0.5


def scores_for(outputs: Mapping[str, np.ndarray], targets: np.ndarray, head: Head) -> np.ndarray:
    """By what a target is off: [n] of classes, [n] or [n, targets] of a regression; the larger the less it conforms."""
    if not head.classifies:
        mean = outputs["mean"]
        return np.abs(targets.reshape(mean.shape) - mean) / deviation(outputs, np.ones_like(mean))
    p = outputs["probabilities"]
    p = np.concatenate([1 - p, p], -1) if head.task == "binary" else p
    return 1 - p[np.arange(len(p)), targets.reshape(-1).astype(int)]


def check_calibrated(heads: Mapping[str, Head], shapes: Mapping[str, Any], what: str) -> Head:
    """The one output's meaning, if it can have sets, intervals or a temperature.

    Raises:
      ExportError: there are several outputs, several labels, or answers of many positions.
    """
    if len(heads) > 1:
        raise ExportError(f"{what} is for a network with one output, got {', '.join(map(repr, heads))}: leave it out")
    [(name, head)] = heads.items()
    if head.task == "multilabel":
        raise ExportError(f"{what} is for classes of which one is right, got several labels in {name!r}: leave it out")
    if what == "calibrate" and not head.classifies:
        raise ExportError(f"calibrate='temperature' is for classes, got the regression {name!r}: leave it out")
    if what == "conformal" and len(shapes[name]) != 2:
        raise ExportError(f"conformal is for one answer per example, got {name!r} {tuple(shapes[name])}: leave it out")
    return head
