"""Three ways of running a lowered network: at its mean, with means and variances, and under draws of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.graphs.copying import within
from tfp_bprune.layers.rules import by_quadrature, is_elementwise, rule_of
from tfp_bprune.layers.rules.rule import Erf, Match
from tfp_bprune.prediction import moments, operations, streams
from tfp_bprune.prediction.calls import activated, called, masked, values_of
from tfp_bprune.prediction.dropped import dropped, is_drawn, noise_variance
from tfp_bprune.prediction.lower import Linear, LoweredDense, LoweredParts, LoweredPositions
from tfp_bprune.prediction.value import Value


class Mean:
    """The rule of the mean network: each layer at the mean of its weights."""

    def __init__(self, linears: dict[int, Linear | LoweredParts]) -> None:
        self._linears = linears

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The outputs of one layer's call."""
        linear = self._linears.get(id(layer))
        if linear is None:
            return called(layer, arguments, keywords)
        if isinstance(linear, LoweredParts):
            return self._by_parts(linear, layer, arguments, keywords)
        inputs = values_of(arguments, keywords)[0]
        return self.masked(layer, inputs, activated(within(layer), self.linear(linear, inputs)))

    def linear(self, linear: Linear, inputs: Value) -> Value:
        """The outputs of a dense or convolution layer before its activation."""
        return linear.mean(inputs)

    def _by_parts(self, lowered: LoweredParts, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The outputs of a layer of parts, of which each is treated by this rule."""
        drawn = []

        def run(linear: Linear, inputs: Any) -> Any:
            value = self.linear(linear, Value(inputs))
            drawn.append(value.drawn)
            return value.mean

        with lowered.within(layer, run):
            made = called(layer, arguments, keywords)
        return tf.nest.map_structure(lambda value: replace(value, drawn=value.drawn or any(drawn)), made)

    def masked(self, layer: Any, inputs: Value, outputs: Value) -> Value:
        """The outputs of a dense or convolution layer with the mask that Keras would give them."""
        return masked(layer, inputs, outputs)


class Draws(Mean):
    """The rule of draws of all weights.

    A dense layer on vectors is drawn as noise on its outputs (Kingma et al. 2015, arXiv 1506.02557, eq. 6), several draws
    at once; other layers, and those that are called more than once, draw their kernel, one draw at a time. Examples share
    the noise of a draw, whose distribution is right for each, and which goes by the number of the draw alone
    (`prediction.streams`): so an answer does not depend on its batch. What comes before the first draw is computed by the first
    walk and kept for the others.

    Args:
      by_row: whether every layer treats examples one by one, so that several draws can lie side by side as rows.
    """

    def __init__(self, linears: dict[int, Linear | LoweredParts], seed: int, by_row: bool = True) -> None:
        super().__init__(linears)
        self._seed, self._by_row = seed, by_row
        self._kept: list[Any] = []
        self._calls = self._noises = 0
        self._index, self._count, self._rows = 0, 1, None

    @property
    def batched(self) -> bool:
        """Whether many draws can go through the network at once."""
        local = all(isinstance(linear, LoweredDense) for linear in self._linears.values() if linear.uncertain)
        return self._by_row and local

    def start(self, inputs: list[Any], index: Any, count: Any, rows: Any = None) -> list[Value]:
        """Before a walk: the number of its first draw, how many it makes, and which examples (all for None).

        Only where `batched` may there be more than one draw.

        Returns:
          What to walk with.
        """
        self._calls = self._noises = 0
        self._index, self._count, self._rows = index, count, rows
        return [self._taken(Value(tensor)) for tensor in inputs]

    def finished(self, outputs: Value) -> Value:
        """After a walk: a row for each draw, also where none was made."""
        return self._repeated(outputs)

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The outputs of one layer's call, a row for each draw of each example once a draw was made."""
        values, linear = values_of(arguments, keywords), self._linears.get(id(layer))
        if is_drawn(layer, arguments, keywords):
            return self._dropped(layer, values[0].as_rows())
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

    def masked(self, layer: Any, inputs: Value, outputs: Value) -> Value:
        """As in `Mean`; a row for each draw, if the outputs have one."""
        return masked(layer, self._repeated(inputs) if outputs.drawn and inputs.mask is not None else inputs, outputs)

    def _once(self, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, of the first walk; later walks take their rows of it."""
        self._calls += 1
        if self._rows is not None and not self._by_row:
            return compute()
        if len(self._kept) < self._calls:
            self._kept.append(compute())
            return self._kept[-1]
        return tf.nest.map_structure(self._taken, self._kept[self._calls - 1])

    def _taken(self, value: Value) -> Value:
        if self._rows is None:
            return value
        return value.by_example(lambda tensor, axis: tf.gather(tensor, self._rows, axis=axis))

    def _noisy(self, linear: Linear, outputs: Value) -> Value:
        """Outputs with noise, the same for all examples of a draw."""
        width = int(outputs.mean.shape[0 if outputs.columns else 1])
        drawn = streams.normal(self._index, self._count, width, self._seed, linear.stream)
        by_draw = [width, self._count if outputs.drawn else 1, -1] if outputs.columns else [self._count, -1, width]
        if not (outputs.columns or outputs.drawn):
            by_draw = [1, -1, width]
        mean, deviation = tf.reshape(outputs.mean, by_draw), tf.reshape(tf.sqrt(outputs.variance), by_draw)
        drawn = tf.transpose(drawn)[:, :, None] if outputs.columns else drawn[:, None]
        flat = [width, -1] if outputs.columns else [-1, width]
        return Value(tf.reshape(mean + deviation * drawn, flat), None, outputs.columns, drawn=True)

    def _dropped(self, layer: Any, value: Value) -> Value:
        """Outputs of Monte-Carlo dropout; each call of a layer has a mask of its own."""
        self._noises += 1
        key = (self._seed, layer.name, "dropout", self._noises)
        made = dropped(layer, value.mean, value.drawn, self._index, self._count, key)
        return self.masked(layer, value, Value(made, drawn=True))

    def _repeated(self, value: Any) -> Any:
        """A value with a row for each draw."""
        if not isinstance(value, Value) or value.drawn:
            return value
        if not self.batched:  # one draw at a time
            return replace(value, drawn=True)

        def tiled(tensor: Any, axis: int) -> Any:
            return tf.tile(tensor, [self._count if i == axis else 1 for i in range(len(tensor.shape))])

        return replace(value.by_example(tiled), drawn=True)


class Sources:
    """Where noise enters the network: points, and the variance of what enters there.

    Attributes:
      points: (tensor, variance of its own noise, whether examples are columns).
      shared: (tensor, layer, the mean of its inputs, their deviation if any), where one noise enters at all positions.
    """

    def __init__(self) -> None:
        self.points: list[tuple[Any, Any, bool]] = []
        self.shared: list[tuple[Any, ...]] = []


class Moments(Mean):
    """The rule of means and variances: activations as independent normals, matched layer by layer.

    Attributes:
      sources: where noise entered.
    """

    def __init__(self, linears: dict[int, Linear | LoweredParts], erf: Erf = tf.math.erf) -> None:
        super().__init__(linears)
        self.sources = Sources()
        self._erf = erf

    def __call__(self, layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The moments of the outputs of one layer's call."""
        values = [value for value in tf.nest.flatten((arguments, keywords)) if isinstance(value, Value)]
        linear = self._linears.get(id(layer))
        if is_drawn(layer, arguments, keywords):
            return masked(layer, values, self._dropped(layer, values[0].as_float()))
        rule = rule_of(layer)
        match = rule.matched(layer, self._erf)
        if linear is not None:
            outputs = self._activated(within(layer), self._linear(linear, values[0]), alone=True)
        elif all(value.certain for value in values):
            return called(layer, arguments, keywords)
        elif operations.is_operation(layer):
            function = operations.function_of(layer, arguments, keywords)
            if function is None:
                return operations.through(layer, arguments, keywords)
            return self._matched(values[0].as_rows(), by_quadrature(function))
        elif match is not None:
            outputs = self._matched(values[0] if rule.is_elementwise(layer) else values[0].as_rows(), match)
        elif any(value.mask is not None for value in values) and layer._call_spec.expects_mask_arg:
            outputs = moments.through_masked(layer, values[0])
        else:
            outputs = self._activated(layer, moments.through(layer, values))
        return masked(layer, values, outputs)

    def _linear(self, linear: Linear, inputs: Value) -> Value:
        for step in linear.steps if isinstance(linear, LoweredPositions) else [linear]:
            inputs = self._step(step, inputs)
        return inputs

    def _step(self, linear: Linear, inputs: Value) -> Value:
        outputs, own = linear.moments(inputs)
        if own is not None and isinstance(linear, LoweredPositions):
            inputs = inputs.as_rows()
            deviations = [] if inputs.certain else [tf.sqrt(inputs.variance)]
            self.sources.shared.append((outputs.mean, linear, inputs.mean, *deviations))
        elif own is not None:
            self.sources.points.append((outputs.mean, own, outputs.columns))
        return outputs

    def _dropped(self, layer: Any, value: Value) -> Value:
        """Outputs of Monte-Carlo dropout: its noise is of each number by itself, and its mean slope is 1."""
        mean, own = tf.identity(value.mean), noise_variance(layer, value.mean, value.variance)
        self.sources.points.append((mean, own, value.columns))
        return replace(value, mean=mean, variance=own if value.certain else value.variance + own)

    def _activated(self, layer: Any, value: Value, alone: bool = False) -> Value:
        if value.certain:
            return activated(layer, value)
        match = moments.match_of(layer, self._erf)
        if match is None:
            return value
        return self._matched(value if is_elementwise(layer) else value.as_rows(), match, alone)

    def _matched(self, value: Value, match: Match, alone: bool = False) -> Value:
        """A function of each number by itself, and the noise that enters with it.

        Args:
          alone: whether nothing else reads the value, as what a layer hands to its own activation.
        """
        mean, variance, slope = match(value.mean, value.variance)
        passed = with_slope(value.mean, mean, slope)
        self.sources.points.append((passed, self._entering(value, variance, slope, alone), value.columns))
        return Value(passed, variance, value.columns)

    def _entering(self, inputs: Value, variance: Any, slope: Any, alone: bool) -> Any:
        """The variance of a function of the inputs without what comes through its mean slope from before.

        Noise that entered right before the function goes with it if nothing else reads it: one point to follow back instead
        of two. Where a skip connection reads it too, it has to be followed from where it entered.
        """
        came = inputs.variance
        if alone and self.sources.points and self.sources.points[-1][0] is inputs.mean:
            came -= self.sources.points.pop()[1]
        return tf.maximum(variance - tf.square(slope) * came, 0.0)


def with_slope(inputs: Any, outputs: Any, slope: Any) -> Any:
    """`outputs`, whose gradient by `inputs` is the mean slope, whatever they were computed from."""

    @tf.custom_gradient
    def bridge(given: Any) -> Any:
        return tf.identity(outputs), lambda upstream: upstream * slope

    return bridge(inputs)
