"""In which order the weights of each kernel go: by their score, or by scores refined on training examples.

A pruned network is then a count for each kernel: how many of its weights, from the first in its order, are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data import Split
from tfp_bprune.prune.select import prunable_weights, scored
from tfp_bprune.search.trial import Evaluator
from tfp_bprune.types import Criterion

Counts = dict[str, int]
STEPS, BATCH, RATE = 80, 2000, 0.06
_CLIP = 5.0


class Ranking:
    """Weights by rank.

    Args:
      scores: of each weight by kernel; minus infinity for what is gone already.
    """

    def __init__(self, scores: Mapping[str, np.ndarray]) -> None:
        self.scores = {name: np.asarray(s, np.float64) for name, s in scores.items()}
        # Among equals the first in place goes first, as in `masks_at_sparsity`.
        self._order = {name: np.argsort(s.ravel(), kind="stable")[::-1] for name, s in self.scores.items()}
        self.left = {name: int(np.count_nonzero(s > -np.inf)) for name, s in self.scores.items()}
        joined = np.concatenate([s.ravel() for s in self.scores.values()])
        owner = np.repeat(np.arange(len(self.scores)), [s.size for s in self.scores.values()])
        self._owners = owner[np.argsort(joined, kind="stable")[::-1]]

    def masks(self, counts: Counts) -> dict[str, np.ndarray]:
        """The masks that keep the first `counts` weights of each kernel."""
        kept = {}
        for name, order in self._order.items():
            flat = np.zeros(len(order), bool)
            flat[order[: min(counts[name], self.left[name])]] = True
            kept[name] = flat.reshape(self.scores[name].shape)
        return kept

    def globally(self, total: int) -> Counts:
        """Counts of the best `total` weights of all kernels together: one threshold for all."""
        first = np.bincount(self._owners[:total], minlength=len(self.scores))
        return {name: int(n) for name, n in zip(self.scores, first, strict=True)}


def by_score(model: Any, criterion: Criterion) -> Ranking:
    """The order of `prune`."""
    weights = prunable_weights(model, criterion)
    return Ranking({name: np.where(w.mask, scored(name, w, criterion), -np.inf) for name, w in weights.items()})


def refined(
    evaluator: Evaluator,
    train: Split,
    start: Ranking,
    total: int,
    seed: int = 0,
    steps: int = STEPS,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, np.ndarray]:
    """Scores moved by what the pruned network lacks; no weight is changed.

    At each step the `total` weights of highest score are kept, and every weight, kept or not, is told by the gradient how
    much its presence would lower the divergence of the pruned network's answers from the unpruned one's on a batch of
    training examples: log score -= rate * w * dL/dw, straight through the threshold (Ramanujan et al. 2020, "What's hidden
    in a randomly weighted neural network?", arXiv 1911.13299, equation 6, there with random weights).

    Args:
      evaluator: of the network.
      train: training examples.
      start: scores to begin with.
      total: weights to keep.

    Returns:
      New scores by kernel, comparable between kernels; minus infinity where they were.
    """
    rng = np.random.default_rng(seed)
    gone = {name: s == -np.inf for name, s in start.scores.items()}
    scores = {name: np.where(gone[name], -np.inf, np.log(np.maximum(s, 1e-30))) for name, s in start.scores.items()}
    size = min(BATCH, len(train))
    seen = rng.permutation(len(train))[: size * steps]
    evaluator.hold(start.masks(start.left))
    taught = evaluator.on(Split(train.name, train.x[seen], train.y[seen])).probabilities()
    gradients = _gradients(evaluator)
    for step in range(steps):
        on_step(step)
        rows = rng.choice(len(seen), size, replace=False)
        masks = _above(scores, total)
        evaluator.hold(masks)
        found = gradients(tf.constant(train.x[seen[rows]], tf.float32), tf.constant(taught[rows]))
        pull = {name: g.numpy() * evaluator.locs[name] for name, g in zip(evaluator.kernels, found, strict=True)}
        kept = np.concatenate([pull[name][masks[name]] for name in pull])
        scale = float(np.sqrt(np.mean(np.square(kept)))) or 1.0
        rate = RATE * (1 - step / steps)
        scores = {name: s - rate * np.clip(pull[name] / scale, -_CLIP, _CLIP) for name, s in scores.items()}
    return scores


def _above(scores: Mapping[str, np.ndarray], total: int) -> dict[str, np.ndarray]:
    """Masks of the `total` highest scores of all kernels together, and their equals."""
    joined = np.concatenate([s.ravel() for s in scores.values()])
    cut = np.partition(joined, len(joined) - total)[len(joined) - total]
    return {name: (s >= cut) & (s > -np.inf) for name, s in scores.items()}


def _gradients(evaluator: Evaluator) -> Any:
    """By kernel, of the mean cross-entropy between given answers and those of the network as it is held."""

    @tf.function(reduce_retracing=True)
    def gradients(x: Any, taught: Any) -> Any:
        kernels = list(evaluator.kernels.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            logits = evaluator.network(x, training=False)
            loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(taught, logits))
        return tape.gradient(loss, kernels)

    return gradients
