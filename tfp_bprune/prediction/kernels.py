"""The kernel of a dense layer: its mean, perhaps its variance, stored small, multiplied in the form that is fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.block import Block
from tfp_bprune.prediction.cost import CONVERTED, CONVERTED_FEW, FORMS, Choice, Costs, choose, takes
from tfp_bprune.prediction.csr import CsrMatrix
from tfp_bprune.prediction.grids import Grid, Steps, bits_of, levels, multiples, steps
from tfp_bprune.prediction.stored import Decoded, Multiples, Packed, Places, digest, narrowed, widened
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import Kernels, Product, Storage

_SCALE = 1  # its place among the arrays of a kernel
_GRAPH = 8192  # bytes of the operations that make a packed array ready


@dataclass(frozen=True)
class Lowering:
    """How kernels are stored and multiplied.

    Attributes:
      kernels: "dense", "sparse", "csr", or "auto": the fastest form by `costs`.
      storage: of the numbers in files; of whole numbers of a few bits, what they are rounded to.
      by_layer: the storage of layers that have another, by their names.
      costs: of this machine or the shipped ones.
      by_batch: whether small and large batches may be multiplied in different forms.
      at_load: whether kernels may be stored in a small form and made ready when a SavedModel is loaded.
      followed: whether noise is followed back through kernels, which then read all of what may be uncertain: back through
        what was taken the way is longer than what it spares.
      steps: of layers in few bits whose means have one step for all outputs, by their names: how wide it is.
      block: where files hold small arrays of layers in few bits together; None where each is held by itself.
      pixel_columns: whether convolutions may read several columns of pixels as the channels of one, see `columns`.
      unrolls: whether the steps of recurrent layers are written out, see `unrolling`.
      lacks: functions that are written out, of those in `written`.
    """

    kernels: Kernels = "auto"
    storage: Storage = "float32"
    costs: Costs = field(default_factory=Costs)
    by_batch: bool = True
    at_load: bool = True
    followed: bool = False
    by_layer: Mapping[str, Storage] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)
    block: Block | None = None
    step: float | None = None
    pixel_columns: bool = False
    unrolls: bool = False
    lacks: tuple[str, ...] = ()

    def of(self, layer: str) -> Lowering:
        """The same for the layer of this name, with what its products cost in other runtimes if these are in whole numbers."""
        storage = self.by_layer.get(layer, self.storage)
        costs = CONVERTED_FEW if bits_of(storage) and self.costs == CONVERTED else self.costs
        step = self.steps.get(layer, self.step)
        return replace(self, storage=storage, costs=costs, step=step, block=self.block if bits_of(storage) else None)

    @property
    def forms(self) -> tuple[Product, ...]:
        """Of which "auto" chooses: what is followed back goes through kernels the other way, for which rows are compressed."""
        return tuple(form for form in FORMS if form != "csr" or (self.at_load and not self.followed))

    @property
    def bits(self) -> int | None:
        """Of whole numbers; None for floats."""
        return bits_of(self.storage)


FOR_CONVERTERS = Lowering("dense", costs=CONVERTED, at_load=False)  # what ONNX and LiteRT can be made of


class DenseKernel(tf.Module):
    """A kernel [in, out] of which the dense and sparse forms in use are made when the model is loaded.

    Args:
      loc: the means.
      scale: standard deviation of each weight; None where weights are certain.
      may_take: whether inputs that no entry reads are left out, where taking the others is faster.

    Attributes:
      read: which inputs are taken; None for all.
    """

    def __init__(self, loc: np.ndarray, scale: np.ndarray | None, lowering: Lowering, may_take: bool = True) -> None:
        super().__init__()
        grids = _grids(loc, scale, lowering.bits, lowering.step)
        arrays = [grid.values for grid in grids] or ([loc] if scale is None else [loc, scale])
        pattern = np.logical_or.reduce([array != 0 for array in arrays])
        self.stored = int(pattern.sum())
        self.read = _read(pattern, lowering, len(arrays)) if may_take else None
        self._turns = not lowering.at_load
        self._taken_places = None if self.read is None else _held_places(self.read, len(loc), lowering)
        if self.read is not None:
            arrays, pattern = [array[self.read] for array in arrays], pattern[self.read]
            grids = [grid.with_codes(grid.codes[self.read]) for grid in grids]
        self.shape = pattern.shape
        self.choice: Choice = choose(
            lowering.kernels, self.shape, self.stored, lowering.costs, lowering.by_batch, lowering.forms
        )
        turned: list[Any] = [grid.with_codes(grid.codes.T) for grid in grids] or [array.T for array in arrays]
        packed = Packed(pattern.T, turned, lowering.storage, by_row=True, block=lowering.block)
        is_smaller = self.choice.sparse or _is_smaller(packed, sum(array.size for array in arrays), lowering)
        self.packed = packed if lowering.at_load and is_smaller else None
        uses = self.choice.forms
        self._dense = (
            [self._dense_form(i, array, lowering) for i, array in enumerate(arrays)] if "dense" in uses else []
        )
        self._csr = [CsrMatrix(packed, i, squared=i == _SCALE) for i in range(len(arrays))] if "csr" in uses else []
        self._indices: Any = None
        self._values: list[Any] = []
        if "sparse" in uses:
            self._indices = ready(packed.indices, f"indices-{packed.key}", packed, lowering)
            self._values = [
                ready(partial(packed.entries, i, squared=i == _SCALE), f"entries-{i}-{packed.key}", packed, lowering)
                for i in range(len(arrays))
            ]

    def _dense_form(self, which: int, array: np.ndarray, lowering: Lowering) -> Any:
        packed = self.packed
        if packed is None:  # what is rounded is not to be rounded once more
            return held(
                array, replace(lowering, storage="float32") if lowering.bits else lowering, squared=which == _SCALE
            )
        return Decoded(
            lambda: tf.transpose(packed.matrix(which, squared=which == _SCALE)), f"dense-{which}-{packed.key}", packed
        )

    def by_mean(self, inputs: Value, of: Any) -> Any:
        """The tensor `of`, which lies as `inputs` do, times the means."""
        return self._product(inputs, of, 0, lambda weights: weights)

    def by_square(self, inputs: Value, of: Any) -> Any:
        """The tensor `of` times the squares of the means, which no network needs that has kernels in compressed rows."""
        assert not self._csr
        return self._product(inputs, of, 0, tf.square)

    def by_variance(self, inputs: Value, of: Any) -> Any:
        """The tensor `of` times the variances."""
        return self._product(inputs, of, 1, lambda weights: weights)

    def laid(self, inputs: Value) -> Value:
        """The inputs as this kernel takes them: columns where a sparse form is used, and those alone that are read."""
        inputs = inputs if self.read is None else inputs.each(partial(self._taken, columns=inputs.columns))
        return inputs.as_columns() if self.choice.sparse else inputs

    def _taken(self, tensor: Any, columns: bool) -> Any:
        """Of a tensor [batch, in], or columns, what is read; small runtimes take rows of numbers the faster."""
        if self._turns and not columns:
            return tf.transpose(self._taken(tf.transpose(tensor), columns=True))
        places = tf.constant(self.read, tf.int32) if self._taken_places is None else read(self._taken_places)
        return tf.gather(tensor, places, axis=0 if columns else 1)

    @property
    def constants(self) -> int:
        """Bytes of what the graph itself holds: which inputs are taken, where nothing else holds it."""
        return 0 if self.read is None or self._taken_places is not None else 4 * len(self.read)

    def _product(self, inputs: Value, of: Any, which: int, change: Callable[[Any], Any]) -> Any:
        # Read before the choice: what is read within a branch cannot be differentiated.
        weights = change(read(self._dense[which])) if self._dense else None
        entries = change(read(self._values[which])) if self._values else None
        indices = read(self._indices) if self._indices is not None else None

        def dense() -> Any:
            return tf.matmul(weights, of, transpose_a=True) if inputs.columns else tf.matmul(of, weights)

        def sparse() -> Any:
            return tf.sparse.sparse_dense_matmul(tf.SparseTensor(indices, entries, self.shape[::-1]), of)

        def csr() -> Any:
            return self._csr[which].times(of)

        made: dict[Product, Callable[[], Any]] = {"dense": dense, "sparse": sparse, "csr": csr}
        *before, product = [made[form] for form in self.choice.forms]
        for below, limit in zip(reversed(before), reversed(self.choice.limits), strict=True):
            product = partial(tf.cond, tf.shape(of)[1] < limit, below, product)
        return product()


def _read(pattern: np.ndarray, lowering: Lowering, products: int) -> np.ndarray | None:
    """The inputs that have entries, where it is faster to take them alone."""
    found, stored = np.flatnonzero(pattern.any(1)), int(pattern.sum())
    if not 0 < len(found) < len(pattern):
        return None
    shape = pattern.shape
    is_faster = takes(lowering.kernels, shape, len(found), stored, lowering.costs, products, lowering.forms)
    return found if is_faster else None


def held(
    array: np.ndarray,
    lowering: Lowering,
    *,
    squared: bool = False,
    channels: tuple[int, ...] = (-1,),
    positive: bool = False,
) -> Any:
    """An array as a variable, or as what takes fewer bytes in a file and is made ready at load.

    Args:
      squared: its squares are wanted. Files hold the array itself: float16 has no squares of numbers below 2.4e-4.
      channels: axes of the outputs, each entry of which has a scale of its own where numbers are rounded to few bits.
      positive: whether numbers are scales of posteriors.
    """
    flat, back = _flat(array, channels if lowering.bits else (-1,))
    if lowering.bits:
        [grid] = _grids(None, flat, lowering.bits) if positive else _grids(flat, None, lowering.bits, lowering.step)
        if not lowering.at_load:
            return tf.Variable(back(np.square(grid.values) if squared else grid.values), trainable=False)
        packed = Packed(grid.values != 0, [grid], lowering.storage, block=lowering.block)
    else:
        packed = Packed(flat != 0, [flat], lowering.storage)
    name = f"{'squares' if squared else 'array'}-{array.shape}{channels if lowering.bits else ''}"
    if lowering.at_load and _is_smaller(packed, array.size, lowering):
        return Decoded(lambda: back(packed.matrix(0, squared)), f"{name}-{packed.key}", packed)
    if lowering.storage == "float32" or not lowering.at_load:
        return tf.Variable(np.square(array) if squared else array, trainable=False)
    stored = tf.Variable(narrowed(array, lowering.storage), trainable=False)
    return Decoded(lambda: widened(stored, squared), f"half-{name}-{digest(array)}", stored)


def _held_places(places: np.ndarray, count: int, lowering: Lowering) -> Decoded | None:
    """What holds some of `count` places beside weights in few bits; None where they are a constant of the graph."""
    if not lowering.bits or not lowering.at_load or lowering.block is None:
        return None
    pattern = np.zeros(count, bool)
    pattern[places] = True
    stored = Places(pattern, lowering.block)
    return Decoded(lambda: tf.cast(stored.read(), tf.int32), f"taken-{stored.key}", stored)


def held_bias(bias: np.ndarray, lowering: Lowering) -> tuple[np.ndarray, Decoded | None]:
    """A bias [...] as files give it back, and what holds it if it is no constant of the graph.

    Beside weights of one step it is a weight that reads 1: a multiple of their step.
    """
    if lowering.step is None or not lowering.bits or not lowering.at_load:
        return bias, None
    grid = multiples(bias.reshape(1, -1), lowering.step)
    stored = Multiples(grid, lowering.block)
    decode = partial(_shaped, stored.read, bias.shape)
    return grid.values.reshape(bias.shape), Decoded(decode, f"bias-{bias.shape}-{stored.key}", stored)


def _shaped(numbers: Callable[[], Any], shape: tuple[int, ...]) -> Any:
    return tf.reshape(numbers(), shape)


def _grids(loc: np.ndarray | None, scale: np.ndarray | None, bits: int | None, step: float | None = None) -> list[Grid]:
    """Means and scales [..., out] in few bits, the means with one step for all if it is given; none for floats."""
    if bits is None:
        return []
    means: list[Grid] = [] if loc is None else [steps(loc, bits) if step is None else multiples(loc, step)]
    return means if scale is None else [*means, levels(scale, bits)]


def _is_smaller(packed: Packed, count: int, lowering: Lowering) -> bool:
    """Whether files are smaller with packed entries than with all `count` numbers; few bits are always packed."""
    return lowering.bits is not None or packed.nbytes + _GRAPH < count * np.dtype(lowering.storage).itemsize


def _flat(array: np.ndarray, channels: tuple[int, ...]) -> tuple[np.ndarray, Callable[[Any], Any]]:
    """An array as [others, channels], and what brings it back from there."""
    last = [axis % array.ndim for axis in channels]
    order = [axis for axis in range(array.ndim) if axis not in last] + last
    moved = array.transpose(order)
    flat = moved.reshape(-1, math.prod(moved.shape[array.ndim - len(last) :]))
    if order == sorted(order):
        return flat, lambda values: tf.reshape(values, array.shape)
    return flat, lambda values: tf.transpose(tf.reshape(values, moved.shape), np.argsort(order))


def rounded(
    array: np.ndarray,
    storage: Storage,
    channels: tuple[int, ...] = (-1,),
    positive: bool = False,
    step: float | None = None,
) -> np.ndarray:
    """An array as files give it back; arguments as of `held`, and the step of means that have one for all outputs."""
    bits = bits_of(storage)
    if bits is None:
        return narrowed(array, storage).astype(np.float32)
    flat, back = _flat(array, channels)
    [grid] = _grids(None, flat, bits) if positive else _grids(flat, None, bits, step)
    return np.asarray(back(grid.values))


def grid_of(array: np.ndarray, storage: Storage, channels: tuple[int, ...] = (-1,)) -> Steps:
    """The grid of means in few bits with a scale for each output; arguments as of `held`."""
    bits = bits_of(storage)
    assert bits is not None
    return steps(_flat(array, channels)[0], bits)


def read(kept: Any) -> Any:
    """The tensor that `held` kept."""
    return kept.read() if isinstance(kept, Decoded) else tf.convert_to_tensor(kept)


def ready(compute: Callable[[], Any], key: str, packed: Packed, lowering: Lowering) -> Any:
    """What `compute` gives, made ready at load or, for converters, now."""
    return Decoded(compute, key, packed) if lowering.at_load else compute()
