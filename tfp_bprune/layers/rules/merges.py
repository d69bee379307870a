"""Layers that join branches, channel by channel or side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.rules.rule import Channels, LayerRule, Spread, rule_for

_L = keras.layers


class _Joined(LayerRule):
    """Channel i of the output depends on channel i of each branch.

    Args:
      of_constants: what it makes of constants [branches, channels]; [channels].
    """

    by_example = True

    def __init__(self, of_constants: Callable[[np.ndarray], np.ndarray]) -> None:
        self._of_constants = of_constants

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return inputs if len({len(one) for one in inputs}) == 1 else None

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any] | None:
        return inputs if len({tuple(one.shape) for one in inputs}) == 1 else None

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        return self._of_constants(values)


class _Summed(_Joined):
    """Sums, differences and means of independent branches.

    Args:
      factors: of `count` branches, by which each is multiplied.
    """

    meaning = "linear"

    def __init__(self, factors: Callable[[int], Sequence[float]]) -> None:
        super().__init__(lambda values: (np.array(factors(len(values)))[:, None] * values).sum(0))
        self._factors = factors

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        variances = [f**2 * one.some_variance for f, one in zip(self._factors(len(inputs)), inputs, strict=True)]
        return Spread(layer([one.mean for one in inputs]), _L.Add()(variances))


class _Multiplied(_Joined):
    """Of one branch that is uncertain and certain ones, with which it is scaled."""

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread | None:
        if sum(one.variance is not None for one in inputs) > 1:
            return None
        squares = [tf.square(one.mean) if one.variance is None else one.variance for one in inputs]
        return Spread(layer([one.mean for one in inputs]), layer(squares))


rule_for(_L.Add)(_Summed(lambda count: [1.0] * count))
rule_for(_L.Subtract)(_Summed(lambda count: [1.0, -1.0]))
rule_for(_L.Average)(_Summed(lambda count: [1.0 / count] * count))
rule_for(_L.Multiply)(_Multiplied(lambda values: np.where((values == 0).any(0), 0.0, np.prod(values, 0))))
rule_for(_L.Maximum)(_Joined(lambda values: np.max(values, 0)))
rule_for(_L.Minimum)(_Joined(lambda values: np.min(values, 0)))


@rule_for(_L.Concatenate)
class _SideBySide(LayerRule):
    by_example = True

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return [np.concatenate(inputs)] if layer.axis in (-1, len(shape) - 1) else None

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        return [layer(inputs)]

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        return values[0]

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        return Spread(layer([one.mean for one in inputs]), layer([one.some_variance for one in inputs]))
