"""Recurrent layers for runtimes that loop over steps for batches of one size alone: their steps are written out, one after the
other, where it is known how many there are and they are not too many.

Keras's LSTM is a function of its own, which LiteRT's converter replaces by a layer that keeps its state from one call to the
next. What is written out, and what loops as Keras's other layers do, begins anew with every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tfp_bprune._keras import keras
from tfp_bprune.graphs.walk import nodes_of

_L = keras.layers
MOST_STEPS = 256  # about twenty operations each


@contextmanager
def unrolled(network: Any) -> Iterator[None]:
    """Within it the recurrent layers of `network` are called so."""
    changed: dict[int, Any] = {}
    many: set[int] = set()
    for node in nodes_of(network):
        few = isinstance(node.layer, _L.RNN | _L.Bidirectional) and _is_few(node)
        for layer in [] if isinstance(node.layer, keras.Model) else node.layer._flatten_layers():
            if isinstance(layer, _L.RNN):
                changed[id(layer)] = layer
                many |= set() if few else {id(layer)}
    with ExitStack() as stack:
        for key, layer in changed.items():
            stack.enter_context(_called_so(layer, unroll=layer.unroll or key not in many))
        yield


def _is_few(node: Any) -> bool:
    [first, *_] = node.keras_inputs
    steps = first.shape[0 if getattr(node.layer, "time_major", False) else 1]
    return steps is not None and steps <= MOST_STEPS


@contextmanager
def _called_so(layer: Any, unroll: bool) -> Iterator[None]:
    values = {"unroll": unroll} | ({"_could_use_gpu_kernel": False} if hasattr(layer, "_could_use_gpu_kernel") else {})
    before = {name: getattr(layer, name) for name in values}
    try:
        for name, value in values.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)
