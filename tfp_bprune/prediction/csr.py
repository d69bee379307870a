"""A matrix in compressed rows (CSR), made once when a SavedModel is loaded, and its product with columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.prediction.stored import Decoded, Packed


class CsrMatrix(Decoded):
    """One matrix [rows, columns] of those that are packed, or the squares of its entries.

    Args:
      which: of the matrices.
      squared: whether its squares are wanted.
    """

    def __init__(self, packed: Packed, which: int, squared: bool = False) -> None:
        self._rows_columns = np.array(packed.shape, np.int64)
        super().__init__(
            lambda: self._made(packed.indices(), packed.entries(which, squared)), f"csr-{which}-{packed.key}", packed
        )

    def read(self) -> Any:
        """The matrix, a variant.

        `SparseMatrixMatMul` asks what its variant holds when a graph is built, which a variable of variants has forgotten: an empty
        matrix, packed with it, says it for both.
        """
        empty = self._made(tf.zeros([0, 2], tf.int64), tf.zeros([0], tf.float32))
        return tf.raw_ops.Pack(values=[empty, super().read()])[1]

    def times(self, columns: Any) -> Any:
        """The product [rows, batch] with columns [columns, batch]."""
        batch = tf.shape(columns)[1]
        # oneDNN ends the process where there are none.
        some = tf.pad(columns, [[0, 0], [0, tf.cast(batch < 1, tf.int32)]])
        return tf.raw_ops.SparseMatrixMatMul(a=self.read(), b=some)[:, :batch]

    def _made(self, indices: Any, entries: Any) -> Any:
        return tf.raw_ops.SparseTensorToCSRSparseMatrix(
            indices=indices, values=entries, dense_shape=tf.constant(self._rows_columns)
        )
