"""Scores of a trained network under masks, in this process: nothing is exported, one function is compiled for all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.evaluate.metrics import classification
from tfp_bprune.export.predict import Predictor
from tfp_bprune.models.convert import kind_of, strip
from tfp_bprune.models.rebuild import rebuild
from tfp_bprune.prune.masks import masks_at_sparsity, sparsity_of
from tfp_bprune.prune.prune import apply_masks
from tfp_bprune.prune.select import default_criterion, prunable_weights, scored
from tfp_bprune.types import Json, Predictive

_BATCH = 1000
Masks = Mapping[str, np.ndarray]


class MeanNetwork:
    """The posterior mean of a network as an ordinary one, in which weights can be removed and put back.

    Args:
      model: Bayesian or plain; it stays as it is.
    """

    def __init__(self, model: Any) -> None:
        self.plain = strip(model)
        layers = [layer for layer in self.plain._flatten_layers(include_self=False) if kind_of(layer)]
        self._kernels = {f"{layer.name}/kernel": (layer.kernel, layer.kernel.numpy()) for layer in layers}
        shape = [None, *self.plain.input_shape[1:]]
        signature = [tf.TensorSpec(shape, tf.float32)]

        def call(x: Any) -> Any:  # in float64, where a probability that float32 takes for 0 still has its logarithm
            return tf.nn.softmax(tf.cast(self.plain(x, training=False), tf.float64))

        self._call = tf.function(call, input_signature=signature)

    def probabilities(self, x: np.ndarray, masks: Masks | None = None) -> np.ndarray:
        """Class probabilities [n, classes] of examples [n, ...] without the weights whose mask is False."""
        for name, (variable, values) in self._kernels.items():
            variable.assign(values if masks is None or name not in masks else np.where(masks[name], values, 0))
        parts = [self._call(tf.constant(x[i : i + _BATCH], tf.float32)).numpy() for i in range(0, len(x), _BATCH)]
        return np.concatenate(parts)

    @property
    def parameters(self) -> int:
        """All numbers of the ordinary network, biases and normalization included."""
        return int(self.plain.count_params())


def default_scores(model: Any) -> dict[str, np.ndarray]:
    """What a network is ranked by: SNR where its weights have distributions, else |w|; by tensor name."""
    criterion = default_criterion(model)
    return {name: scored(name, w, criterion) for name, w in prunable_weights(model, criterion).items()}


def mean_rows(model: Any, x: np.ndarray, y: np.ndarray, sparsities: list[float]) -> list[Json]:
    """Scores of the posterior mean on (x, y) at each sparsity, weights ranked over all layers; a row a sparsity."""
    network, scores = MeanNetwork(model), default_scores(model)
    rows = []
    for sparsity in sparsities:
        masks = masks_at_sparsity(scores, sparsity)
        found = classification(network.probabilities(x, masks), y)
        rows.append({"requested": sparsity, **counted(masks, network), **found})
    return rows


def counted(masks: Masks, network: MeanNetwork) -> Json:
    """Sparsity and sizes, counted on the masks."""
    left = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    return {"sparsity": sparsity_of(masks), "nonzeros": left, "parameters": network.parameters}


def without(model: Any, masks: Masks) -> Any:
    """A copy of `model` without the weights whose mask is False."""
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    apply_masks(copy, dict(masks))
    return copy


def outputs(model: Any, predictive: Predictive, x: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """What an export of `model` would say of examples [n, ...]: `probabilities`, `entropy`, `epistemic`, `aleatoric`."""
    predict = Predictor(model, predictive, samples).predict
    parts = [predict(tf.constant(x[i : i + _BATCH], tf.float32)) for i in range(0, len(x), _BATCH)]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
