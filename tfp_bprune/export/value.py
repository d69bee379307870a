"""What a lowered network hands from layer to layer: a mean, perhaps a variance, and which way round they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    mean: Any
    variance: Any = None
    columns: bool = False
    drawn: bool = False

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
        return Value(function(self.mean), variance, self.columns if columns is None else columns, self.drawn)

    def as_rows(self) -> Value:
        """The value with examples along the first axis."""
        return self.each(tf.transpose, columns=False) if self.columns else self

    def as_columns(self) -> Value:
        """A value [batch, features] with examples along the last axis."""
        return self if self.columns else self.each(tf.transpose, columns=True)
