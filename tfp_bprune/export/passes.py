"""Three ways of running a lowered network: at its mean, with means and variances, and under draws of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.export import moments
from tfp_bprune.export.lower import Linear, LoweredDense, LoweredPositions
from tfp_bprune.export.value import Value
from tfp_bprune.layers import noise
from tfp_bprune.models.channels import ACTIVATIONS, IDENTITIES, is_elementwise
from tfp_bprune.models.convert import activation_name

_L = keras.layers


class Mean:
    """The rule of the mean network: each layer at the mean of its weights."""

    def __init__(self, linears: dict[int, Linear]) -> None:
        self._linears = linears

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The outputs of one layer's call."""
        linear = self._linears.get(id(layer))
        if linear is None:
            return called(layer, arguments, keywords)
        return activated(layer, self.linear(linear, arguments[0]))

    def linear(self, linear: Linear, inputs: Value) -> Value:
        """The outputs of a dense or convolution layer before its activation."""
        return linear.mean(inputs)


class Draws(Mean):
    """The rule of draws of all weights.

    A dense layer on vectors is drawn as noise on its outputs (Kingma et al. 2015, arXiv 1506.02557, eq. 6), several draws
    at once; other layers draw their kernel, one draw at a time. Examples share the noise of a draw, whose distribution is
    right for each. What comes before the first draw is computed by the first walk and kept for the others.
    """

    def __init__(self, linears: dict[int, Linear], seed: int) -> None:
        super().__init__(linears)
        self._seed = seed
        self._kept: list[Any] = []
        self._calls = 0
        self._index, self._count, self._rows = 0, 1, None

    @property
    def batched(self) -> bool:
        """Whether many draws can go through the network at once."""
        return all(isinstance(linear, LoweredDense) for linear in self._linears.values() if linear.uncertain)

    def start(self, inputs: list[Any], index: Any, count: Any, rows: Any = None) -> list[Value]:
        """Before a walk: the number of its first draw, how many it makes, and which examples (all for None).

        Only where `batched` may there be more than one draw.

        Returns:
          What to walk with.
        """
        self._calls = 0
        self._index, self._count, self._rows = index, count, rows
        return [self._taken(Value(tensor)) for tensor in inputs]

    def finished(self, outputs: Value) -> Value:
        """After a walk: a row for each draw, also where none was made."""
        return self._repeated(outputs)

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The outputs of one layer's call, a row for each draw of each example once a draw was made."""
        values = [value for value in tf.nest.flatten((arguments, keywords)) if isinstance(value, Value)]
        linear = self._linears.get(id(layer))
        if any(value.drawn for value in values):
            arguments, keywords = tf.nest.map_structure(self._repeated, (arguments, keywords))
        elif linear is None or not linear.uncertain:
            return self._once(lambda: super(Draws, self).__call__(layer, arguments, keywords))
        return super().__call__(layer, arguments, keywords)

    def linear(self, linear: Linear, inputs: Value) -> Value:
        """As in `Mean`, under the draws."""
        if not linear.uncertain:
            return linear.mean(inputs)
        if isinstance(linear, LoweredPositions):
            return Value(linear.drawn(inputs, self._index, self._seed).mean, drawn=True)
        if inputs.drawn:
            return self._noisy(linear, linear.moments(inputs)[0])
        return self._noisy(linear, self._once(lambda: linear.moments(inputs)[0]))

    def _once(self, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, of the first walk; later walks take their rows of it."""
        self._calls += 1
        if len(self._kept) < self._calls:
            self._kept.append(compute())
            return self._kept[-1]
        return tf.nest.map_structure(self._taken, self._kept[self._calls - 1])

    def _taken(self, value: Value) -> Value:
        if self._rows is None:
            return value
        return value.each(lambda tensor: tf.gather(tensor, self._rows, axis=value.batch_axis))

    def _noisy(self, linear: Linear, outputs: Value) -> Value:
        """Outputs with noise, the same for all examples of a draw: so an answer does not depend on its batch."""
        width = int(outputs.mean.shape[0 if outputs.columns else 1])
        seed = noise.seed_pair(self._index, self._seed, linear.stream)
        drawn = tf.random.stateless_normal([self._count, width], seed)
        by_draw = [width, self._count if outputs.drawn else 1, -1] if outputs.columns else [self._count, -1, width]
        if not (outputs.columns or outputs.drawn):
            by_draw = [1, -1, width]
        mean, deviation = tf.reshape(outputs.mean, by_draw), tf.reshape(tf.sqrt(outputs.variance), by_draw)
        drawn = tf.transpose(drawn)[:, :, None] if outputs.columns else drawn[:, None]
        flat = [width, -1] if outputs.columns else [-1, width]
        return Value(tf.reshape(mean + deviation * drawn, flat), None, outputs.columns, drawn=True)

    def _repeated(self, value: Any) -> Any:
        """A value with a row for each draw."""
        if not isinstance(value, Value) or value.drawn:
            return value
        tiled = value.each(
            lambda tensor: tf.tile(
                tensor, [self._count if i == value.batch_axis else 1 for i in range(len(tensor.shape))]
            )
        )
        return Value(tiled.mean, tiled.variance, tiled.columns, drawn=True)


class Sources:
    """Where noise enters the network: points, and the variance of what enters there.

    Attributes:
      points: (tensor, variance of its own noise, whether examples are columns).
      shared: (tensor, layer, its inputs), where one noise enters at all positions.
    """

    def __init__(self) -> None:
        self.points: list[tuple[Any, Any, bool]] = []
        self.shared: list[tuple[Any, LoweredPositions, Any]] = []


class Moments(Mean):
    """The rule of means and variances: activations as independent normals, matched layer by layer.

    Attributes:
      sources: where noise entered.
    """

    def __init__(self, linears: dict[int, Linear], last: Any, erf: moments.Erf = tf.math.erf) -> None:
        super().__init__(linears)
        self.sources = Sources()
        self._last, self._erf = last, erf

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The moments of the outputs of one layer's call; of a softmax at the end, those of its inputs."""
        values = [value for value in tf.nest.flatten((arguments, keywords)) if isinstance(value, Value)]
        linear = self._linears.get(id(layer))
        if layer is self._last and isinstance(layer, _L.Softmax | _L.Activation) and is_softmax(layer):
            return values[0]
        if linear is not None:
            outputs = self._linear(linear, values[0])
        elif all(value.certain for value in values):
            return called(layer, arguments, keywords)
        elif isinstance(layer, ACTIVATIONS):
            outputs = values[0]
        else:
            outputs = moments.through(layer, values)
        return outputs if layer is self._last and is_softmax(layer) else self._activated(layer, outputs)

    def _linear(self, linear: Linear, inputs: Value) -> Value:
        outputs, own = linear.moments(inputs)
        if own is not None and isinstance(linear, LoweredPositions):
            self.sources.shared.append((outputs.mean, linear, inputs.as_rows().mean))
        elif own is not None:
            self.sources.points.append((outputs.mean, own, outputs.columns))
        return outputs

    def _activated(self, layer: Any, value: Value) -> Value:
        if value.certain:
            return activated(layer, value)
        rule = moments.rule_of(layer, self._erf)
        if rule is None:
            return value
        mean, variance, slope = rule(value.mean, value.variance)
        passed = with_slope(value.mean, mean, slope)
        self.sources.points.append((passed, self._entering(value, variance, slope), value.columns))
        return Value(passed, variance, value.columns)

    def _entering(self, inputs: Value, variance: Any, slope: Any) -> Any:
        """The variance of a function of the inputs without what comes through its mean slope from before.

        Noise that entered right before the function goes with it: one point to follow back instead of two.
        """
        came = inputs.variance
        if self.sources.points and self.sources.points[-1][0] is inputs.mean:
            came -= self.sources.points.pop()[1]
        return tf.maximum(variance - tf.square(slope) * came, 0.0)


def with_slope(inputs: Any, outputs: Any, slope: Any) -> Any:
    """`outputs`, whose gradient by `inputs` is the mean slope, whatever they were computed from."""

    @tf.custom_gradient
    def bridge(given: Any) -> Any:
        return tf.identity(outputs), lambda upstream: upstream * slope

    return bridge(inputs)


def is_softmax(layer: Any) -> bool:
    """Whether the layer ends in a softmax."""
    return isinstance(layer, _L.Softmax) or activation_name(layer) == "softmax"


def called(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The layer's own call, on rows; layers that look at each number by itself take columns too."""
    values = [value for value in tf.nest.flatten((arguments, keywords)) if isinstance(value, Value)]
    drawn = any(value.drawn for value in values)
    if isinstance(layer, IDENTITIES):
        return values[0]
    if isinstance(layer, ACTIVATIONS) and is_elementwise(layer):
        return Value(layer(values[0].mean), None, values[0].columns, drawn)

    def rows(value: Any) -> Any:
        return value.as_rows().mean if isinstance(value, Value) else value

    arguments, keywords = tf.nest.map_structure(rows, (arguments, keywords))
    if isinstance(layer, _L.BatchNormalization):
        keywords = {**keywords, "training": False}
    return tf.nest.map_structure(lambda tensor: Value(tensor, drawn=drawn), layer(*arguments, **keywords))


def activated(layer: Any, value: Value) -> Value:
    """The layer's activation of its outputs, on rows unless it looks at each number by itself."""
    if getattr(layer, "activation", None) is None or isinstance(layer, ACTIVATIONS):
        return value
    if not is_elementwise(layer):
        value = value.as_rows()
    return Value(layer.activation(value.mean), None, value.columns, value.drawn)
