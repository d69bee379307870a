"""Scores of a trained network under masks, in this process: nothing is exported, one function is compiled for all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.evaluation.masked import BATCH, MaskedNetwork, Masks
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.pruning.masks import masks_at_sparsity, sparsity_of
from tfp_bprune.pruning.scoring import default_criterion
from tfp_bprune.pruning.select import prunable_weights, scored
from tfp_bprune.types import Json, Predictive

_NUMBERS = 1_000_000  # of a batch's examples: convolutions hold a hundred times as many


def default_scores(model: Any) -> dict[str, np.ndarray]:
    """What a network is ranked by: SNR where its weights have distributions, else |w|; by tensor name."""
    criterion = default_criterion(model)
    return {name: scored(name, w, criterion) for name, w in prunable_weights(model, criterion).items()}


def mean_rows(model: Any, x: np.ndarray, y: np.ndarray, sparsities: list[float]) -> list[Json]:
    """Scores of the posterior mean on (x, y) at each sparsity, weights ranked over all layers; a row a sparsity."""
    network, scores = MaskedNetwork(model), default_scores(model)
    rows = []
    for sparsity in sparsities:
        masks = masks_at_sparsity(scores, sparsity)
        found = classification(network.probabilities(x, masks), y)
        rows.append({"requested": sparsity, **counted(masks, network), **found})
    return rows


def counted(masks: Masks, network: MaskedNetwork) -> Json:
    """Sparsity and sizes, counted on the masks."""
    left = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    return {"sparsity": sparsity_of(masks), "nonzeros": left, "parameters": network.parameters}


def outputs(model: Any, predictive: Predictive, x: np.ndarray, samples: int) -> dict[str, np.ndarray]:
    """What an export of `model` would say of examples [n, ...]: `probabilities`, `entropy`, `epistemic`, `aleatoric`."""
    predict = Predictor(model, predictive, samples).predict
    size = min(BATCH, max(1, _NUMBERS // math.prod(x.shape[1:])))
    parts = [predict(tf.constant(x[i : i + size], tf.float32)) for i in range(0, len(x), size)]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
