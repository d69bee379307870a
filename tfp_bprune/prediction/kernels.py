"""The kernel of a dense layer: its mean, perhaps its variance, stored small, multiplied in the form that is fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.cost import Choice, Costs, choose
from tfp_bprune.prediction.stored import Decoded, Packed, Storage, digest, narrowed, widened
from tfp_bprune.prediction.value import Value
from tfp_bprune.types import Kernels

_SCALE = 1  # its place among the arrays of a kernel
_GRAPH = 8192  # bytes of the operations that make a packed array ready


@dataclass(frozen=True)
class Lowering:
    """How kernels are stored and multiplied.

    Attributes:
      kernels: "dense", "sparse", or "auto": the faster form by `costs`.
      storage: of the numbers in files.
      costs: of this machine or the shipped ones.
      by_batch: whether small and large batches may be multiplied in different forms.
      at_load: whether kernels may be stored in a small form and made ready when a SavedModel is loaded.
    """

    kernels: Kernels = "auto"
    storage: Storage = "float32"
    costs: Costs = field(default_factory=Costs)
    by_batch: bool = True
    at_load: bool = True


FOR_CONVERTERS = Lowering("dense", at_load=False)  # what ONNX and LiteRT can be made of


class DenseKernel(tf.Module):
    """A kernel [in, out] of which the dense and sparse forms in use are made when the model is loaded.

    Args:
      loc: the means.
      scale: standard deviation of each weight; None where weights are certain.
    """

    def __init__(self, loc: np.ndarray, scale: np.ndarray | None, lowering: Lowering) -> None:
        super().__init__()
        arrays = [loc] if scale is None else [loc, scale]
        pattern = np.logical_or.reduce([array != 0 for array in arrays])
        self.shape, self.stored = loc.shape, int(pattern.sum())
        self.choice: Choice = choose(lowering.kernels, loc.shape, self.stored, lowering.costs, lowering.by_batch)
        packed = Packed(pattern.T, [array.T for array in arrays], lowering.storage)
        dense_bytes = sum(array.size for array in arrays) * np.dtype(lowering.storage).itemsize
        uses_dense, uses_sparse = self.choice.both or not self.choice.sparse, self.choice.both or self.choice.sparse
        is_smaller = uses_sparse or packed.nbytes + _GRAPH < dense_bytes
        self.packed = packed if lowering.at_load and is_smaller else None
        self._dense = [self._dense_form(i, array, lowering) for i, array in enumerate(arrays)] if uses_dense else []
        self._indices: Any = None
        self._values: list[Any] = []
        if uses_sparse:
            self._indices = ready(packed.indices, f"indices-{packed.key}", packed, lowering)
            self._values = [
                ready(partial(packed.entries, i, squared=i == _SCALE), f"entries-{i}-{packed.key}", packed, lowering)
                for i in range(len(arrays))
            ]

    def _dense_form(self, which: int, array: np.ndarray, lowering: Lowering) -> Any:
        packed = self.packed
        if packed is None:
            return held(array, lowering, squared=which == _SCALE)
        return Decoded(
            lambda: tf.transpose(packed.matrix(which, squared=which == _SCALE)), f"dense-{which}-{packed.key}", packed
        )

    def by_mean(self, inputs: Value, of: Any) -> Any:
        """The tensor `of`, which lies as `inputs` do, times the means."""
        return self._product(inputs, of, 0, lambda weights: weights)

    def by_square(self, inputs: Value, of: Any) -> Any:
        """The tensor `of` times the squares of the means."""
        return self._product(inputs, of, 0, tf.square)

    def by_variance(self, inputs: Value, of: Any) -> Any:
        """The tensor `of` times the variances."""
        return self._product(inputs, of, 1, lambda weights: weights)

    def laid(self, inputs: Value) -> Value:
        """The inputs as this kernel takes them: columns where a sparse form is used."""
        return inputs.as_columns() if self.choice.both or self.choice.sparse else inputs

    def _product(self, inputs: Value, of: Any, which: int, change: Callable[[Any], Any]) -> Any:
        # Read before the choice: what is read within a branch cannot be differentiated.
        weights = change(read(self._dense[which])) if self._dense else None
        entries = change(read(self._values[which])) if self._values else None
        indices = read(self._indices) if self._indices is not None else None

        def dense() -> Any:
            return tf.matmul(weights, of, transpose_a=True) if inputs.columns else tf.matmul(of, weights)

        def sparse() -> Any:
            return tf.sparse.sparse_dense_matmul(tf.SparseTensor(indices, entries, self.shape[::-1]), of)

        if not self.choice.both:
            return sparse() if self.choice.sparse else dense()
        below, beyond = (sparse, dense) if self.choice.sparse else (dense, sparse)
        return tf.cond(tf.shape(of)[1] < self.choice.limit, below, beyond)


def held(array: np.ndarray, lowering: Lowering, *, squared: bool = False) -> Any:
    """An array [..., out] as a variable, or as what takes fewer bytes in a file and is made ready at load.

    Args:
      squared: its squares are wanted. Files hold the array itself: float16 has no squares of numbers below 2.4e-4.
    """
    flat = array.reshape(-1, array.shape[-1])
    packed = Packed(flat != 0, [flat], lowering.storage)
    name = f"{'squares' if squared else 'array'}-{array.shape}"
    if lowering.at_load and packed.nbytes + _GRAPH < array.size * np.dtype(lowering.storage).itemsize:
        return Decoded(lambda: tf.reshape(packed.matrix(0, squared), array.shape), f"{name}-{packed.key}", packed)
    if lowering.storage == "float32" or not lowering.at_load:
        return tf.Variable(np.square(array) if squared else array, trainable=False)
    stored = tf.Variable(narrowed(array, lowering.storage), trainable=False)
    return Decoded(lambda: widened(stored, squared), f"half-{name}-{digest(array)}", stored)


def read(kept: Any) -> Any:
    """The tensor that `held` kept."""
    return kept.read() if isinstance(kept, Decoded) else tf.convert_to_tensor(kept)


def ready(compute: Callable[[], Any], key: str, packed: Packed, lowering: Lowering) -> Any:
    """What `compute` gives, made ready at load or, for converters, now."""
    return Decoded(compute, key, packed) if lowering.at_load else compute()
