"""Convolutions over one, two and three axes with a distribution over their weights, one for each estimator."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers.estimators import Flipout, Reparameterization
from tfp_bprune.layers.kind import Flow, Kind, bayesian
from tfp_bprune.layers.variational import OnTfp
from tfp_bprune.types import Json


class Convolution(Kind):
    """A convolution, W [*positions, in / groups, out]: group g of the outputs reads group g of the inputs."""

    arguments = ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate", "groups")
    prefers = "reparameterization"  # Flipout learns as much an epoch, in twice the time (benchmarks/time_to_quality.py)

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """The convolution; with groups one for each, since TensorFlow has no gradient of the whole on a CPU."""
        if layer.padding != "causal" and _groups(layer) == 1:
            operation = getattr(layer, "_convolution_op", None) or layer.convolution_op
            return operation(inputs, kernel)
        if layer.padding == "causal":
            before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            inputs = tf.pad(inputs, [[0, 0], [before, 0], [0, 0]])
        groups, axis = _groups(layer), _channels(layer)
        parts = zip(tf.split(inputs, groups, axis), tf.split(kernel, groups, -1), strict=True)
        return tf.concat([_convolved(layer, part, weights) for part, weights in parts], axis)

    def flow(self, layer: Any) -> Flow:
        """Groups would have to lose equally many channels."""
        return super().flow(layer) if _groups(layer) == 1 else "unknown"

    def groups(self, layer: Any, name: str) -> int:
        """Those of the layer."""
        return _groups(layer)


def _groups(layer: Any) -> int:
    return int(getattr(layer, "groups", 1))


def _channels(layer: Any) -> int:
    """The axis of the channels."""
    return 1 if layer.data_format == "channels_first" else len(layer.kernel_size) + 1


def _convolved(layer: Any, inputs: Any, kernel: Any) -> Any:
    space = "DHW"[-len(layer.kernel_size) :]
    return tf.nn.convolution(
        inputs,
        kernel,
        strides=list(layer.strides),
        padding="VALID" if layer.padding == "causal" else layer.padding.upper(),
        data_format=f"NC{space}" if layer.data_format == "channels_first" else f"N{space}C",
        dilations=list(layer.dilation_rate),
    )


class _OnTfpConvolution(OnTfp):
    """What tfp.layers' convolutions lack: groups, and padding before the first step ("causal").

    Args:
      groups: into how many parts, each by itself, inputs and outputs fall.
    """

    def __init__(self, filters: int, kernel_size: Any, *args: Any, groups: int = 1, **kwargs: Any) -> None:
        padding = kwargs.get("padding")
        kwargs |= {"padding": "valid"} if padding == "causal" else {}
        super().__init__(filters, kernel_size, *args, **kwargs)
        self.groups = int(groups)
        if padding == "causal":
            self.padding = padding
        if self._is_special:
            self._plain()

    @property
    def _is_special(self) -> bool:
        return self.groups > 1 or self.padding == "causal"

    def _plain(self) -> Any:
        """Keras's own layer, which knows what goes together, and says so."""
        shared = {key: getattr(self, key) for key in self.kind.arguments}
        return self.kind.plain(name="plain", **shared)

    def _add_weights(self, input_shape: Any) -> None:
        if not self._is_special:
            super()._add_weights(input_shape)
            return
        channels = tf.TensorShape(input_shape)[_channels(self)]
        if channels is None or channels % self.groups:
            raise ValueError(
                f"layer {self.name!r} has {self.groups} groups: expected inputs with a multiple of as many channels, got {channels}"
            )
        self._add_posterior("kernel", (*self.kernel_size, channels // self.groups, self.filters))
        self.kernel_posterior = self.posteriors["kernel"]
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2, axes={_channels(self): channels})
        self._add_bias()

    def compute_output_shape(self, input_shape: Any) -> Any:
        """As Keras's."""
        if self._is_special:
            return self._plain().compute_output_shape(input_shape)
        return super().compute_output_shape(input_shape)

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars."""
        return super().get_config() | ({"groups": self.groups} if self.groups > 1 else {})


class Conv1D(Convolution):
    """A convolution over one axis."""

    name = "Conv1D"
    plain = keras.layers.Conv1D
    raw = {  # noqa: RUF012
        tfp.layers.Convolution1DFlipout: "flipout",
        tfp.layers.Convolution1DReparameterization: "reparameterization",
    }


CONV1D = Conv1D()


@bayesian(CONV1D, "flipout")
class Conv1DFlipout(Flipout, _OnTfpConvolution, tfp.layers.Convolution1DFlipout):
    """1D convolution, Flipout estimator: inputs [batch, steps, channels]."""


@bayesian(CONV1D, "reparameterization")
class Conv1DReparameterization(Reparameterization, _OnTfpConvolution, tfp.layers.Convolution1DReparameterization):
    """1D convolution, one weight draw a batch: inputs [batch, steps, channels]."""


class Conv2D(Convolution):
    """A convolution over two axes."""

    name = "Conv2D"
    plain = keras.layers.Conv2D
    raw = {  # noqa: RUF012
        tfp.layers.Convolution2DFlipout: "flipout",
        tfp.layers.Convolution2DReparameterization: "reparameterization",
    }


CONV2D = Conv2D()


@bayesian(CONV2D, "flipout")
class Conv2DFlipout(Flipout, _OnTfpConvolution, tfp.layers.Convolution2DFlipout):
    """2D convolution, Flipout estimator: inputs [batch, rows, columns, channels]."""


@bayesian(CONV2D, "reparameterization")
class Conv2DReparameterization(Reparameterization, _OnTfpConvolution, tfp.layers.Convolution2DReparameterization):
    """2D convolution, one weight draw a batch: inputs [batch, rows, columns, channels]."""


class Conv3D(Convolution):
    """A convolution over three axes."""

    name = "Conv3D"
    plain = keras.layers.Conv3D
    raw = {  # noqa: RUF012
        tfp.layers.Convolution3DFlipout: "flipout",
        tfp.layers.Convolution3DReparameterization: "reparameterization",
    }


CONV3D = Conv3D()


@bayesian(CONV3D, "flipout")
class Conv3DFlipout(Flipout, _OnTfpConvolution, tfp.layers.Convolution3DFlipout):
    """3D convolution, Flipout estimator: inputs [batch, planes, rows, columns, channels]."""


@bayesian(CONV3D, "reparameterization")
class Conv3DReparameterization(Reparameterization, _OnTfpConvolution, tfp.layers.Convolution3DReparameterization):
    """3D convolution, one weight draw a batch: inputs [batch, planes, rows, columns, channels]."""
