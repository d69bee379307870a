"""A kind of layer whose weights can be distributions: a factor for each channel."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.layers import Axes, Flipout, Kind, OnKeras, Reparameterization, bayesian


@keras.saving.register_keras_serializable("tests")
class ChannelScale(keras.layers.Layer):
    """outputs = inputs * kernel, a factor [channels] for the last axis."""

    def __init__(self, kernel_initializer: Any = "ones", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1],), initializer=self.kernel_initializer or "ones"
        )
        super().build(input_shape)

    def call(self, inputs: Any) -> Any:
        return inputs * self.kernel

    def get_config(self) -> dict[str, Any]:
        start = keras.initializers.serialize(self.kernel_initializer)
        return super().get_config() | {"kernel_initializer": start}


class Scale(Kind):
    """Describes the layer to the package."""

    name = "ChannelScale"
    plain = ChannelScale
    kernels = {"kernel": Axes(read=-1, made=None)}  # noqa: RUF012

    def width(self, layer: Any) -> int:
        return int(layer.kernel.shape[0])

    def flow(self, layer: Any) -> Any:
        return "keeps"

    def sign_axes(self, layer: Any, name: str, rank_in: int, rank_out: int) -> Any:
        return (), (rank_out - 1,)


SCALE = Scale()


@bayesian(SCALE, "flipout")
class ChannelScaleFlipout(Flipout, OnKeras, ChannelScale):
    """Flipout estimator."""


@bayesian(SCALE, "reparameterization")
class ChannelScaleReparameterization(Reparameterization, OnKeras, ChannelScale):
    """Reparameterization: one draw of the weights for a batch."""
