"""Functions for runtimes that have no operation of their own for them: written as operations that every one has.

Within a network they may be anywhere: activations of layers, of cells within layers, operations of TensorFlow on Keras's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tfp_bprune._keras import keras, library_of, tf
from tfp_bprune.graphs.walk import nodes_of

_ATTRIBUTES = ("activation", "recurrent_activation", "function")  # the last of what stands for an operation


def softsign(x: Any) -> Any:
    """x / (1 + |x|)."""
    return x / (1.0 + tf.abs(x))


WRITTEN: dict[str, Callable[[Any], Any]] = {"softsign": softsign}


@contextmanager
def written_out(network: Any, names: Collection[str]) -> Iterator[None]:
    """Within it layers of `network` compute the functions of these names, among those of `WRITTEN`, so."""
    changed: list[tuple[dict[str, Any], str, Any]] = []
    layers = {
        id(part): part
        for node in nodes_of(network)
        if not isinstance(node.layer, keras.Model)
        for part in node.layer._flatten_layers()
    }
    for layer in layers.values():
        for key in _ATTRIBUTES:
            function = vars(layer).get(key)
            name = getattr(function, "__name__", "")
            if name in names and library_of(function):
                changed.append((vars(layer), key, function))
    try:
        for attributes, key, function in changed:
            attributes[key] = WRITTEN[function.__name__]
        yield
    finally:
        for attributes, key, function in changed:
            attributes[key] = function
