"""The posterior mean of a network under any masks: built and compiled once, so that a change of masks costs an assignment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.models.convert import kind_of, strip

BATCH = 1000
Masks = Mapping[str, np.ndarray]


def batches(x: np.ndarray) -> Iterator[Any]:
    """Examples [n, ...] on the device, part after part."""
    return (tf.constant(x[i : i + BATCH], tf.float32) for i in range(0, len(x), BATCH))


class MaskedNetwork:
    """A classifier with its posterior means, in which weights can be removed and put back.

    Args:
      model: Bayesian or plain; it stays as it is.
      names: tensors that masks may be for, "layer/kernel", in the order wanted; all kernels by default.

    Attributes:
      network: an ordinary network, of its own.
      locs: posterior means by tensor name.
      kernels: the variables that hold them, pruned or not.
      forward: compiled, from examples [n, ...] to class probabilities [n, classes]. In float64, where a probability that
        float32 takes for 0 still has its logarithm.
    """

    def __init__(self, model: Any, names: Iterable[str] | None = None) -> None:
        self.network = strip(model)
        layers = self.network._flatten_layers(include_self=False)
        kernels = {f"{layer.name}/kernel": layer.kernel for layer in layers if kind_of(layer)}
        self.kernels = {name: kernels[name] for name in (kernels if names is None else names)}
        self.locs = {name: kernel.numpy() for name, kernel in self.kernels.items()}
        self._held: dict[str, np.ndarray | None] = dict.fromkeys(self.kernels)

        def call(x: Any) -> Any:
            return tf.nn.softmax(tf.cast(self.network(x, training=False), tf.float64))

        self.forward = tf.function(call, reduce_retracing=True)

    def hold(self, masks: Masks) -> None:
        """Removes the weights whose mask is False; all others come back, those of tensors without a mask too."""
        for name, held in self._held.items():
            mask = masks.get(name)
            if mask is None and held is None:
                continue
            if mask is None or held is None or not np.array_equal(mask, held):
                self.kernels[name].assign(self.locs[name] if mask is None else self.locs[name] * mask)
                self._held[name] = mask

    def probabilities(self, x: np.ndarray, masks: Masks | None = None) -> np.ndarray:
        """Class probabilities [n, classes] of examples [n, ...] without the weights whose mask is False."""
        self.hold(masks or {})
        return self.of(batches(x))

    def of(self, parts: Iterable[Any]) -> np.ndarray:
        """Class probabilities [n, classes] of batches of examples, by the network as it is held."""
        return np.concatenate([self.forward(part).numpy() for part in parts])

    @property
    def parameters(self) -> int:
        """All numbers of the ordinary network, biases and normalization included."""
        return int(self.network.count_params())
