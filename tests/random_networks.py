"""Networks of layers drawn at random, which nobody thought of: `drawn(seed)` gives the same one for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.branching import randomized
from tfp_bprune._keras import keras, tf

L = keras.layers
Random = np.random.Generator
Block = Callable[[Any, Random], Any]
ACTIVATIONS = (
    "relu", "tanh", "sigmoid", "linear", "elu", "swish", "softplus", "gelu", "softmax", "hard_sigmoid", "softsign", "mish",
)  # fmt: skip
MOST_NUMBERS = 600  # of an example inside a network


def one_of(r: Random, *options: Any) -> Any:
    return options[r.integers(len(options))]


def width(r: Random) -> int:
    return int(r.integers(2, 7))


def options(r: Random) -> dict[str, Any]:
    """What layers with a kernel have in common."""
    return {"activation": one_of(r, *ACTIVATIONS), "use_bias": bool(r.random() < 0.8)}


def fits(x: Any) -> bool:
    """Whether a kernel of 2 by 2 fits in the images."""
    return min(x.shape[1:3]) >= 2


def convolution(x: Any, r: Random) -> Any:
    size, strides = (one_of(r, 1, 2), one_of(r, 1, 1, 2)) if fits(x) else (1, 1)
    return L.Conv2D(width(r), size, strides, one_of(r, "same", "valid"), **options(r))(x)


def depthwise(x: Any, r: Random) -> Any:
    return L.DepthwiseConv2D(2, padding="same", depth_multiplier=one_of(r, 1, 2), **options(r))(x)


def separable(x: Any, r: Random) -> Any:
    return L.SeparableConv2D(width(r), 2, padding="same", depth_multiplier=one_of(r, 1, 2), **options(r))(x)


def transposed(x: Any, r: Random) -> Any:
    return L.Conv2DTranspose(width(r), 2, one_of(r, 1, 2), one_of(r, "same", "valid"), **options(r))(x)


def grouped(x: Any, r: Random) -> Any:
    groups = one_of(r, *(n for n in (1, 2, 3) if x.shape[-1] % n == 0))
    return L.Conv2D(groups * one_of(r, 1, 2, 3), 1, groups=groups, **options(r))(x)


def residual(x: Any, r: Random) -> Any:
    rank = len(x.shape)
    y = (
        L.Conv2D(x.shape[-1], 3, padding="same", **options(r))(x)
        if rank == 4
        else L.Dense(x.shape[-1], **options(r))(x)
    )
    return one_of(r, L.Add, L.Average, L.Maximum, L.Minimum, L.Subtract, L.Multiply)()([x, y])


def concatenated(x: Any, r: Random) -> Any:
    y = L.Dense(width(r), **options(r))(x)
    return L.Concatenate()(one_of(r, [x, y], [y, x, y], [x, x, y]))


def excited(x: Any, r: Random) -> Any:
    """Squeeze and excite, by a layer, by broadcasting or by Python's operator."""
    means = L.GlobalAveragePooling2D(keepdims=True)(x)
    gate = L.Dense(x.shape[-1], one_of(r, "sigmoid", "softmax", "hard_sigmoid"))(L.Dense(width(r), "relu")(means))
    return L.Multiply()([x, gate]) if r.random() < 0.5 else x * gate


def gated(x: Any, r: Random) -> Any:
    return L.Multiply()([x, L.Dense(1, "sigmoid")(x)])


def split_in_two(x: Any, r: Random) -> Any:
    half = x.shape[-1] // 2
    if not half:
        return x
    return L.Concatenate()([x[..., :half], L.Dense(width(r), **options(r))(x[..., half:])])


def shuffled(x: Any, r: Random) -> Any:
    rows, columns, channels = x.shape[1:]
    if channels % 2:
        return x
    parted = L.Permute((1, 2, 4, 3))(L.Reshape((rows, columns, 2, channels // 2))(x))
    return L.Reshape((rows, columns, channels))(parted)


def normalized(x: Any, r: Random) -> Any:
    groups = 2 if x.shape[-1] % 2 == 0 else 1
    layer = one_of(
        r, L.BatchNormalization(scale=bool(r.integers(2)), center=bool(r.integers(2))), L.LayerNormalization(),
        L.UnitNormalization(), *[L.GroupNormalization(groups)] * (len(x.shape) > 2),
    )  # fmt: skip
    return layer(x)


def without_weights(x: Any, r: Random) -> Any:
    layer = one_of(
        r, L.LeakyReLU(0.2), L.ELU(), L.ThresholdedReLU(0.1), L.ReLU(3.0, 0.1, 0.05), L.Rescaling(0.5, 1.0),
        L.Dropout(0.2), L.Softmax(), L.Activation(one_of(r, *ACTIVATIONS)), lambda t: tf.nn.relu(t) + 1.0, lambda t: t * 0.5 - 1,
    )  # fmt: skip
    return layer(x)


def parametric(x: Any, r: Random) -> Any:
    return L.PReLU(shared_axes=one_of(r, None, list(range(1, len(x.shape) - 1)) or None))(x)


def pooled(x: Any, r: Random) -> Any:
    return one_of(r, L.MaxPooling2D, L.AveragePooling2D)(2, padding=one_of(r, "same", "valid"))(x) if fits(x) else x


def resized(x: Any, r: Random) -> Any:
    if max(x.shape[1:3]) > 6:
        return L.Cropping2D(1)(x)
    return one_of(r, L.UpSampling2D(2), L.UpSampling2D(2, interpolation="bilinear"), L.ZeroPadding2D(1))(x)


def rearranged(x: Any, r: Random) -> Any:
    rows, columns, channels = x.shape[1:]
    return one_of(
        r, L.Permute((2, 1, 3)), L.Reshape((rows * columns, 1, channels)), L.Reshape((1, rows, columns * channels))
    )(x)


def einsum(x: Any, r: Random) -> Any:
    axes = "abcd"[: len(x.shape)]
    equation = f"{axes},{axes[-1]}e->{axes[:-1]}e"
    return L.EinsumDense(equation, (*x.shape[1:-1], width(r)), bias_axes="e", activation=one_of(r, *ACTIVATIONS))(x)


def along_time(x: Any, r: Random) -> Any:
    causal = L.Conv1D(width(r), 2, padding=one_of(r, "same", "causal"), **options(r))
    depthwise = L.DepthwiseConv1D(2, padding="same", **options(r))
    return one_of(r, causal, depthwise, L.SeparableConv1D(width(r), 2, padding="same", **options(r)))(x)


def attention(x: Any, r: Random) -> Any:
    return L.MultiHeadAttention(2, 3)(x, x)


def recurrent(x: Any, r: Random) -> Any:
    layer = one_of(r, L.LSTM, L.GRU, L.SimpleRNN)(width(r), return_sequences=True)
    return one_of(r, layer, L.Bidirectional(layer))(x)


def by_step(x: Any, r: Random) -> Any:
    return L.TimeDistributed(L.Dense(width(r), **options(r)))(x)


def repeated(x: Any, r: Random) -> Any:
    mean = L.Dense(width(r), **options(r))(L.GlobalAveragePooling1D()(x))
    return L.Concatenate()([x, L.RepeatVector(x.shape[1])(mean)])


def dense(x: Any, r: Random) -> Any:
    return L.Dense(width(r), **options(r))(x)


def nested(x: Any, r: Random) -> Any:
    """A network within the network, perhaps with another in it, called once or twice."""
    start = keras.Input(x.shape[1:])
    y = one_of(r, dense, dense, normalized, concatenated)(start, r)
    if r.random() < 0.3:
        y = keras.Sequential([keras.Input(y.shape[1:]), L.Dense(width(r), **options(r)), L.BatchNormalization()])(y)
    inner = keras.Model(start, L.Dense(width(r), **options(r))(y))
    told = one_of(r, {}, {"training": False})
    return inner(x, **told) if r.random() < 0.5 else L.Concatenate()([inner(x, **told), inner(x * 0.5)])


def shared(x: Any, r: Random) -> Any:
    """A layer that is called twice, on tensors of which some channels may be dead in one alone."""
    other = L.Dense(x.shape[-1], **options(r))(x)
    layers = [L.Dense(width(r), **options(r)), L.BatchNormalization(), L.PReLU(), L.LayerNormalization()]
    if len(x.shape) == 4:
        layers += [L.DepthwiseConv2D(2, padding="same", **options(r)), L.Conv2D(width(r), 1, **options(r))]
    layer = one_of(r, *layers)
    return one_of(r, L.Concatenate(), L.Add(), L.Subtract())([layer(x), layer(other)])


def again(x: Any, r: Random) -> Any:
    """A layer that reads what it made."""
    layer = L.Dense(x.shape[-1], **options(r))
    return layer(layer(x))


def several(x: Any, r: Random) -> Any:
    """A call that makes several tensors."""
    if x.shape[-1] % 2:
        return x
    one, other = tf.split(x, 2, -1)
    return L.Concatenate()([L.Dense(width(r), **options(r))(one), other])


EVERYWHERE: list[Block] = [
    dense,
    dense,
    residual,
    concatenated,
    gated,
    split_in_two,
    normalized,
    without_weights,
    parametric,
    nested,
    shared,
    again,
    several,
]
BLOCKS: dict[int, list[Block]] = {
    2: EVERYWHERE,
    3: [*EVERYWHERE, along_time, along_time, attention, recurrent, by_step, repeated, einsum],
    4: [
        *EVERYWHERE, convolution, convolution, convolution, depthwise, separable, transposed, grouped, excited, shuffled, pooled,
        resized, rearranged, einsum,
    ],
}  # fmt: skip
TO_ROWS: dict[int, list[Any]] = {
    3: [L.Flatten, L.GlobalAveragePooling1D, L.GlobalMaxPooling1D],
    4: [L.Flatten, L.GlobalAveragePooling2D, L.GlobalMaxPooling2D],
}
SHAPES = ((5,), (6, 4), (5, 5, 2), (6, 4, 3))


def drawn(seed: int) -> Any:
    """A Keras model of one to three inputs and one to two outputs, with weights away from their zeros."""
    r = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    inputs = [keras.Input(one_of(r, *SHAPES)) for _ in range(one_of(r, 1, 1, 1, 2, 3))]
    if r.random() < 0.15:  # one network for all of them
        start = keras.Input(inputs[0].shape[1:])
        body = keras.Model(start, _body(start, r))
        inputs = [inputs[0], *(keras.Input(inputs[0].shape[1:]) for _ in inputs)]
        parts = [body(x) for x in inputs]
    else:
        parts = [_body(x, r) for x in inputs]
    x = L.Concatenate()(parts) if len(parts) > 1 else parts[0]
    outputs = [L.Dense(3)(x)] + [L.Dense(2)(parts[0])] * bool(r.random() < 0.3)
    model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])
    return randomized(model, r)


def _body(x: Any, r: Random) -> Any:
    for _ in range(int(r.integers(2, 7))):
        x = one_of(r, *BLOCKS[len(x.shape)])(x, r)
        if len(x.shape) > 2 and (np.prod(x.shape[1:]) > MOST_NUMBERS or r.random() < 0.15):
            x = one_of(r, *TO_ROWS[len(x.shape)])()(x)
        if len(x.shape) == 2 and x.shape[-1] > 20:
            x = L.Dense(6, "relu")(x)
    return L.Flatten()(x) if len(x.shape) > 2 else x


def examples_for(model: Any, r: Random, count: int) -> list[np.ndarray]:
    """An array for each input."""
    return [r.normal(size=(count, *tensor.shape[1:])).astype(np.float32) for tensor in model.inputs]
