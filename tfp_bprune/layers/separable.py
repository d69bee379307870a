"""Separable convolutions, a depthwise and a pointwise kernel, with distributions over both, one for each estimator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.axes import Axes
from tfp_bprune.layers.convolution import Convolution
from tfp_bprune.layers.depthwise import by_output
from tfp_bprune.layers.estimators import Flipout, Reparameterization
from tfp_bprune.layers.kind import Arrays, Kind, bayesian
from tfp_bprune.layers.variational import OnKeras


class Separable(Kind):
    """D [*positions, in, depth_multiplier], then P [1, ..., in * depth_multiplier, out]."""

    kernels = {"depthwise_kernel": Axes(read=-2, made=None), "pointwise_kernel": Axes()}  # noqa: RUF012
    arguments = ("filters", "kernel_size", "strides", "padding", "depth_multiplier", "data_format", "dilation_rate")
    prefers = Convolution.prefers

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """One of the two convolutions; over one axis as over two of which the first is 1."""
        first, flat = layer.data_format == "channels_first", layer.rank == 1
        if flat:
            inputs, kernel = tf.expand_dims(inputs, 2 if first else 1), kernel[None]
        form = "NCHW" if first else "NHWC"
        pointwise = name == "pointwise_kernel"
        outputs = (
            tf.nn.conv2d(inputs, kernel, 1, "VALID", form) if pointwise else _depthwise(layer, inputs, kernel, form)
        )
        return tf.squeeze(outputs, 2 if first else 1) if flat else outputs

    def fan_in(self, name: str, shape: tuple[int, ...]) -> int | None:
        """Of the depthwise kernel those at the positions."""
        return math.prod(shape[:-2]) if name == "depthwise_kernel" else None

    def moments(self, layer: Any) -> bool:
        """Through one kernel after the other."""
        return True

    def groups(self, layer: Any, name: str) -> int:
        """The input channels, of the depthwise kernel."""
        return int(layer.depthwise_kernel.shape[-2]) if name == "depthwise_kernel" else 1

    def connects(self, layer: Any, left: Arrays) -> np.ndarray:
        """As in `Kind`: an input reaches an output through any of its channels in between."""
        through = by_output(left["depthwise_kernel"]).any(0)[:, None] & _pointwise(left)
        return through.reshape(-1, layer.depth_multiplier, layer.filters).any(1)

    def carried(self, layer: Any, locs: Arrays) -> np.ndarray:
        """As in `Kind`."""
        through = by_output(locs["depthwise_kernel"].astype(np.float64)).sum(0)[:, None] * _pointwise(locs)
        return through.reshape(-1, layer.depth_multiplier, layer.filters).sum(1)


def _depthwise(layer: Any, inputs: Any, kernel: Any, form: str) -> Any:
    padding = layer.padding.upper()
    # TensorFlow takes equal strides of rows and columns alone: for one axis, both are that of the steps.
    strides, dilations = (list(given) * (3 - layer.rank) for given in (layer.strides, layer.dilation_rate))
    if layer.padding == "causal":
        before, padding = layer.dilation_rate[0] * (layer.kernel_size[0] - 1), "VALID"
        inputs = tf.pad(inputs, [[0, 0], [0, 0], [before, 0], [0, 0]])
    sides = [1, 1, *strides] if form == "NCHW" else [1, *strides, 1]
    return tf.nn.depthwise_conv2d(inputs, kernel, sides, padding, form, dilations)


def _pointwise(arrays: Arrays) -> np.ndarray:
    kernel = arrays["pointwise_kernel"]
    return kernel.reshape(kernel.shape[-2:])


class SeparableConv1D(Separable):
    """Over one axis."""

    name = "SeparableConv1D"
    plain = keras.layers.SeparableConv1D


class SeparableConv2D(Separable):
    """Over two axes."""

    name = "SeparableConv2D"
    plain = keras.layers.SeparableConv2D


SEPARABLE1D, SEPARABLE2D = SeparableConv1D(), SeparableConv2D()


@bayesian(SEPARABLE1D, "flipout")
class SeparableConv1DFlipout(Flipout, OnKeras, keras.layers.SeparableConv1D):
    """1D separable convolution, Flipout estimator: inputs [batch, steps, channels]."""


@bayesian(SEPARABLE1D, "reparameterization")
class SeparableConv1DReparameterization(Reparameterization, OnKeras, keras.layers.SeparableConv1D):
    """1D separable convolution, one weight draw a batch: inputs [batch, steps, channels]."""


@bayesian(SEPARABLE2D, "flipout")
class SeparableConv2DFlipout(Flipout, OnKeras, keras.layers.SeparableConv2D):
    """2D separable convolution, Flipout estimator: inputs [batch, rows, columns, channels]."""


@bayesian(SEPARABLE2D, "reparameterization")
class SeparableConv2DReparameterization(Reparameterization, OnKeras, keras.layers.SeparableConv2D):
    """2D separable convolution, one weight draw a batch: inputs [batch, rows, columns, channels]."""
