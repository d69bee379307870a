"""In which order the weights of each kernel go: by their score, or by scores refined on training examples.

A pruned network is then a count for each kernel: how many of its weights, from the first in its order, are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.arrays import leaves
from tfp_bprune.data.arrays import rows as chosen_rows
from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.masked import on_device
from tfp_bprune.files.reading import read_below
from tfp_bprune.files.runs import sealed_tensors, unsealed_tensors, write_atomically
from tfp_bprune.graphs.heads import Head
from tfp_bprune.pruning.scores import CRITERIA
from tfp_bprune.pruning.select import prunable_weights, scored
from tfp_bprune.trials.trial import Evaluator
from tfp_bprune.types import Criterion, RunError

Counts = dict[str, int]
Kernels = dict[str, tuple[tuple[int, ...], int]]
SCORES_FILE = "scores.safetensors"
STEPS, BATCH, RATE = 3000, 200, 0.03
PARTS = (0.4, 1.0)
_TRUTH = 0.5  # weight of the true classes beside the unpruned network's answers
_CLIP = 5.0
_MANY = 20


class Ranking:
    """Weights by rank.

    Args:
      scores: of each weight by kernel; minus infinity for what is gone already.
    """

    what: ClassVar[str] = "weights"

    def __init__(self, scores: Mapping[str, np.ndarray]) -> None:
        self.scores = {name: np.asarray(s, np.float64) for name, s in scores.items()}
        # Among equals the first in place goes first, as in `masks_at_sparsity`.
        self._order = {name: np.argsort(s.ravel(), kind="stable")[::-1] for name, s in self.scores.items()}
        self.left = {name: int(np.count_nonzero(s > -np.inf)) for name, s in self.scores.items()}
        joined = np.concatenate([s.ravel() for s in self.scores.values()])
        owner = np.repeat(np.arange(len(self.scores)), [s.size for s in self.scores.values()])
        self._owners = owner[np.argsort(joined, kind="stable")[::-1]]

    def with_scores(self, scores: Mapping[str, np.ndarray]) -> Ranking:
        """The order of the same by other scores."""
        return Ranking(scores)

    def held(self, kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The masks under which scores are refined, where what is True in `kept` stays."""
        return dict(kept)

    def gathered(self, pulls: np.ndarray) -> np.ndarray:
        """From the pulls of all weights, one after the other, those of what is ranked."""
        return pulls

    def kernels(self, counts: Counts) -> Kernels:
        """Shape of each kernel, and how many of its weights are left."""
        return {name: (s.shape, counts[name]) for name, s in self.scores.items()}

    def masks(self, counts: Counts) -> dict[str, np.ndarray]:
        """The masks that keep the first `counts` weights of each kernel."""
        kept = {}
        for name, order in self._order.items():
            flat = np.zeros(len(order), bool)
            flat[order[: min(counts[name], self.left[name])]] = True
            kept[name] = flat.reshape(self.scores[name].shape)
        return kept

    def check(self, counts: Counts) -> None:
        """Refuses counts of other kernels, or that none of these kernels can have.

        Raises:
          RunError: naming the kernel.
        """
        if set(counts) != set(self.left):
            raise RunError(f"the trial is of the kernels {sorted(counts)[:9]}, expected {sorted(self.left)[:9]}")
        for name, count in counts.items():
            if not 0 <= count <= self.left[name]:
                raise RunError(f"the trial keeps {count} {self.what} of {name}: expected 0 to {self.left[name]}")

    def globally(self, total: int) -> Counts:
        """Counts of the best `total` weights of all kernels together: one threshold for all."""
        first = np.bincount(self._owners[:total], minlength=len(self.scores))
        return {name: int(n) for name, n in zip(self.scores, first, strict=True)}


def by_score(model: Any, criterion: Criterion) -> Ranking:
    """The order of `prune`."""
    weights = prunable_weights(model, criterion)
    scores = {name: scored(name, w, criterion) for name, w in weights.items()}
    if CRITERIA[criterion].ends_at is not None:  # in the same order, but above 0, as `refined` takes logarithms
        scores = {name: np.logaddexp(0, s) for name, s in scores.items()}
    return Ranking({name: np.where(w.mask, scores[name], -np.inf) for name, w in weights.items()})


def refined(
    evaluator: Evaluator,
    train: Split,
    start: Ranking,
    around: int,
    seed: int = 0,
    steps: int = STEPS,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, np.ndarray]:
    """Scores of weights or units moved by what the pruned network lacks; no weight is changed.

    At each step the weights of highest score are kept, as many as chance says between PARTS of `around`, evenly in the
    logarithm, so that one order serves networks of all these sizes. Every weight, kept or not, is told by the gradient how
    much its presence would lower the cross-entropy of the pruned network's answers to a batch of training examples, or the
    squared error of a regression, against the unpruned network's answers and the true ones, half each: log score -= rate *
    w * dL/dw, straight through the threshold (Ramanujan et al. 2020, "What's hidden in a randomly weighted neural
    network?", arXiv 1911.13299, equation 6, there with random weights and one size). Of a unit it is the sum over the weights
    that read it, with those of units that go held at 0.

    Args:
      evaluator: of the network.
      train: training examples.
      start: scores to begin with.
      around: weights that the largest of the networks keeps.
      steps: batches of 200 examples.

    Returns:
      New scores by kernel, comparable between kernels; minus infinity where they were.
    """
    rng = np.random.default_rng(seed)
    size, head = min(BATCH, len(train)), evaluator.head
    seen = rng.permutation(len(train))[: size * steps]
    evaluator.hold(start.masks(start.left))
    chosen = train.rows(seen)
    answers = evaluator.on(chosen).as_held().astype(np.float32)
    if head.task == "gaussian":
        answers = answers[..., : answers.shape[-1] // 2]
    taught = (1 - _TRUTH) * answers + _TRUTH * _truth(head, leaves(chosen.y)[0], answers)
    pulls, scores = _pulls(evaluator), _Scores(start.scores)
    for step in range(steps):
        on_step(step)
        rows = rng.choice(len(seen), size, replace=False)
        kept = scores.highest(max(1, round(around * np.exp(rng.uniform(*np.log(PARTS))))))
        evaluator.hold(start.held(scores.parted(kept)))
        found = pulls(on_device(chosen_rows(chosen.x, rows), evaluator.network), tf.constant(taught[rows])).numpy()
        scores.move(start.gathered(found), RATE * (1 - step / steps), kept)
    return {name: s.astype(np.float64) for name, s in scores.parted(scores.values).items()}


def _truth(head: Head, y: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """What a network that is always right would answer, of the shape of `answers`."""
    if head.task == "classification":
        return np.eye(answers.shape[-1], dtype=np.float32)[y.reshape(answers.shape[:-1])]
    return y.astype(np.float32).reshape(answers.shape)


class _Scores:
    """Logarithms of the scores of all kernels in one array, in which a threshold is found and all are moved at once.

    Attributes:
      values: of all weights, one after the other; minus infinity for what is gone.
    """

    def __init__(self, scores: Mapping[str, np.ndarray]) -> None:
        self._shapes = {name: s.shape for name, s in scores.items()}
        self._ends = np.cumsum([s.size for s in scores.values()])[:-1]
        joined = np.concatenate([s.ravel() for s in scores.values()])
        logs = np.log(np.maximum(joined, 1e-30))
        self.values = np.where(joined == -np.inf, -np.inf, logs).astype(np.float32)
        self._floor = -np.inf  # below it no threshold was for a while

    def highest(self, total: int) -> np.ndarray:
        """Mask of the `total` highest, and of their equals, over all weights."""
        high = self.values[self.values >= self._floor]
        if len(high) < total or len(high) > _MANY * total:  # too few above the floor, or so many that it saves nothing
            self._floor = _highest(self.values, min(2 * total, len(self.values)))
            high = self.values[self.values >= self._floor]
        return (self.values >= _highest(high, total)) & (self.values > -np.inf)

    def move(self, pull: np.ndarray, rate: float, kept: np.ndarray) -> None:
        """Lowers every score by `rate` times its pull, in units of the root mean square of the pulls of those kept."""
        scale = float(np.sqrt(np.mean(np.square(pull[kept])))) or 1.0
        np.clip(pull, -_CLIP * scale, _CLIP * scale, out=pull)
        pull *= rate / scale
        self.values -= pull

    def parted(self, joined: np.ndarray) -> dict[str, np.ndarray]:
        """An array over all weights as one for each kernel."""
        parts = np.split(joined, self._ends)
        return {name: part.reshape(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def _highest(values: np.ndarray, number: int) -> float:
    """The value that `number` of the values reach."""
    place = len(values) - number
    return float(np.partition(values, place)[place])


def _pulls(evaluator: Evaluator) -> Any:
    """Of all weights, one after the other: weight times gradient of the mean loss of the held network by given answers."""
    locs = [tf.constant(loc) for loc in evaluator.locs.values()]

    @tf.function(reduce_retracing=True)
    def pulls(x: Any, taught: Any) -> Any:
        kernels = list(evaluator.kernels.values())
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            loss = tf.reduce_mean(_loss(evaluator.head, taught, evaluator.network(x, training=False)))
        found = tape.gradient(loss, kernels)
        return tf.concat([tf.reshape(g * loc, [-1]) for g, loc in zip(found, locs, strict=True)], 0)

    return pulls


def _loss(head: Head, taught: Any, outputs: Any) -> Any:
    """Cross-entropy of classes or labels, or squared error of means."""
    if head.task == "classification" and head.logits:
        return tf.nn.softmax_cross_entropy_with_logits(taught, outputs)
    if head.task == "classification":
        return keras.losses.categorical_crossentropy(taught, outputs)
    if head.classifies:
        return keras.backend.binary_crossentropy(taught, outputs, from_logits=head.logits)
    return tf.square(outputs[..., : taught.shape[-1]] - taught)


def stored_scores(
    out: Path, shapes: Mapping[str, tuple[int, ...]], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Refined scores, computed once: they depend on the order of sums in parallel threads, and a resumed search must not."""
    path = out / SCORES_FILE
    if not os.path.lexists(path):
        write_atomically(path, sealed_tensors(compute()))
    return read_scores(path, shapes)


def read_scores(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Refined scores as a search stored them, in the order of `shapes`: the file has none, and the search goes by it.

    Raises:
      RunError: the file is missing or damaged.
    """
    try:
        stored = unsealed_tensors(read_below(path.parent, path.name), path)
        found = {name: stored[name] for name in shapes}
    except (OSError, RunError, KeyError) as error:
        raise RunError(f"{path} cannot be read ({error}): delete the folder to search anew") from error
    for name, shape in shapes.items():
        if found[name].shape != tuple(shape) or np.isnan(found[name]).any():
            raise RunError(f"{path} is not of this network ({name}): delete the folder to search anew")
    return found
