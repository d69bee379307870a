"""ResNet-18 in its CIFAR form: a 3x3 stem and four stages of two basic blocks."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.networks.factory import LayerFactory, scaled

STAGES = (64, 128, 256, 512)


def resnet18(x: Any, outputs: int, make: LayerFactory, width: float = 1.0) -> Any:
    """ResNet-18 for 32x32 images: basic blocks of He et al. 2016 (arXiv 1512.03385, figure 5 left, table 1), the 7x7
    stem and its pooling replaced by one 3x3 convolution, as is usual on CIFAR.

    11,173,962 trainable parameters at width 1 with 10 classes.

    Args:
      x: images [batch, height, width, channels].
      width: factor on the number of channels.

    Returns:
      Logits [batch, outputs].
    """
    x = _conv_norm(x, make, scaled(STAGES[0], width), "stem")
    x = keras.layers.ReLU(name="stem_relu")(x)
    for stage, filters in enumerate(STAGES, start=1):
        for block in (1, 2):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, make, scaled(filters, width), stride, f"block_{stage}_{block}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = make.dropout("dropout")(x)
    return make.dense(outputs, "logits")(x)


def _basic_block(x: Any, make: LayerFactory, filters: int, stride: int, name: str) -> Any:
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _conv_norm(x, make, filters, f"{name}_shortcut", size=1, stride=stride)
    x = _conv_norm(x, make, filters, f"{name}_a", stride=stride)
    x = keras.layers.ReLU(name=f"{name}_a_relu")(x)
    x = _conv_norm(x, make, filters, f"{name}_b")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _conv_norm(x: Any, make: LayerFactory, filters: int, name: str, size: int = 3, stride: int = 1) -> Any:
    x = make.conv2d(filters, size, f"{name}_conv", strides=stride, use_bias=False)(x)
    return keras.layers.BatchNormalization(name=f"{name}_norm")(x)
