"""The LeNets of the pruning literature, and the small convolutional network of BPrune's example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.networks.factory import LayerFactory, scaled, widths_of
from tfp_bprune.networks.mlp import mlp


def lenet300(x: Any, outputs: int, make: LayerFactory, width: float = 1.0, sizes: Sequence[int] | None = None) -> Any:
    """LeNet-300-100: 784-300-100-10, 266,610 parameters (LeCun et al. 1998; Han et al. 2015, table 3).

    Args:
      x: images [batch, height, width, channels].
      width: factor on the units of both layers.
      sizes: or how many each of them has.

    Returns:
      Logits [batch, outputs].
    """
    return mlp(x, outputs, make, hidden=widths_of("lenet300", (300, 100), width, sizes))


def lenet5(x: Any, outputs: int, make: LayerFactory, width: float = 1.0, sizes: Sequence[int] | None = None) -> Any:
    """LeNet-5 as Caffe has it: 20 and 50 filters of 5x5 without padding, each max-pooled by 2, then 500 units.

    431,080 parameters on MNIST (Han et al. 2015, table 4; Louizos et al. 2017, section 5).

    Args:
      x: images [batch, height, width, channels].
      width: factor on the filters of both convolutions and on the units.
      sizes: or how many each of the three has.

    Returns:
      Logits [batch, outputs].
    """
    first, second, units = widths_of("lenet5", (20, 50, 500), width, sizes)
    x = make.conv2d(first, 5, "conv_1", padding="valid")(x)
    x = keras.layers.MaxPooling2D(2, name="pool_1")(x)
    x = make.conv2d(second, 5, "conv_2", padding="valid")(x)
    x = keras.layers.MaxPooling2D(2, name="pool_2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = make.dense(units, "dense_1", activation="relu")(x)
    x = make.dropout("dropout_1")(x)
    return make.dense(outputs, "logits")(x)


def convnet(x: Any, outputs: int, make: LayerFactory, width: float = 1.0) -> Any:
    """Two 5x5 convolutions of 32 and 64 filters, each max-pooled by 2, then 1,024 units.

    The network of TensorFlow's and Horovod's MNIST examples, from which BPrune's example is made (Sharma and Jennings
    2020): 3,274,634 parameters on MNIST.

    Args:
      x: images [batch, height, width, channels].

    Returns:
      Logits [batch, outputs].
    """
    for i, filters in enumerate((32, 64), start=1):
        x = make.conv2d(scaled(filters, width), 5, f"conv_{i}", activation="relu")(x)
        x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool_{i}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = make.dense(scaled(1024, width), "dense_1", activation="relu")(x)
    x = make.dropout("dropout_1")(x)
    return make.dense(outputs, "logits")(x)
