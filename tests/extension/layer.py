"""Rules for two layers without weights: one is elementwise, the other permutes channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.rules import Elementwise, LayerRule, Spread, rule_for


@keras.saving.register_keras_serializable("tests")
class HardClip(keras.layers.Layer):
    """Numbers between -1 and 1."""

    def call(self, inputs: Any) -> Any:
        return tf.clip_by_value(inputs, -1.0, 1.0)


rule_for(HardClip)(Elementwise)


@keras.saving.register_keras_serializable("tests")
class ChannelOrder(keras.layers.Layer):
    """Channel i of the outputs is channel order[i] of the inputs."""

    def __init__(self, order: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = [int(channel) for channel in order]

    def call(self, inputs: Any) -> Any:
        return tf.gather(inputs, self.order, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"order": self.order}


@rule_for(ChannelOrder)
class _Ordered(LayerRule):
    by_example = True
    sized = True

    def channels(self, layer: Any, inputs: Sequence[np.ndarray], shape: Any) -> Sequence[np.ndarray]:
        return [inputs[0][layer.order]]

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        return values[0]

    def resized(self, layer: Any, config: dict[str, Any], kept: np.ndarray) -> dict[str, Any]:
        return config | {"order": np.argsort(np.argsort(np.array(layer.order)[kept])).tolist()}

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread:
        return Spread(layer(inputs[0].mean), layer(inputs[0].variance))
