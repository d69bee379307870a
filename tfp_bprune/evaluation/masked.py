"""The posterior mean of a network under any masks: built and compiled once, so that a change of masks costs an assignment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import Arrays, count, rows
from tfp_bprune.graphs.convert import strip, weighted_layers
from tfp_bprune.graphs.heads import heads_of
from tfp_bprune.graphs.match import inputs_for, is_alone
from tfp_bprune.graphs.names import output_names
from tfp_bprune.layers import kernels_of
from tfp_bprune.types import PruneError

BATCH = 1000
Masks = Mapping[str, np.ndarray]


def batches(x: Arrays, model: Any = None) -> Iterator[Any]:
    """Examples [n, ...] on the device, part after part: as `model` takes them, or as float32."""
    if model is None:
        return (tf.constant(x[i : i + BATCH], tf.float32) for i in range(0, len(x), BATCH))
    return (on_device(rows(x, slice(i, i + BATCH)), model) for i in range(0, count(x), BATCH))


def on_device(x: Arrays, model: Any) -> Any:
    """Examples as tensors of the types that `model` declares, under the names that it has for its inputs."""
    named = inputs_for(model, x)
    if not isinstance(named, dict):
        return tf.constant(named, model.inputs[0].dtype)
    types = [tensor.dtype for tensor in model.inputs]
    return {name: tf.constant(one, dtype) for (name, one), dtype in zip(named.items(), types, strict=True)}


class MaskedNetwork:
    """A network of one output with its posterior means, in which weights can be removed and put back.

    Args:
      model: Bayesian or plain; it stays as it is.
      names: tensors that masks may be for, "layer/kernel", in the order wanted; all kernels by default.

    Attributes:
      network: an ordinary network, of its own.
      locs: posterior means by tensor name.
      kernels: the variables that hold them, pruned or not.
      owners: the layer of each.
      head: what the output means.
      forward: compiled, from examples [n, ...] to probabilities [n, ...], or to the numbers of a regression. In float64, where
        a probability that float32 takes for 0 still has its logarithm.

    Raises:
      PruneError: the network has several outputs.
      BpruneError: what the output means is not certain.
    """

    def __init__(self, model: Any, names: Iterable[str] | None = None) -> None:
        if not is_alone(model):
            raise PruneError(
                f"model {model.name!r} has the outputs {', '.join(map(repr, output_names(model)))}: expected one output"
            )
        [self.head] = heads_of(model).values()
        self.network = strip(model)
        found = {
            f"{layer.name}/{name}": (layer, weights.variable)
            for layer in weighted_layers(self.network)
            for name, weights in kernels_of(layer).items()
        }
        wanted = list(found if names is None else names)
        self.owners = {name: found[name][0] for name in wanted}
        self.kernels = {name: found[name][1] for name in wanted}
        self.locs = {name: kernel.numpy() for name, kernel in self.kernels.items()}
        self._held: dict[str, np.ndarray | None] = dict.fromkeys(self.kernels)

        def call(x: Any) -> Any:
            return self.head.finished(tf.cast(self.network(x, training=False), tf.float64))

        self.forward = tf.function(call, reduce_retracing=True)

    def hold(self, masks: Masks) -> None:
        """Removes the weights whose mask is False; all others come back, those of tensors without a mask too."""
        for name, held in self._held.items():
            mask = masks.get(name)
            if mask is None and held is None:
                continue
            if mask is None or held is None or not np.array_equal(mask, held):
                self.kernels[name].assign(self._left(name, mask))
                self._held[name] = mask

    def _left(self, name: str, mask: np.ndarray | None) -> np.ndarray:
        """The weights of a tensor under its mask."""
        return self.locs[name] if mask is None else self.locs[name] * mask

    def probabilities(self, x: Arrays, masks: Masks | None = None) -> np.ndarray:
        """What `forward` gives for examples [n, ...] without the weights whose mask is False."""
        self.hold(masks or {})
        return self.of(batches(x, self.network))

    def of(self, parts: Iterable[Any]) -> np.ndarray:
        """What `forward` gives for batches of examples, by the network as it is held."""
        return np.concatenate([self.forward(part).numpy() for part in parts])

    @property
    def parameters(self) -> int:
        """All numbers of the ordinary network, biases and normalization included."""
        return int(self.network.count_params())
