"""Dense and convolution layers as the plain TensorFlow operations that a server runs.

What is made here exists only while an export is traced. Every such layer gives the mean of its outputs; a Bayesian one
their variance too, and draws of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.convert import kind_of
from tfp_bprune.graphs.copying import within
from tfp_bprune.layers import Variational, noise
from tfp_bprune.prediction.kernels import DenseKernel, Lowering, held, read
from tfp_bprune.prediction.value import Value
from tfp_bprune.prediction.walk import nodes_of


class Linear(tf.Module):
    """A dense or convolution layer without its activation.

    Attributes:
      stream: the layer's name, by which its noise goes.
      activation: the Keras function, or None.
      uncertain: whether its weights have variances.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.stream, self.activation = layer.name, layer.activation
        q = layer.kernel_posterior if isinstance(layer, Variational) else None
        self.loc = q.loc.numpy() if q is not None else layer.kernel.numpy()
        self.scale = None if q is None else q.scale.numpy()
        bias_q = layer.bias_posterior if isinstance(layer, Variational) else None
        self.bias = bias_q.loc.numpy() if bias_q is not None else (layer.bias.numpy() if layer.use_bias else None)
        self.bias_variance = None if bias_q is None else np.square(bias_q.scale.numpy())
        self.uncertain = q is not None
        self._bias_shape = (-1, *[1] * layer.rank) if getattr(layer, "data_format", None) == "channels_first" else (-1,)

    def mean(self, inputs: Value) -> Value:
        """The outputs at the mean weights and the mean of the inputs."""
        inputs = self.laid(inputs)
        return self._value(inputs, self._shifted(self.by_mean(inputs, inputs.mean), inputs, self.bias))

    def moments(self, inputs: Value) -> tuple[Value, Any]:
        """Mean and variance of the outputs for independent inputs, and the part of the variance that the weights bring.

        For h with mean m and variance v, and w with mean mu and variance s: var(h w) = (m^2 + v) s + v mu^2.
        """
        inputs = self.laid(inputs)
        own = self.own_variance(inputs)
        passed = None if inputs.certain else self.by_square(inputs, inputs.variance)
        parts = [part for part in (own, passed) if part is not None]
        value = self.mean(inputs)
        return Value(value.mean, sum(parts[1:], parts[0]) if parts else None, value.columns, value.drawn), own

    def own_variance(self, inputs: Value) -> Any:
        """What the variances of weights and bias bring to that of the outputs; None where there are none."""
        if not self.uncertain:
            return None
        square = tf.square(inputs.mean)
        square = square if inputs.certain else square + inputs.variance
        return self._shifted(self.by_variance(inputs, square), inputs, self.bias_variance)

    def laid(self, inputs: Value) -> Value:
        """The inputs as the kernel takes them."""
        return inputs.as_float().as_rows()

    def by_mean(self, inputs: Value, of: Any) -> Any:
        """The tensor `of`, which lies as `inputs` do, times the means."""
        raise NotImplementedError

    def by_square(self, inputs: Value, of: Any) -> Any:
        """The tensor `of` times the squares of the means."""
        raise NotImplementedError

    def by_variance(self, inputs: Value, of: Any) -> Any:
        """The tensor `of` times the variances."""
        raise NotImplementedError

    def _shifted(self, outputs: Any, inputs: Value, bias: np.ndarray | None) -> Any:
        if bias is None:
            return outputs
        return plus(outputs, bias[:, None] if inputs.columns else bias.reshape(self._bias_shape))

    def _value(self, inputs: Value, mean: Any) -> Value:
        return Value(mean, None, inputs.columns, inputs.drawn)


class LoweredDense(Linear):
    """A dense layer on vectors, in the form that is fastest for it."""

    def __init__(self, layer: Any, lowering: Lowering) -> None:
        super().__init__(layer)
        self.kernel = DenseKernel(self.loc, self.scale, lowering)

    def laid(self, inputs: Value) -> Value:
        """Columns for a sparse kernel."""
        return self.kernel.laid(inputs.as_float())

    def by_mean(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`."""
        return self.kernel.by_mean(inputs, of)

    def by_square(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`."""
        return self.kernel.by_square(inputs, of)

    def by_variance(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`."""
        return self.kernel.by_variance(inputs, of)


class LoweredPositions(Linear):
    """A layer that reads its weights at many positions: a convolution, a dense layer on more than vectors, a shared one.

    Attributes:
      shared: whether it is called more than once.
    """

    def __init__(self, layer: Any, lowering: Lowering, shared: bool = False) -> None:
        super().__init__(layer)
        self.shared = shared
        self._apply = _operation(layer)
        self._loc = held(self.loc, lowering)
        self._variance = None if self.scale is None else held(self.scale, lowering, squared=True)

    def patches(self, inputs: Any) -> Any:
        """What each position reads: [batch, positions, kernel entries without the last axis]."""
        count = math.prod(self.loc.shape[:-1])
        read_out = self._apply(inputs, tf.reshape(tf.eye(count), [*self.loc.shape[:-1], count]))
        return by_position(read_out)

    def kernel_variance(self) -> Any:
        """Of each weight of the kernel, shaped as it is."""
        return read(self._variance)

    def by_mean(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`."""
        return self._apply(of, read(self._loc))

    def by_square(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`."""
        return self._apply(of, tf.square(read(self._loc)))

    def by_variance(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`."""
        return self._apply(of, read(self._variance))

    def drawn(self, inputs: Value, index: Any, seed: int) -> Value:
        """The outputs under draw number `index` of the weights, the same for the whole batch."""

        def normal(shape: Any, part: str) -> Any:
            return tf.random.stateless_normal(shape, noise.seed_pair(index, seed, self.stream, part))

        inputs = self.laid(inputs)
        kernel = read(self._loc) + tf.sqrt(read(self._variance)) * normal(self.loc.shape, "kernel")
        outputs = self._shifted(self._apply(inputs.mean, kernel), inputs, self.bias)
        if self.bias_variance is not None:
            outputs += np.sqrt(self.bias_variance) * normal(self.bias_variance.shape, "bias")
        return self._value(inputs, outputs)


@tf.custom_gradient
def plus(outputs: Any, constant: np.ndarray) -> Any:
    """The sum; its slope is 1, for which TensorFlow would compute shapes that the small formats cannot."""
    return outputs + constant, lambda upstream: (upstream, None)


def by_position(values: Any) -> Any:
    """Values [batch, ..., channels] as [batch, positions, channels]."""
    return tf.reshape(values, [tf.shape(values)[0], -1, values.shape[-1]])


def lowered(model: Any, lowering: Lowering) -> dict[int, Linear]:
    """The dense and convolution layers that `model` calls, by the layer's id; those aside that are best called themselves."""
    calls: dict[int, list[Any]] = defaultdict(list)
    for node in nodes_of(model):
        layer = within(node.layer)
        steps = layer is not node.layer  # a dense layer at each step is one on all of them
        if kind_of(layer) and not _is_special(layer) and (kind_of(layer) == "Dense" or not steps):
            calls[id(layer)].append(node)
    found = {}
    for nodes in calls.values():
        linear = _lowered(within(nodes[0].layer), lowering, [len(node.keras_inputs[0].shape) for node in nodes])
        found.update({id(node.layer): linear for node in nodes})
    return found


def variables_of(model: Any, linears: dict[int, Linear]) -> Iterator[Any]:
    """The variables of the layers that are called as they are, and of layers that others have for their activation."""
    for layer in {id(node.layer): node.layer for node in nodes_of(model)}.values():
        if isinstance(layer, keras.Model):
            continue
        if id(layer) not in linears:
            yield from layer.weights
        elif isinstance(within(layer).activation, keras.layers.Layer):
            yield from within(layer).activation.weights


def _lowered(layer: Any, lowering: Lowering, ranks: list[int]) -> Linear:
    """The layer lowered, of whose calls the inputs have these ranks.

    No output of an example reads a weight that another one reads where a dense layer is called once, on vectors. In the
    calls of a layer that is shared each weight has one value, so draws are of its weights and not of its outputs.
    """
    is_dense = kind_of(layer) == "Dense" and set(ranks) == {2}
    local = is_dense and (len(ranks) == 1 or not isinstance(layer, Variational))
    return LoweredDense(layer, lowering) if local else LoweredPositions(layer, lowering, shared=len(ranks) > 1)


def _is_special(layer: Any) -> bool:
    """Plain convolutions that pad or group their inputs by themselves."""
    plain = not isinstance(layer, Variational)
    return plain and (getattr(layer, "groups", 1) > 1 or getattr(layer, "padding", "valid") == "causal")


def _operation(layer: Any) -> Any:
    """outputs = operation(inputs, kernel), bias and activation aside."""
    if isinstance(layer, Variational):
        return layer._linear
    if kind_of(layer) == "Dense":
        return lambda inputs, kernel: tf.tensordot(inputs, kernel, 1)
    return layer.convolution_op
