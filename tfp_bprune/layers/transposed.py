"""Transposed convolutions with a distribution over their weights, one for each estimator."""

from __future__ import annotations

import math
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.axes import Axes
from tfp_bprune.layers.convolution import Convolution
from tfp_bprune.layers.estimators import Flipout, Reparameterization
from tfp_bprune.layers.kind import Kind, bayesian
from tfp_bprune.layers.variational import OnKeras


class Transposed(Kind):
    """W [*positions, out, in]: each input lays the kernel over the outputs, a stride apart."""

    kernels = {"kernel": Axes(read=-1, made=-2)}  # noqa: RUF012
    arguments = ("filters", "kernel_size", "strides", "padding", "output_padding", "data_format", "dilation_rate")
    prefers = Convolution.prefers

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """The plain layer's call, with as many outputs as the kernel makes."""
        count, axis = int(kernel.shape[-2]), 1 if layer.data_format == "channels_first" else -1

        def shape_of(given: Any) -> Any:
            sizes = list(layer.compute_output_shape(given))
            sizes[axis] = count
            return tf.TensorShape(sizes)

        return self.called(layer, inputs, {name: kernel, "filters": count, "compute_output_shape": shape_of})

    def moments(self, layer: Any) -> bool:
        """An output is never laid over twice by one weight."""
        return True

    def positions(self, layer: Any, outputs: int) -> int:
        """Once for each position that is read."""
        return outputs // math.prod(layer.strides)

    def fan_in(self, name: str, shape: tuple[int, ...]) -> int:
        """At a stride of 1."""
        return math.prod(shape) // shape[-2]

    def takes_constants(self, layer: Any) -> bool:
        """Never: how often an output is laid over differs by position."""
        return False


class Conv1DTranspose(Transposed):
    """Over one axis."""

    name = "Conv1DTranspose"
    plain = keras.layers.Conv1DTranspose


TRANSPOSED1D = Conv1DTranspose()


@bayesian(TRANSPOSED1D, "flipout")
class Conv1DTransposeFlipout(Flipout, OnKeras, keras.layers.Conv1DTranspose):
    """1D transposed convolution, Flipout estimator: inputs [batch, steps, channels]."""


@bayesian(TRANSPOSED1D, "reparameterization")
class Conv1DTransposeReparameterization(Reparameterization, OnKeras, keras.layers.Conv1DTranspose):
    """1D transposed convolution, one weight draw a batch: inputs [batch, steps, channels]."""


class Conv2DTranspose(Transposed):
    """Over two axes."""

    name = "Conv2DTranspose"
    plain = keras.layers.Conv2DTranspose


TRANSPOSED2D = Conv2DTranspose()


@bayesian(TRANSPOSED2D, "flipout")
class Conv2DTransposeFlipout(Flipout, OnKeras, keras.layers.Conv2DTranspose):
    """2D transposed convolution, Flipout estimator: inputs [batch, rows, columns, channels]."""


@bayesian(TRANSPOSED2D, "reparameterization")
class Conv2DTransposeReparameterization(Reparameterization, OnKeras, keras.layers.Conv2DTranspose):
    """2D transposed convolution, one weight draw a batch: inputs [batch, rows, columns, channels]."""


class Conv3DTranspose(Transposed):
    """Over three axes."""

    name = "Conv3DTranspose"
    plain = keras.layers.Conv3DTranspose


TRANSPOSED3D = Conv3DTranspose()


@bayesian(TRANSPOSED3D, "flipout")
class Conv3DTransposeFlipout(Flipout, OnKeras, keras.layers.Conv3DTranspose):
    """3D transposed convolution, Flipout estimator: inputs [batch, planes, rows, columns, channels]."""


@bayesian(TRANSPOSED3D, "reparameterization")
class Conv3DTransposeReparameterization(Reparameterization, OnKeras, keras.layers.Conv3DTranspose):
    """3D transposed convolution, one weight draw a batch: inputs [batch, planes, rows, columns, channels]."""
