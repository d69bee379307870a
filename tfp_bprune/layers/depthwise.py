"""Depthwise convolutions, of each channel by itself, with a distribution over their weights, one for each estimator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.layers.axes import Axes
from tfp_bprune.layers.convolution import Convolution
from tfp_bprune.layers.estimators import Flipout, Reparameterization
from tfp_bprune.layers.kind import Arrays, Flow, Kind, bayesian
from tfp_bprune.layers.variational import OnKeras


class Depthwise(Kind):
    """W [*positions, in, depth_multiplier]: outputs c * depth_multiplier + m read input c alone."""

    kernels = {"depthwise_kernel": Axes(read=-2, made=None)}  # noqa: RUF012
    arguments = ("kernel_size", "strides", "padding", "depth_multiplier", "data_format", "dilation_rate")
    prefers = Convolution.prefers

    def width(self, layer: Any) -> int:
        """As many for each input channel; of a built layer."""
        return math.prod(layer.depthwise_kernel.shape[-2:])

    def fan_in(self, name: str, shape: tuple[int, ...]) -> int:
        """Those at the positions."""
        return math.prod(shape[:-2])

    def flow(self, layer: Any) -> Flow:
        """Each channel keeps to itself."""
        return "keeps" if layer.data_format == "channels_last" else "unknown"

    def moments(self, layer: Any) -> bool:
        """As a convolution in as many groups as channels."""
        return True

    def groups(self, layer: Any, name: str) -> int:
        """The input channels."""
        return int(layer.depthwise_kernel.shape[-2])

    def connects(self, layer: Any, left: Arrays) -> np.ndarray:
        """As in `Kind`: [out]."""
        return by_output(left["depthwise_kernel"]).any(0)

    def carried(self, layer: Any, locs: Arrays) -> np.ndarray:
        """As in `Kind`: [out]."""
        return by_output(locs["depthwise_kernel"].astype(np.float64)).sum(0)


def by_output(kernel: np.ndarray) -> np.ndarray:
    """A depthwise kernel [*positions, in, depth_multiplier] as [positions, in * depth_multiplier]."""
    return kernel.reshape(-1, math.prod(kernel.shape[-2:]))


class DepthwiseConv1D(Depthwise):
    """Over one axis."""

    name = "DepthwiseConv1D"
    plain = keras.layers.DepthwiseConv1D


class DepthwiseConv2D(Depthwise):
    """Over two axes."""

    name = "DepthwiseConv2D"
    plain = keras.layers.DepthwiseConv2D


DEPTHWISE1D, DEPTHWISE2D = DepthwiseConv1D(), DepthwiseConv2D()


@bayesian(DEPTHWISE1D, "flipout")
class DepthwiseConv1DFlipout(Flipout, OnKeras, keras.layers.DepthwiseConv1D):
    """1D depthwise convolution, Flipout estimator: inputs [batch, steps, channels]."""


@bayesian(DEPTHWISE1D, "reparameterization")
class DepthwiseConv1DReparameterization(Reparameterization, OnKeras, keras.layers.DepthwiseConv1D):
    """1D depthwise convolution, one weight draw a batch: inputs [batch, steps, channels]."""


@bayesian(DEPTHWISE2D, "flipout")
class DepthwiseConv2DFlipout(Flipout, OnKeras, keras.layers.DepthwiseConv2D):
    """2D depthwise convolution, Flipout estimator: inputs [batch, rows, columns, channels]."""


@bayesian(DEPTHWISE2D, "reparameterization")
class DepthwiseConv2DReparameterization(Reparameterization, OnKeras, keras.layers.DepthwiseConv2D):
    """2D depthwise convolution, one weight draw a batch: inputs [batch, rows, columns, channels]."""
