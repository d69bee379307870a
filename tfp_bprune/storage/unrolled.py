"""What a stored architecture makes of one call: recurrent layers without a loop, and tensors taken apart."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import RunError

_MOST_STEPS = 1000  # in all, each with the operations of its cell: some milliseconds
_MOST_PARTS = 10_000


@contextlib.contextmanager
def few_steps() -> Iterator[None]:
    """Within it calls are refused for which Keras would write out more steps, or parts of a tensor, than it makes in a moment.

    How many there are follows from shapes, which only Keras infers; another thread must not call layers meanwhile.

    Raises:
      RunError: saying how many, before they are made.
    """
    backend, lambdas = keras.src.backend, keras.src.layers.core.tf_op_layer.TFOpLambda
    rnn, call, steps = backend.rnn, lambdas._call_wrapper, 0

    def counted(step: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal steps
        given = inspect.signature(rnn).bind(step, inputs, *arguments, **options).arguments
        if given.get("unroll"):
            first = tf.nest.flatten(inputs)[0]
            steps += first.shape[0 if given.get("time_major") else 1] or 0
            if steps > _MOST_STEPS:
                raise RunError(
                    f"the stored architecture unrolls {steps} steps: expected {_MOST_STEPS} at most, use unroll=False"
                )
        return rnn(step, inputs, *arguments, **options)

    def called(layer: Any, *arguments: Any, **options: Any) -> Any:
        if (parts := _parts(layer, arguments, options)) > _MOST_PARTS:
            raise RunError(
                f"the stored architecture takes a tensor apart into {parts}: expected {_MOST_PARTS} parts at most"
            )
        return call(layer, *arguments, **options)

    backend.rnn, lambdas._call_wrapper = counted, called
    try:
        yield
    finally:
        backend.rnn, lambdas._call_wrapper = rnn, call


def _parts(layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> int:
    """How many tensors a call of `tf.unstack` or `tf.split` gives; 0 of others."""
    if layer.symbol not in ("unstack", "split"):
        return 0
    given = inspect.signature(layer.function).bind(*arguments, **options).arguments
    if layer.symbol == "split":
        number = given["num_or_size_splits"]
        return number if isinstance(number, int) else 0
    return int(given.get("num") or given["value"].shape[given.get("axis", 0)] or 0)
