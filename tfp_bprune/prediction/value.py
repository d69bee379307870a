"""What a lowered network hands from layer to layer: a mean, perhaps a variance, which way round they lie, and Keras's mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tfp_bprune._keras import tf


@dataclass(frozen=True)
class Value:
    """Activations of a batch.

    Attributes:
      mean: [batch, ...], or [features, batch] where `columns`.
      variance: of the same shape; None where the activations are certain.
      columns: whether examples are columns, as sparse kernels take and give them.
      drawn: whether there is a row for each draw of each example, draws outermost.
      mask: Keras's, examples along its first axis; None where there is none.
    """

    mean: Any
    variance: Any = None
    columns: bool = False
    drawn: bool = False
    mask: Any = None

    @property
    def certain(self) -> bool:
        """Whether there is no variance."""
        return self.variance is None

    @property
    def batch_axis(self) -> int:
        """The axis of the examples."""
        return 1 if self.columns else 0

    def each(self, function: Callable[[Any], Any], columns: bool | None = None) -> Value:
        """The value with `function` applied to mean and variance."""
        variance = None if self.variance is None else function(self.variance)
        columns = self.columns if columns is None else columns
        return replace(self, mean=function(self.mean), variance=variance, columns=columns)

    def by_example(self, function: Callable[[Any, int], Any]) -> Value:
        """The value with `function(tensor, axis of the examples)` applied to mean, variance and mask."""
        mask = None if self.mask is None else function(self.mask, 0)
        return replace(self.each(lambda tensor: function(tensor, self.batch_axis)), mask=mask)

    def as_rows(self) -> Value:
        """The value with examples along the first axis."""
        return self.each(tf.transpose, columns=False) if self.columns else self

    def as_columns(self) -> Value:
        """A value [batch, features] with examples along the last axis."""
        return self if self.columns else self.each(tf.transpose, columns=True)

    def as_float(self) -> Value:
        """The value in float32, in which exports compute, as Keras casts what a layer reads."""
        if self.mean.dtype == tf.float32:
            return self
        return self.each(lambda tensor: tf.cast(tensor, tf.float32))
