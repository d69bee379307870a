"""Layers that put numbers elsewhere: reshaping, padding, cropping, repeating."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.layers.rules.rule import Channels, LayerRule, Meaning, Spread, rule_for
from tfp_bprune.types import Json

_L = keras.layers


class Keeps(LayerRule):
    """Channel i of the output depends on channel i of the one input alone, and is constant where that is."""

    by_example = True

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        """Those of the input, where they are its last axis."""
        last = getattr(layer, "data_format", "channels_last") == "channels_last"
        return inputs if last and len(inputs) == 1 else None

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        """That of the input."""
        return super().constant(layer, values, training) if training else values[0]


class Moves(Keeps):
    """Linear, with factors 0 and 1, so that variances go where means go; what is added, as at borders, is 0."""

    meaning: ClassVar[Meaning] = "linear"

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any]:
        """Moved as all numbers are."""
        return [layer(inputs[0])]

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        """Variances as the means."""
        return Spread(layer(inputs[0].mean), layer(inputs[0].variance))


def _of_ranks(*stems: str) -> list[type]:
    return [getattr(_L, f"{stem}{rank}D") for stem in stems for rank in (1, 2, 3)]


rule_for(*_of_ranks("Cropping", "UpSampling"))(Moves)


@rule_for(*_of_ranks("ZeroPadding"))
class _Padded(Moves):
    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        return np.where(values[0] == 0, 0.0, np.nan)


@rule_for(_L.RepeatVector)
class _Repeated(Moves):
    meaning = "other"


@rule_for(_L.Permute)
class _Permuted(Moves):
    meaning = "other"

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        return inputs if layer.dims[-1] == len(layer.dims) else None


@rule_for(_L.Flatten)
class _Flattened(Moves):
    """Lays positions side by side, each with all of its channels."""

    meaning = "same"

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        width, before = shape[-1] or 0, len(inputs[0])
        if super().channels(layer, inputs, shape) is None or not width or width % before:
            return None
        return [np.tile(inputs[0], width // before)]


@rule_for(_L.Reshape)
class _Reshaped(_Flattened):
    sized = True

    def resized(self, layer: Any, config: Json, kept: np.ndarray) -> Json:
        return config | {"target_shape": (*config["target_shape"][:-1], int(kept.sum()))}
