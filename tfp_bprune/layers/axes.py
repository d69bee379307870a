"""Which axis of a kernel runs over what a layer reads, and which over what it makes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from tfp_bprune.types import BpruneError, Groups


def check_groups(groups: Groups) -> Groups:
    """Groups of weights by their name.

    Raises:
      BpruneError: there are none of that name.
    """
    if groups not in get_args(Groups):
        raise BpruneError(f"prior: groups must be one of {', '.join(get_args(Groups))}, got {groups!r}")
    return groups


def axes_of_one(shape: Iterable[int]) -> list[int]:
    """The axes of `shape` with a single entry: those over which the weights of a group lie, of a group's number."""
    return [axis for axis, size in enumerate(shape) if size == 1]


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


@dataclass(frozen=True)
class Sides:
    """Which axes of a weight tensor together tell, of an entry, the input that it reads and the output that it makes.

    One axis each of most kernels; several where the inputs or outputs of a layer have several axes, as the heads of
    attention. The entries of no axis all belong to one.

    Attributes:
      read, made: the axes, from 0.
    """

    read: tuple[int, ...] = ()
    made: tuple[int, ...] = ()

    @classmethod
    def of(cls, axes: Axes, rank: int) -> Sides:
        """Those of a kernel with `axes`, and `rank` in all. One without an axis of outputs alone belongs to its inputs."""
        read = () if axes.read is None else (axes.read % rank,)
        return cls(read, read if axes.made is None else (axes.made % rank,))

    def groups(self, of: Groups) -> dict[str, tuple[int, ...]]:
        """The axes along which groups of weights differ, by the side that they are of.

        Args:
          of: "input", "output" or "both"; one side alone where its axes say all that those of the other do.
        """
        if of != "both":
            return {"read": self.read} if of == "input" else {"made": self.made}
        if set(self.read) <= set(self.made):
            return {"made": self.made}
        return {"read": self.read} if set(self.made) <= set(self.read) else {"read": self.read, "made": self.made}
