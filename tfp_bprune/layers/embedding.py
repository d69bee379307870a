"""Embeddings with a distribution over their table, one for each estimator."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.axes import Axes
from tfp_bprune.layers.estimators import Flipout, Reparameterization
from tfp_bprune.layers.kind import Flow, Kind, bayesian
from tfp_bprune.layers.shared import by_position
from tfp_bprune.layers.variational import OnKeras


class Embedding(Kind):
    """A table [input_dim, output_dim]: a number i as the row i, a product with a one-hot vector."""

    name = "Embedding"
    plain = keras.layers.Embedding
    kernels = {"embeddings": Axes(read=0, made=1)}  # noqa: RUF012
    arguments = ("input_dim", "output_dim", "mask_zero", "input_length")
    at_each_step = True
    reads_indices = True
    starts_as_plain = True

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """Rows of the table."""
        indices = inputs if inputs.dtype in (tf.int32, tf.int64) else tf.cast(inputs, tf.int32)
        return tf.nn.embedding_lookup(kernel, indices)

    def moments(self, layer: Any) -> bool:
        """A number reads one row."""
        return True

    def common(self, layer: Any, name: str, inputs: Any, variance: Any, one: Any, other: Any) -> Any:
        """As in `Kind`: positions share a row where they hold one number."""
        indices = tf.reshape(tf.cast(inputs, tf.int32), [tf.shape(inputs)[0], -1])
        same = tf.cast(indices[:, :, None] == indices[:, None], tf.float32)
        rows, one, other = tf.nn.embedding_lookup(variance, indices), by_position(one), by_position(other)
        return tf.reduce_sum(rows * one * tf.matmul(same, other), [1, 2])

    def width(self, layer: Any) -> int:
        """Numbers in a row."""
        return int(layer.output_dim)

    def flow(self, layer: Any) -> Flow:
        """What it reads are no channels."""
        return "unknown"


EMBEDDING = Embedding()


@bayesian(EMBEDDING, "flipout")
class EmbeddingFlipout(Flipout, OnKeras, keras.layers.Embedding):
    """Embedding, Flipout estimator: whole numbers [batch, ...] to rows [batch, ..., output_dim].

    A draw of the table is flipped along its columns for each example.
    """


@bayesian(EMBEDDING, "reparameterization")
class EmbeddingReparameterization(Reparameterization, OnKeras, keras.layers.Embedding):
    """Embedding, one draw of the table a batch: whole numbers [batch, ...] to rows [batch, ..., output_dim]."""
