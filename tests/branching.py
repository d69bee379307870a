"""Networks of every kind of layer through which channels are followed, with weights away from their zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf

L = keras.layers


def dense_chain(x: Any) -> Any:
    for units, activation in ((9, "relu"), (8, "tanh"), (7, "sigmoid")):
        x = L.Dense(units, activation)(x)
    return L.Dense(3)(x)


def without_bias(x: Any) -> Any:
    x = L.Dense(6, "sigmoid", use_bias=False)(x)
    return L.Dense(3, use_bias=False)(L.Dense(5, "relu", use_bias=False)(x))


def softmax_inside(x: Any) -> Any:
    # A softmax ties all of its channels together: the others feel the loss of one.
    return L.Dense(3)(L.Softmax()(L.Dense(6)(L.Dense(5, "softmax")(x))))


def residual(x: Any) -> Any:
    x = L.Dense(6, "relu")(x)
    y = L.Dense(6, "sigmoid")(x)
    x = L.Add()([x, L.Dense(6)(y)])
    return L.Dense(3)(L.Activation("elu")(x))


def concatenated(x: Any) -> Any:
    a, b = L.Dense(4, "relu")(x), L.Dense(5, "sigmoid")(x)
    return L.Dense(3)(L.BatchNormalization()(L.Concatenate()([a, b, a])))


def merged(x: Any) -> Any:
    a, b, c = L.Dense(5, "relu")(x), L.Dense(5, "sigmoid")(x), L.Dense(5, L.LeakyReLU())(x)
    x = L.Average()([L.Multiply()([a, b]), L.Subtract()([b, c])])
    return L.Dense(3)(L.Maximum()([x, L.Minimum()([a, c])]))


def operations(x: Any) -> Any:
    x = L.Dense(6, "relu")(x)
    x = tf.reshape(x * 2 + 1, (tf.shape(x)[0], 6))
    x = L.Dense(4, "relu")(tf.concat([x, 1 - x], -1))
    return L.Dense(3)(L.ThresholdedReLU(0.1)(x))


def skip_to_the_output(x: Any) -> Any:
    y = L.Dense(3, "relu")(x)
    return L.Add()([y, L.Dense(3)(L.Dense(4, "tanh")(y))])


def convolutions(padding: str) -> Callable[[Any], Any]:
    def network(x: Any) -> Any:
        x = L.Conv2D(5, 3, padding=padding, activation="sigmoid")(x)
        x = L.BatchNormalization()(x)
        x = L.MaxPooling2D(2, padding=padding)(x)
        x = L.Conv2D(4, 2, padding=padding, strides=2, activation="relu")(x)
        x = L.AveragePooling2D(2, padding="same")(x)
        return L.Dense(3)(L.Dropout(0.3)(L.Flatten()(x)))

    return network


def pooled(x: Any) -> Any:
    x = L.AlphaDropout(0.2)(L.LeakyReLU()(L.Conv2D(6, 2, padding="same")(x)))
    return L.Dense(3)(L.GlobalAveragePooling2D()(L.Conv2D(5, 1)(L.ReLU(max_value=0.5)(x))))


def convolution_blocks(x: Any) -> Any:
    x = L.Conv2D(4, 1, activation="relu")(x)
    y = L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x))
    x = L.Concatenate()([L.Add()([x, y]), L.DepthwiseConv2D(3, padding="same")(y)])
    return L.Dense(3)(L.GlobalMaxPooling2D()(L.Conv2D(3, 2)(x)))


def along_rows(x: Any) -> Any:
    # Pooling that takes the rows for channels: what it gives out has nothing to do with the filters.
    x = L.Conv2D(6, 1, activation="sigmoid")(x)
    return L.Dense(3)(L.GlobalAveragePooling2D(data_format="channels_first")(x))


def one_dimension(x: Any) -> Any:
    x = L.Conv1D(5, 2, activation="sigmoid", padding="causal")(L.Reshape((12, 6))(x))
    return L.Dense(3)(L.GlobalMaxPooling1D()(L.Conv1D(4, 3, activation="relu", padding="valid")(x)))


def moved(x: Any) -> Any:
    x = L.PReLU(shared_axes=[1, 2])(L.Conv2D(6, 1)(x))
    x = L.Conv2D(5, 2, activation="sigmoid")(L.ZeroPadding2D(1)(x))
    x = L.Permute((2, 1, 3))(L.UpSampling2D(2)(L.Cropping2D(2)(x)))
    x = L.Conv1D(4, 2, activation="relu")(L.PReLU()(L.Rescaling(0.5, 1.0)(L.Reshape((-1, 5))(x))))
    return L.Dense(3)(L.BatchNormalization()(L.Reshape((140,))(x)))


FLAT = [dense_chain, without_bias, softmax_inside, residual, concatenated, merged, operations, skip_to_the_output]
IMAGES = [convolutions("valid"), convolutions("same"), pooled, convolution_blocks, along_rows, one_dimension, moved]
NETWORKS = [((6,), network) for network in FLAT] + [((6, 6, 2), network) for network in IMAGES]
NAMES = [n.__name__ for n in FLAT] + ["valid", "same", *(n.__name__ for n in IMAGES[2:])]


def randomized(model: Any, rng: np.random.Generator) -> Any:
    """`model` with biases, moving means and all else away from their zeros, and some biases and channels at 0."""
    model.set_weights([rng.uniform(0.2, 1, w.shape) * rng.choice([-1, 1], w.shape) for w in model.get_weights()])
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, L.BatchNormalization):
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.moving_variance.shape))
            if layer.gamma is not None:
                layer.gamma.assign(layer.gamma * (rng.random(layer.gamma.shape) > 0.3))
        elif hasattr(getattr(layer, "bias", None), "assign"):
            layer.bias.assign(layer.bias * (rng.random(layer.bias.shape) > 0.3))
    return model


def built(shape: tuple[int, ...], body: Callable[[Any], Any]) -> Any:
    """The Keras model of one of `NETWORKS`."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, body(inputs))
