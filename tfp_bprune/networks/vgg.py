"""VGG-16 in its CIFAR form: thirteen 3x3 convolutions with batch normalization, and one classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.networks.factory import LayerFactory, widths_of

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(x: Any, outputs: int, make: LayerFactory, width: float = 1.0, sizes: Sequence[int] | None = None) -> Any:
    """VGG-16 for 32x32 images: configuration D of Simonyan and Zisserman 2015 (arXiv 1409.1556, table 1), each
    convolution followed by batch normalization, the three dense layers replaced by one.

    14,728,266 trainable parameters at width 1 with 10 classes, as in the customary CIFAR form: 14,714,688 in
    convolutions with biases, 8,448 in batch normalization, 5,130 in the classifier.

    Args:
      x: images [batch, height, width, channels].
      width: factor on the number of channels.
      sizes: or how many each of the thirteen convolutions has.

    Returns:
      Logits [batch, outputs].
    """
    channels = iter(widths_of("vgg16", tuple(one for stage in STAGES for one in stage), width, sizes))
    for stage, widths in enumerate(STAGES, start=1):
        for i in range(1, len(widths) + 1):
            x = make.conv2d(next(channels), 3, f"conv_{stage}_{i}")(x)
            x = keras.layers.BatchNormalization(name=f"norm_{stage}_{i}")(x)
            x = keras.layers.ReLU(name=f"relu_{stage}_{i}")(x)
        x = keras.layers.MaxPooling2D(2, name=f"pool_{stage}")(x)
        x = make.dropout(f"dropout_{stage}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    return make.dense(outputs, "logits")(x)
