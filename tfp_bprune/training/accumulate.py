"""A step on a batch that is too large for memory: its parts one after the other, their gradients added up, one update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import noise
from tfp_bprune.types import TrainingError


@contextlib.contextmanager
def accumulating(model: Any, parts: int) -> Iterator[None]:
    """Has `model.fit` take each batch in `parts`; with 1 it does what it always does.

    Each part weighs as many examples as it has, and with them its share of the KL and of penalties: to rounding the gradient is
    that of the whole batch, the KL counted once. All parts see one draw of the weights, that of the whole batch; noise of
    examples (Flipout's signs, dropout) is drawn for each part. Batch normalization sees parts, not batches.

    Raises:
      TrainingError: the model has a `train_step` of its own.
    """
    if parts == 1:
        yield
        return
    if type(model).train_step is not keras.Model.train_step:
        raise TrainingError(
            f"{type(model).__name__} has a train_step of its own, which takes a batch whole: expected accumulate=1"
        )
    model.train_step, model.train_function = partial(_step, model, parts), None
    try:
        yield
    finally:
        del model.train_step
        model.train_function = None


def _step(model: Any, parts: int, data: Any) -> Any:
    """Keras's training step in parts: forward and backward of each, then one step of the optimizer."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    _build(model, y)
    variables = model.trainable_variables
    count = tf.shape(tf.nest.flatten(x)[0])[0]
    several = tf.minimum(parts, count)
    without: set[int] = set()

    def body(i: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
        begin, end = i * count // several, (i + 1) * count // several
        mine = (tf.nest.map_structure(lambda t: None if t is None else t[begin:end], one) for one in (x, y, weight))
        with noise.part(i):
            gradients = _gradients(model, (end - begin) / count, *mine)
        without.update(j for j, gradient in enumerate(gradients) if gradient is None)
        added = (s if g is None else s + tf.convert_to_tensor(g) for s, g in zip(sums, gradients, strict=True))
        return i + 1, list(added)

    zeros = [tf.zeros_like(v) for v in variables]
    _, sums = tf.while_loop(lambda i, _: i < several, body, (0, zeros), parallel_iterations=1)
    known = _Known([None if j in without else one for j, one in enumerate(sums)])
    model.optimizer.minimize(tf.constant(0.0), variables, tape=known)
    return model.get_metrics_result()


def _gradients(model: Any, share: Any, x: Any, y: Any, weight: Any) -> list[Any]:
    """Of a part's share of the loss, scaled where the optimizer scales losses."""
    with tf.GradientTape() as tape:
        outputs = model(x, training=True)
        loss = model.compute_loss(x, y, outputs, weight)
        loss *= tf.cast(share, loss.dtype)
        if isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer):
            loss = model.optimizer.get_scaled_loss(loss)
    model.compiled_metrics.update_state(y, outputs, weight)
    return tape.gradient(loss, model.trainable_variables)


def _build(model: Any, y: Any) -> None:
    """Makes the variables of losses and metrics, which cannot be made within a loop."""
    outputs = tf.nest.pack_sequence_as(model._nested_outputs, model.outputs)
    if not model.compiled_loss.built:
        model.compiled_loss.build(outputs)
    if not model.compiled_metrics.built:
        model.compiled_metrics.build(outputs, y)


class _Known:
    """In the place of a tape where the gradients are known: so that every optimizer does with them what it does with its own."""

    def __init__(self, gradients: list[Any]) -> None:
        self._gradients = gradients

    def gradient(self, *_: Any, **__: Any) -> list[Any]:
        """The gradients."""
        return self._gradients

    def __enter__(self) -> _Known:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was recorded."""
