"""Dense and convolution layers as the plain TensorFlow operations that a server runs.

What is made here exists only while an export is traced. Every such layer gives the mean of its outputs; a Bayesian one
their variance too, and draws of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.copying import within
from tfp_bprune.graphs.walk import nodes_of, own_nodes
from tfp_bprune.layers import Composed, Variational, kernels_of, kind_of, noise, weights_of
from tfp_bprune.prediction.calls import training_of
from tfp_bprune.prediction.columns import Columns, columns_of
from tfp_bprune.prediction.kernels import DenseKernel, Lowering, held, held_bias, read
from tfp_bprune.prediction.stored import digest
from tfp_bprune.prediction.value import Value

Of = Literal["mean", "variance"]


class Linear(tf.Module):
    """A layer with kernels, without its activation.

    Attributes:
      stream: the layer's name, by which its noise goes.
      uncertain: whether its weights have variances.
      carries: whether means and variances are carried through it.
      loc, scale: of its one kernel; of several the first's.
    """

    def __init__(self, layer: Any, lowering: Lowering, name: str = "") -> None:
        super().__init__()
        self._name = "" if lowering.at_load else name or layer.name
        kind, found = kind_of(layer), weights_of(layer)
        assert kind is not None
        bias = found.pop("bias", None)
        first = next(iter(found.values()))
        self.stream, self.uncertain = layer.name, first.uncertain
        self.carries = kind.moments(layer)
        self.loc, self.scale = first.loc, first.scale
        self.bias, self._held_bias = None, None
        if bias is not None:
            self.bias, self._held_bias = held_bias(bias.loc, lowering.of(name or layer.name))
        self.bias_variance = None if bias is None else bias.variance
        self._turned = getattr(layer, "data_format", None) == "channels_first"

    @property
    def biases(self) -> list[np.ndarray]:
        """What constants of the graph hold of the bias."""
        constants = (self.bias if self._held_bias is None else None, self.bias_variance)
        return [array for array in constants if array is not None]

    @property
    def offset(self) -> Any:
        """The bias as it is added: a constant, or the tensor that was made ready at load."""
        return self.bias if self._held_bias is None else read(self._held_bias)

    def mean(self, inputs: Value) -> Value:
        """The outputs at the mean weights and the mean of the inputs."""
        return self.laid_mean(self.laid(inputs))

    def laid_mean(self, inputs: Value) -> Value:
        """The same of inputs that are laid."""
        with self.scoped():
            return self._value(inputs, self._shifted(self.by_mean(inputs, inputs.mean), inputs, self.offset))

    def scoped(self, of: Of = "mean") -> Any:
        """The scope of the products with the means or variances, where these are to be found again after a conversion."""
        return tf.name_scope(scope_of(self._name, of)) if self._name else nullcontext()

    def moments(self, inputs: Value) -> tuple[Value, Any]:
        """Mean and variance of the outputs for independent inputs, and the part of the variance that the weights bring.

        For h with mean m and variance v, and w with mean mu and variance s: var(h w) = (m^2 + v) s + v mu^2.
        """
        inputs = self.laid(inputs)
        with self.scoped("variance"):
            own = self.own_variance(inputs)
            passed = None if inputs.certain else self.by_square(inputs, inputs.variance)
        parts = [part for part in (own, passed) if part is not None]
        value = self.laid_mean(inputs)
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

    def _shifted(self, outputs: Any, inputs: Value, bias: Any) -> Any:
        if bias is None:
            return outputs
        return plus(outputs, bias[:, None] if inputs.columns else self._placed(bias, outputs))

    def _placed(self, bias: Any, outputs: Any) -> Any:
        """A bias, or noise of one, as it is broadcast against outputs that are rows."""
        return tf.reshape(bias, [-1, *[1] * (len(outputs.shape) - 2)]) if self._turned else bias

    def _value(self, inputs: Value, mean: Any) -> Value:
        return Value(mean, None, inputs.columns, inputs.drawn)


class LoweredDense(Linear):
    """A dense layer on vectors, in the form that is fastest for it.

    Args:
      certain: whether no noise reaches what it reads.
    """

    def __init__(self, layer: Any, lowering: Lowering, certain: bool = False) -> None:
        super().__init__(layer, lowering)
        self.kernel = DenseKernel(
            self.loc, self.scale, lowering.of(layer.name), may_take=certain or not lowering.followed
        )

    def laid(self, inputs: Value) -> Value:
        """Columns for a sparse kernel, and those inputs alone that are read, where that is faster."""
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

    Args:
      name: by which `lowering` knows the layer; its own by default.

    Attributes:
      shared: whether it is called more than once.
    """

    def __init__(self, layer: Any, lowering: Lowering, shared: bool = False, name: str = "") -> None:
        super().__init__(layer, lowering, name)
        kind = kind_of(layer)
        assert kind is not None
        self.shared, self._reads_indices = shared, kind.reads_indices
        self._apply, self._common = partial(kind.linear, layer), partial(kind.common, layer)
        kernels, lowering = kernels_of(layer), lowering.of(name or layer.name)
        channels = {key: channels_of(layer, key, weights.loc.ndim) for key, weights in kernels.items()}
        self._shapes = {key: weights.loc.shape for key, weights in kernels.items()}
        self._locs = {key: held(weights.loc, lowering, channels=channels[key]) for key, weights in kernels.items()}
        self._variances = {
            key: held(weights.scale, lowering, squared=True, positive=True)
            for key, weights in kernels.items()
            if weights.scale is not None
        }
        self._one = next(iter(kernels))

    def laid(self, inputs: Value) -> Value:
        """As in `Linear`; indices stay the whole numbers that they are."""
        return inputs.as_rows() if self._reads_indices else super().laid(inputs)

    @property
    def steps(self) -> list[LoweredPositions]:
        """The layer as layers of one kernel each, one after the other; the last has the bias."""
        return [self._of(name, last=name == list(self._locs)[-1]) for name in self._locs]

    def _of(self, name: str, last: bool) -> LoweredPositions:
        if len(self._locs) == 1:
            return self
        step, held_one = copy(self), self._held_bias if last else None
        bias = (self.bias, self.bias_variance) if last else (None, None)
        # Past TensorFlow, whose list of what is tracked the copy shares: this layer's own would drop out of it.
        step.__dict__.update(
            _one=name, _locs={name: self._locs[name]}, bias=bias[0], bias_variance=bias[1], _held_bias=held_one
        )
        return step

    def own_variance(self, inputs: Value) -> Any:
        """As in `Linear`; of indices the variances of what they stand for."""
        if not (self._reads_indices and self.uncertain):
            return super().own_variance(inputs)
        return self._shifted(self.by_variance(inputs, inputs.mean), inputs, self.bias_variance)

    def common(self, inputs: list[Any], one: Any, other: Any) -> Any:
        """What noise on the weights and the bias gives two sums of outputs in common [batch]; see `Kind.common`.

        Args:
          inputs: their means and, where there are any, deviations, each of which adds its share.
        """
        variance = read(self._variances[self._one])
        shares = [self._common(self._one, part, variance, one, other) for part in inputs]
        if self.bias_variance is not None:
            shares.append(_common_of_bias(self.bias_variance, one, other))
        return sum(shares[1:], shares[0])

    def laid_mean(self, inputs: Value) -> Value:
        """As in `Linear`, through one kernel after the other."""
        with self.scoped():
            return self._through(inputs, {name: read(loc) for name, loc in self._locs.items()})

    def by_square(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`, of the one kernel."""
        return self._apply(self._one, of, tf.square(read(self._locs[self._one])))

    def by_variance(self, inputs: Value, of: Any) -> Any:
        """As in `Linear`, of the one kernel."""
        return self._apply(self._one, of, read(self._variances[self._one]))

    def drawn(self, inputs: Value, index: Any, seed: int) -> Value:
        """The outputs under draw number `index` of the weights, the same for the whole batch."""

        def normal(shape: Any, part: str) -> Any:
            return tf.random.stateless_normal(shape, noise.seed_pair(index, seed, self.stream, part))

        kernels = {
            name: read(loc) + tf.sqrt(read(self._variances[name])) * normal(self._shapes[name], name)
            for name, loc in self._locs.items()
        }
        value = self._through(self.laid(inputs), kernels)
        if self.bias_variance is None:
            return value
        off = np.sqrt(self.bias_variance) * normal(self.bias_variance.shape, "bias")
        return replace(value, mean=value.mean + self._placed(off, value.mean))

    def _through(self, inputs: Value, kernels: dict[str, Any]) -> Value:
        outputs = inputs.mean
        for name, kernel in kernels.items():
            outputs = self._apply(name, outputs, kernel)
        return self._value(inputs, self._shifted(outputs, inputs, self.offset))


class LoweredColumns(LoweredPositions):
    """A convolution whose weights are certain, with several columns of pixels as the channels of one; see `columns`."""

    def __init__(self, layer: Any, lowering: Lowering, shared: bool, columns: Columns) -> None:
        super().__init__(layer, lowering, shared)
        self._columns = columns
        kernel = read(self._locs[self._one]).numpy()
        self._locs = {self._one: tf.Variable(columns.kernel(kernel), trainable=False)}
        self.bias = None if self.bias is None else columns.bias(self.bias)

    def laid_mean(self, inputs: Value) -> Value:
        """As in `Linear`."""
        with self.scoped():
            outputs = self._columns.apply(inputs.mean, read(self._locs[self._one]))
            return self._value(inputs, self._columns.apart(self._shifted(outputs, inputs, self.offset)))


class LoweredParts(tf.Module):
    """A layer whose parts are layers with kernels, called as it is with those lowered.

    Attributes:
      stream: the layer's name.
      uncertain, carries: as of `Linear`.
    """

    carries = False

    def __init__(self, layer: Any, lowering: Lowering) -> None:
        super().__init__()
        self.stream = layer.name
        self._parts = {
            part: LoweredPositions(getattr(layer, part), lowering, name=name) for part, name in _parts(layer).items()
        }
        self.uncertain = any(linear.uncertain for linear in self._parts.values())

    @property
    def biases(self) -> list[np.ndarray]:
        """As of `Linear`."""
        return [bias for linear in self._parts.values() for bias in linear.biases]

    @contextmanager
    def within(self, layer: Any, run: Callable[[Linear, Any], Any]) -> Iterator[None]:
        """Within it each part of `layer` gives `run(part lowered, inputs)`."""
        own = {part: vars(layer)[part] for part in self._parts}
        vars(layer).update({part: partial(run, linear) for part, linear in self._parts.items()})
        try:
            yield
        finally:
            vars(layer).update(own)


def _parts(layer: Any) -> dict[str, str]:
    """The parts of a layer that has any, and their names in the whole network; those of a plain layer have shorter ones."""
    kind = kind_of(layer)
    names = {part: getattr(layer, part).name for part in ([] if kind is None else kind.parts)}
    return names if isinstance(layer, Composed) else {part: f"{layer.name}_{name}" for part, name in names.items()}


def scope_of(layer: str, of: Of = "mean") -> str:
    """The scope of a layer's products, by which they are found again in what a graph is converted to."""
    return f"{of}_{digest(np.array(layer))[:16]}"


def channels_of(layer: Any, name: str, rank: int) -> tuple[int, ...]:
    """The axes of a kernel that tell an output; of a depthwise one, inputs and what each of them makes."""
    kind = kind_of(layer)
    assert kind is not None
    made = kind.sides(layer, name, rank).made
    return made if kind.axes(name).made is not None else tuple(dict.fromkeys((*made, rank - 1)))


def _common_of_bias(variance: np.ndarray, one: Any, other: Any) -> Any:
    """The same of a bias [..., out], which broadcasts to all positions."""
    rank = len(one.shape)
    sides = [1] * (rank - variance.ndim) + list(variance.shape)
    axes = [axis for axis in range(1, rank) if sides[axis] == 1]
    one, other = (tf.reduce_sum(slopes, axes, keepdims=True) for slopes in (one, other))
    return tf.reduce_sum(variance * one * other, list(range(1, rank)))


@tf.custom_gradient
def plus(outputs: Any, constant: Any) -> Any:
    """The sum; its slope is 1, for which TensorFlow would compute shapes that the small formats cannot."""
    return outputs + constant, lambda upstream: (upstream, None)


def lowered(model: Any, lowering: Lowering) -> dict[int, Linear | LoweredParts]:
    """The dense and convolution layers that `model` calls, by the layer's id; those aside that are best called themselves."""
    calls: dict[int, list[Any]] = defaultdict(list)
    certain = _certain(model)
    for node in nodes_of(model):
        layer = within(node.layer)
        steps = layer is not node.layer  # a dense layer at each step is one on all of them
        if _is_lowered(layer, steps, lowering):
            calls[id(layer)].append(node)
    found: dict[int, Linear | LoweredParts] = {}
    for nodes in calls.values():
        if _parts(within(nodes[0].layer)):
            found |= {id(node.layer): LoweredParts(within(node.layer), lowering) for node in nodes[:1]}
            continue
        shapes = [node.keras_inputs[0].shape for node in nodes]
        all_certain = all(id(node.keras_inputs[0]) in certain for node in nodes)
        linear = _lowered(within(nodes[0].layer), lowering, shapes, all_certain)
        found.update({id(node.layer): linear for node in nodes})
    return found


def variables_of(model: Any, linears: dict[int, Linear | LoweredParts]) -> Iterator[Any]:
    """The variables of the layers that are called as they are, and of layers that others have for their activation."""
    for layer in {id(node.layer): node.layer for node in nodes_of(model)}.values():
        if isinstance(layer, keras.Model):
            continue
        if id(layer) not in linears:
            yield from layer.weights
        elif isinstance(activation := getattr(within(layer), "activation", None), keras.layers.Layer):
            yield from activation.weights


def _certain(model: Any) -> set[int]:
    """The tensors of the model's own graph that no noise reaches, by id; of models nested in it none are said to be."""
    found = {id(tensor) for tensor in model.inputs}
    for node in (node for node in own_nodes(model) if not node.is_input):
        layer = node.layer
        noisy = isinstance(layer, keras.Model) or isinstance(within(layer), Variational | Composed)
        if noisy or training_of(layer, node.call_args, node.call_kwargs):
            continue
        if all(id(tensor) in found for tensor in node.keras_inputs):
            found |= {id(tensor) for tensor in tf.nest.flatten(node.outputs)}
    return found


def _lowered(layer: Any, lowering: Lowering, shapes: list[Any], certain: bool) -> Linear:
    """The layer lowered, of whose calls the inputs have these shapes; `certain` as in `LoweredDense`.

    No output of an example reads a weight that another one reads where a dense layer is called once, on vectors. In the
    calls of a layer that is shared each weight has one value, so draws are of its weights and not of its outputs.
    """
    kind = kind_of(layer)
    is_dense = kind is not None and kind.is_matrix and {len(shape) for shape in shapes} == {2}
    shared = len(shapes) > 1
    if is_dense and not (shared and isinstance(layer, Variational)):
        return LoweredDense(layer, lowering, certain)
    columns = _columns(layer, lowering, shapes)
    if columns is not None:
        return LoweredColumns(layer, lowering, shared, columns)
    return LoweredPositions(layer, lowering, shared)


def _columns(layer: Any, lowering: Lowering, shapes: list[Any]) -> Columns | None:
    """How a layer is multiplied with columns of pixels as channels; None where it is not, as where its weights have variances."""
    if not lowering.pixel_columns or isinstance(layer, Variational):
        return None
    return columns_of(layer, shapes, few=lowering.of(layer.name).bits is not None)


def _is_lowered(layer: Any, steps: bool, lowering: Lowering) -> bool:
    """Whether a layer is: a Bayesian one, a plain one that is of a kind through which means and variances are carried, and any
    of which the weights are stored in other numbers than its own."""
    kind = kind_of(layer)
    if kind is None or (steps and not kind.at_each_step):
        return False
    if isinstance(layer, Variational | Composed) or kind.moments(layer):
        return True
    return any(lowering.of(name).storage != "float32" for name in _parts(layer).values() or [layer.name])
