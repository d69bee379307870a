"""A convolution of few channels that reads several columns of pixels as the channels of one.

LiteRT's kernels multiply channels in blocks, and fill up with zeros what has fewer: an image of one gray channel pays for eight in
whole numbers, and a filter for sixteen. With G columns side by side as channels of one, rows [W, in] are [W / G, G in] without
anything being moved, and one position makes the outputs of G columns, [G out], by a kernel in which the filters stand at G offsets,
with zeros beside them. The outputs are the same numbers in the same order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.layers import kind_of
from tfp_bprune.layers.convolution import Convolution

_MOST = 16  # columns in one
_LESS = 0.75  # of the products that there are without, zeros among them: worth the larger kernel
_OUT = 16  # outputs in a block
_IN, _IN_FEW = 1, 8  # inputs in a block: in floats, and in whole numbers
_MOVED, _MOVED_FEW = 400, 1500  # products in the time in which one number gets its place beside padding


@dataclass(frozen=True)
class Columns:
    """How many columns are read as one, and what follows.

    Attributes:
      count: G.
      kernel_size, strides: of the convolution over positions before, the last one over columns.
      padding: zeros before and after along each axis of the positions.
      outputs: of the convolution, the sizes of its positions [.., height, width].
    """

    count: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    outputs: tuple[int, ...]

    @property
    def width(self) -> int:
        """Of the kernel over columns in one."""
        return math.ceil((self.strides[-1] * (self.count - 1) + self.kernel_size[-1]) / (self.strides[-1] * self.count))

    def kernel(self, kernel: np.ndarray) -> np.ndarray:
        """A kernel [.., height, width, in, out] as one [.., height, width over columns in one, stride G in, G out]."""
        *heights, width, inputs, outputs = kernel.shape
        step = self.strides[-1]
        wide = np.zeros((*heights, self.width * step * self.count, inputs, self.count, outputs), kernel.dtype)
        for place in range(self.count):
            wide[..., step * place : step * place + width, :, place, :] = kernel
        return wide.reshape(*heights, self.width, step * self.count * inputs, self.count * outputs)

    def bias(self, bias: np.ndarray) -> np.ndarray:
        """A bias [out] as one [G out]."""
        return np.tile(bias, self.count)

    def apply(self, inputs: Any, kernel: Any) -> Any:
        """The products of inputs [batch, .., height, width, in] with such a kernel: [batch, .., height, width / G, G out]."""
        if any(itertools.chain(*self.padding)):
            inputs = tf.pad(inputs, [[0, 0], *self.padding, [0, 0]])
        *sizes, width, channels = inputs.shape[1:]
        across = self.strides[-1] * self.count
        grouped = tf.reshape(inputs, [-1, *sizes, width // across, across * channels])
        return tf.nn.convolution(grouped, kernel, strides=[*self.strides[:-1], 1], padding="VALID")

    def apart(self, outputs: Any) -> Any:
        """Outputs [batch, .., height, width / G, G out] as [batch, .., height, width, out]."""
        return tf.reshape(outputs, [-1, *self.outputs, outputs.shape[-1] // self.count])


def columns_of(layer: Any, shapes: Sequence[Any], few: bool) -> Columns | None:
    """How a convolution is computed in the fewest products, if that is clearly fewer than as it is; else None.

    Args:
      layer: of Keras, or one that has its arguments.
      shapes: of the inputs of all of its calls, [batch, .., height, width, in].
      few: whether it is multiplied in whole numbers.
    """
    sizes = {tuple(shape[1:-1]) for shape in shapes}
    if len(sizes) > 1 or not _is_plain(layer, next(iter(sizes))):
        return None
    size, (inputs, outputs) = next(iter(sizes)), layer.kernel.shape[-2:]
    tried = [one for count in range(2, _MOST + 1) if _fits(one := _columns(layer, size, count))]
    found = [(_products(one, inputs, outputs, few) + _moved(one, size, inputs, few), one) for one in tried]
    least, best = min(found, key=lambda pair: pair[0], default=(math.inf, None))
    return best if least <= _LESS * _products(_columns(layer, size, 1), inputs, outputs, few) else None


def _is_plain(layer: Any, size: tuple[int | None, ...]) -> bool:
    """Whether it is a convolution, but for one of groups, a spread or a causal one, over positions that are known."""
    return (
        isinstance(kind_of(layer), Convolution)
        and len(layer.kernel_size) == len(size)
        and None not in size
        and layer.data_format == "channels_last"
        and getattr(layer, "groups", 1) == 1
        and set(layer.dilation_rate) == {1}
        and layer.padding in ("valid", "same")
    )


def _columns(layer: Any, size: tuple[int, ...], count: int) -> Columns:
    """So many columns as one, where they fit."""
    kernel_size, strides = tuple(layer.kernel_size), tuple(layer.strides)
    same = layer.padding == "same"
    outputs = tuple(
        math.ceil(one / step) if same else (one - width) // step + 1
        for one, width, step in zip(size, kernel_size, strides, strict=True)
    )
    missing = [
        max(step * (made - 1) + width - one, 0) if same else 0
        for one, width, step, made in zip(size, kernel_size, strides, outputs, strict=True)
    ]
    *padding, (before, _) = [(one // 2, one - one // 2) for one in missing]
    found = Columns(count, kernel_size, strides, (), outputs)
    after = (outputs[-1] // count - 1 + found.width) * strides[-1] * count - size[-1] - before
    return replace(found, padding=(*padding, (before, after)))


def _fits(columns: Columns) -> bool:
    """Whether so many columns go into what is read and what is made."""
    return columns.outputs[-1] % columns.count == 0 and columns.padding[-1][1] >= 0


def _products(columns: Columns, inputs: int, outputs: int, few: bool) -> int:
    """Products an example, with those by the zeros that fill up blocks."""
    positions = math.prod(columns.outputs) // columns.count * math.prod(columns.kernel_size[:-1]) * columns.width
    read = _filled(columns.strides[-1] * columns.count * inputs, _IN_FEW if few else _IN)
    return positions * read * _filled(columns.count * outputs, _OUT)


def _moved(columns: Columns, size: tuple[int, ...], inputs: int, few: bool) -> int:
    """What padding costs, as products."""
    if not any(itertools.chain(*columns.padding)):
        return 0
    padded = (sum(pair) + one for pair, one in zip(columns.padding, size, strict=True))
    return (_MOVED_FEW if few else _MOVED) * inputs * math.prod(padded)


def _filled(count: int, block: int) -> int:
    return math.ceil(count / block) * block
