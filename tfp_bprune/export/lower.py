"""Bayesian layers as the plain TensorFlow operations that a server runs: dense or sparse, at the mean or drawn.

The layers here exist only while an export is traced. A sparse kernel is stored as one int32 position and one float32
value for each weight that is left, 8 bytes against 4 a weight for a dense one, in rows of outputs, so that the product
runs over surviving weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import Variational, noise
from tfp_bprune.models.convert import kind_of
from tfp_bprune.models.rebuild import rebuild

Kernels = Literal["auto", "dense", "sparse"]
# A choice for size: from here on the stored weights take at most 0.4 of a dense kernel's bytes. It is not one for speed,
# at batch 1 the sparse product of a small layer takes longer than the dense one.
SPARSE_FROM = 0.8


@dataclass
class Draw:
    """Which draw is being computed; the body of the loop over draws sets `index` and the layers read it."""

    seed: int
    index: Any = 0


class SparseMatrix:
    """A constant kernel [in, out] of which only the nonzero entries are stored."""

    def __init__(self, pattern: np.ndarray) -> None:
        self.shape = pattern.shape[::-1]
        flat = np.flatnonzero(pattern.T)
        self._order = flat
        self._flat = tf.constant(flat.astype(np.int32 if pattern.size < 2**31 else np.int64))

    def values_of(self, dense: np.ndarray) -> Any:
        """The entries of an array [in, out] that this pattern stores, as a constant."""
        return tf.constant(dense.T.reshape(-1)[self._order])

    def product(self, inputs: Any, values: Any) -> Any:
        """inputs [batch, in] times the kernel with `values`: [batch, out]."""
        positions = tf.cast(self._flat, tf.int64)
        indices = tf.stack([positions // self.shape[1], positions % self.shape[1]], axis=1)
        matrix = tf.SparseTensor(indices, values, self.shape)
        return tf.transpose(tf.sparse.sparse_dense_matmul(matrix, inputs, adjoint_b=True))


class SparseDense(keras.layers.Layer):
    """A dense layer at its mean, over its nonzero weights only."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray | None, activation: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kernel = SparseMatrix(kernel != 0)
        self._values = self._kernel.values_of(kernel)
        self._bias, self._activation = bias, activation

    def call(self, inputs: Any) -> Any:
        """[batch, in] to [batch, out]."""
        outputs = self._kernel.product(inputs, self._values)
        return _finish(outputs, self._bias, self._activation)


class DrawnDense(keras.layers.Layer):
    """A dense layer under one draw of its weights, drawn as noise on its outputs.

    For one example x, x W is normal with mean x mu and variance x^2 sigma^2, independently over outputs (Kingma et al.
    2015, eq. 6). Each example has a draw of its own, which leaves the predictive distribution of each as it is.
    """

    def __init__(self, layer: Variational, draw: Draw, sparse: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._draw, self._stream, self._activation = draw, layer.name, layer.activation
        q = layer.kernel_posterior
        loc, variance = q.loc.numpy(), np.square(q.scale.numpy())
        self._pattern = SparseMatrix((loc != 0) | (variance != 0)) if sparse else None
        store = self._pattern.values_of if self._pattern is not None else tf.Variable
        self._loc, self._variance = store(loc), store(variance)
        self._bias, self._bias_scale = _bias_of(layer)

    def call(self, inputs: Any) -> Any:
        """[batch, in] to [batch, out]."""
        mean = self._product(inputs, self._loc)
        variance = self._product(tf.square(inputs), self._variance)
        if self._bias_scale is not None:
            variance += tf.square(self._bias_scale)
        seed = noise.seed_pair(self._draw.index, self._draw.seed, self._stream)
        outputs = mean + tf.sqrt(variance) * tf.random.stateless_normal(tf.shape(mean), seed)
        return _finish(outputs, self._bias, self._activation)

    def _product(self, inputs: Any, values: Any) -> Any:
        return self._pattern.product(inputs, values) if self._pattern is not None else tf.matmul(inputs, values)


class DrawnKernel(keras.layers.Layer):
    """Any other Bayesian layer under one draw of its weights, the same for the whole batch."""

    def __init__(self, layer: Any, draw: Draw, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._draw, self._stream, self._activation = draw, layer.name, layer.activation
        self._linear = layer._linear
        self._loc, self._scale = tf.Variable(layer.kernel_posterior.loc), tf.Variable(layer.kernel_posterior.scale)
        self._bias, self._bias_scale = _bias_of(layer)

    def call(self, inputs: Any) -> Any:
        """The layer's outputs [batch, ..., out]."""
        kernel = self._loc + self._scale * self._normal(self._loc.shape, "kernel")
        bias = self._bias
        if self._bias_scale is not None:
            bias = bias + self._bias_scale * self._normal(self._bias_scale.shape, "bias")
        return _finish(self._linear(inputs, kernel), bias, self._activation)

    def _normal(self, shape: Any, part: str) -> Any:
        return tf.random.stateless_normal(shape, noise.seed_pair(self._draw.index, self._draw.seed, self._stream, part))


def lower_mean(model: Any, kernels: Kernels = "auto") -> Any:
    """A stripped model with dense layers sparse where `kernels` says so."""

    def replace(layer: Any) -> Any:
        if kind_of(layer) != "Dense" or not _is_sparse(layer, layer.kernel.numpy(), kernels):
            return None
        bias = layer.bias.numpy() if layer.use_bias else None
        return SparseDense(layer.kernel.numpy(), bias, layer.activation, name=layer.name)

    return rebuild(model, replace, lambda old, new: None)


def lower_drawn(model: Any, draw: Draw, kernels: Kernels = "auto") -> Any:
    """One draw of the network, `draw` saying which, as a Keras model of plain layers."""

    def replace(layer: Any) -> Any:
        if not isinstance(layer, Variational):
            return None
        if kind_of(layer) == "Dense" and layer.input_spec.ndim in (None, 2) and len(layer.input_shape) == 2:
            loc = layer.kernel_posterior.loc.numpy()
            return DrawnDense(layer, draw, _is_sparse(layer, loc, kernels), name=layer.name)
        return DrawnKernel(layer, draw, name=layer.name)

    return rebuild(model, replace, lambda old, new: None)


def _is_sparse(layer: Any, kernel: np.ndarray, kernels: Kernels) -> bool:
    if len(layer.input_shape) != 2 or kernels == "dense":
        return False
    return kernels == "sparse" or np.count_nonzero(kernel) <= (1 - SPARSE_FROM) * kernel.size


def _bias_of(layer: Any) -> tuple[Any, Any]:
    q = layer.bias_posterior
    if q is not None:
        return q.loc.numpy(), q.scale.numpy()
    return (layer.bias.numpy() if layer.use_bias else None), None


def _finish(outputs: Any, bias: Any, activation: Any) -> Any:
    outputs = outputs if bias is None else outputs + bias
    return outputs if activation is None else activation(outputs)
