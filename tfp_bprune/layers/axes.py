"""Which axis of a kernel runs over what a layer reads, and which over what it makes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axes:
    """Axes of a weight tensor, as indices of its shape.

    Attributes:
      read: the axis of the input channels; None where an entry belongs to no single one, as in a bias.
      made: the axis of the output channels; None where an entry makes no single one, as in a depthwise kernel whose
        input channels are its output channels.
    """

    read: int | None = -2
    made: int | None = -1
