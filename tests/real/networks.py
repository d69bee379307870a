"""Networks of the kinds that people bring, built small: other heads, masks, shared layers, several inputs, their own state."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf, tfp

L = keras.layers
EXAMPLES = 6


@dataclass(frozen=True)
class Network:
    """A network and what is needed to put it through everything.

    Attributes:
      build: makes the Keras model, compiled.
      data: makes inputs and targets of EXAMPLES examples, as `fit` takes them.
      moments: whether moments are carried through; else the layer at which they are not.
    """

    build: Callable[[], Any]
    data: Callable[[np.random.Generator], tuple[Any, Any]]
    moments: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def _compiled(model: Any, loss: Any) -> Any:
    model.compile(keras.optimizers.Adam(1e-3), loss)
    return model


def _images(size: int, channels: int, classes: int) -> Callable[[np.random.Generator], tuple[Any, Any]]:
    def data(random: np.random.Generator) -> tuple[Any, Any]:
        x = random.normal(size=(EXAMPLES, size, size, channels)).astype(np.float32)
        return x, random.integers(0, classes, EXAMPLES)

    return data


def _raw(kind: str, *arguments: Any, **keywords: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(tfp.layers, kind)(*arguments, **keywords)


def bayesian_vgg() -> Any:
    """Blocks of convolution, normalization, ReLU and pooling in raw Flipout layers, as TFP's example has them."""
    x = inputs = keras.Input((16, 16, 3))
    for stage, filters in enumerate((4, 8)):
        for i in range(2):
            x = _raw("Convolution2DFlipout", filters, 3, padding="same", name=f"conv_{stage}_{i}")(x)
            x = L.Activation("relu")(L.BatchNormalization()(x))
        x = L.MaxPooling2D(2, 2)(x)
    logits = _raw("DenseFlipout", 5, name="logits")(L.Flatten()(x))
    return _compiled(keras.Model(inputs, logits), keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def bayesian_resnet() -> Any:
    """Residual blocks in raw Flipout layers, with projections where the width changes, as TFP's example has them."""
    inputs = keras.Input((16, 16, 3))
    x = _raw("Convolution2DFlipout", 4, 3, padding="same", name="stem")(inputs)
    for stage, filters in enumerate((4, 8)):
        y = L.Activation("relu")(L.BatchNormalization()(x))
        if stage:
            x = _raw("Convolution2DFlipout", filters, 1, strides=2, padding="same", name="projection")(x)
        y = _raw("Convolution2DFlipout", filters, 3, strides=1 + stage, padding="same", name=f"first_{stage}")(y)
        y = L.Activation("relu")(L.BatchNormalization()(y))
        y = _raw("Convolution2DFlipout", filters, 3, padding="same", name=f"second_{stage}")(y)
        x = L.Add()([x, y])
    x = L.AveragePooling2D(8)(L.Activation("relu")(L.BatchNormalization()(x)))
    logits = _raw("DenseFlipout", 5, name="logits")(L.Flatten()(x))
    return _compiled(keras.Model(inputs, logits), keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def mobilenet() -> Any:
    """MobileNetV3Small, narrow and of three of its blocks: depthwise convolutions, squeeze and excitation, hard activations."""
    blocks = keras.src.applications.mobilenet_v3

    def stack(x: Any, kernel: int, activation: Any, se_ratio: float) -> Any:
        for number, (expansion, filters, size, stride, ratio, act) in enumerate(
            [
                (1, 8, 3, 2, se_ratio, blocks.relu),
                (72 / 16, 16, 3, 2, None, blocks.relu),
                (6, 16, kernel, 1, se_ratio, activation),  # with a connection across
            ]
        ):
            x = blocks._inverted_res_block(x, expansion, filters, size, stride, ratio, act, number)
        return x

    options = {"weights": None, "classes": 5, "include_preprocessing": False}
    model = blocks.MobileNetV3(stack, 64, (32, 32, 3), alpha=0.25, model_type="small", **options)
    return _compiled(model, "sparse_categorical_crossentropy")


def efficientnet() -> Any:
    """EfficientNet as B0 begins, narrow, of two stages: rescaling and normalization within, swish, multiplied channels."""
    family = keras.src.applications.efficientnet
    stages = [dict(stage) for stage in family.DEFAULT_BLOCKS_ARGS[:2]]
    options = {"weights": None, "input_shape": (32, 32, 3), "classes": 5, "blocks_args": stages}
    # A coefficient of depth of .6 leaves the second stage both of its blocks, with a connection across.
    model = family.EfficientNet(0.25, 0.6, 32, model_name="efficientnet", **options)
    return _compiled(model, "sparse_categorical_crossentropy")


def transformer() -> Any:
    """One encoder block on tokens with padding: attention, additions, layer normalization."""
    tokens = keras.Input((7,), dtype="int32")
    x = L.Embedding(11, 8, mask_zero=True)(tokens)
    x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)]))
    y = L.Dense(8)(L.Dense(16, "gelu")(x))
    x = L.GlobalAveragePooling1D()(L.LayerNormalization()(L.Add()([x, y])))
    return _compiled(keras.Model(tokens, L.Dense(1, "sigmoid")(x)), "binary_crossentropy")


def _tokens(random: np.random.Generator) -> np.ndarray:
    x = random.integers(1, 11, (EXAMPLES, 7))
    x[np.arange(7) >= random.integers(2, 8, (EXAMPLES, 1))] = 0
    return x.astype(np.int32)


def tagger() -> Any:
    """A tag for each word: embedding with a mask, dense layer, LSTM, softmax for every step."""
    tokens = keras.Input((7,), dtype="int32")
    x = L.Dense(6, "tanh")(L.Embedding(11, 5, mask_zero=True)(tokens))
    x = L.LSTM(6, return_sequences=True)(x)
    return _compiled(keras.Model(tokens, L.Dense(4, "softmax")(x)), "sparse_categorical_crossentropy")


def segmentation() -> Any:
    """A class for each pixel of an image of any size: down, up again, and a connection across."""
    inputs = keras.Input((None, None, 1))
    a = L.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    b = L.Conv2D(6, 3, padding="same", activation="relu")(L.MaxPooling2D()(a))
    c = L.Concatenate()([a, L.UpSampling2D()(b)])
    logits = L.Conv2D(3, 1)(L.Conv2D(4, 3, padding="same", activation="relu")(c))
    return _compiled(keras.Model(inputs, logits), keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def siamese() -> Any:
    """Two inputs through the same layers, and the distance of what comes out."""
    branch = [L.Dense(8, "relu"), L.Dense(4)]

    def through(x: Any) -> Any:
        for layer in branch:
            x = layer(x)
        return x

    a, b = keras.Input((5,), name="left"), keras.Input((5,), name="right")
    distance = L.Subtract()([through(a), through(b)])
    return _compiled(keras.Model([a, b], L.Dense(1, "sigmoid")(distance)), "binary_crossentropy")


def two_and_two() -> Any:
    """Two inputs, two outputs: a class and a number."""
    a, b = keras.Input((5,), name="left"), keras.Input((3,), name="right")
    x = L.Concatenate()([L.Dense(8, "relu")(a), L.Dense(4, "relu")(b)])
    outputs = {"kind": L.Dense(3, "softmax", name="kind")(x), "size": L.Dense(1, name="size")(x)}
    return _compiled(
        keras.Model({"left": a, "right": b}, outputs), {"kind": "sparse_categorical_crossentropy", "size": "mse"}
    )


def monte_carlo_dropout() -> Any:
    """Dropout that stays on."""
    inputs = keras.Input((5,))
    x = L.Dropout(0.3)(L.Dense(16, "relu")(inputs), training=True)
    return _compiled(keras.Model(inputs, L.Dense(3, "softmax")(x)), "sparse_categorical_crossentropy")


def table() -> Any:
    """A table whose columns the network standardizes itself, and a number to predict."""
    normalization = L.Normalization()
    normalization.adapt(np.random.default_rng(3).normal(5, 3, (100, 4)).astype(np.float32))
    inputs = keras.Input((4,))
    x = L.Dense(8, "relu")(normalization(inputs))
    return _compiled(keras.Model(inputs, L.Dense(1)(x)), "mse")


def _vectors(*widths: int) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda random: [random.normal(size=(EXAMPLES, width)).astype(np.float32) for width in widths]


NETWORKS: dict[str, Network] = {
    "bayesian_vgg": Network(bayesian_vgg, _images(16, 3, 5)),
    "bayesian_resnet": Network(bayesian_resnet, _images(16, 3, 5)),
    "mobilenet": Network(mobilenet, _images(32, 3, 5), moments=r"layer 'multiply\w*' is a Multiply"),
    "efficientnet": Network(efficientnet, _images(32, 3, 5), moments="block"),
    "transformer": Network(
        transformer, lambda r: (_tokens(r), r.integers(0, 2, (EXAMPLES, 1))), moments="of a kind through which"
    ),
    "tagger": Network(
        tagger, lambda r: (_tokens(r), r.integers(0, 4, (EXAMPLES, 7))), moments="is a LSTM that heeds a mask"
    ),
    "segmentation": Network(
        segmentation,
        lambda r: (r.normal(size=(EXAMPLES, 8, 8, 1)).astype(np.float32), r.integers(0, 3, (EXAMPLES, 8, 8))),
        moments="no fixed number of positions",
    ),
    "siamese": Network(siamese, lambda r: (_vectors(5, 5)(r), r.integers(0, 2, (EXAMPLES, 1))), moments="dense"),
    "two_and_two": Network(
        two_and_two,
        lambda r: (
            dict(zip(("left", "right"), _vectors(5, 3)(r), strict=True)),
            {"kind": r.integers(0, 3, EXAMPLES), "size": r.normal(size=(EXAMPLES, 1))},
        ),
    ),
    "monte_carlo_dropout": Network(monte_carlo_dropout, lambda r: (_vectors(5)(r)[0], r.integers(0, 3, EXAMPLES))),
    "table": Network(table, lambda r: (5 + 3 * _vectors(4)(r)[0], r.normal(size=(EXAMPLES, 1)))),
}


def as_tensors(x: Any) -> Any:
    """Inputs as a Keras model takes them."""
    return tf.nest.map_structure(tf.constant, x)
