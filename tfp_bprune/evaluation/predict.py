"""`predict`: what a network, or an export of it, says of examples and how sure it is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from tfp_bprune._progress import Bar
from tfp_bprune.data.batches import batches_of, count_of
from tfp_bprune.evaluation.prediction import Prediction
from tfp_bprune.evaluation.runners import Runner, Wish, runner_for
from tfp_bprune.graphs.heads import Said
from tfp_bprune.types import DataError, Predictive

BATCH = 256
_PATIENCE = 2.0  # seconds without a bar
Target = Any


def predict(
    model: Any,
    x: Any,
    *,
    predictive: Predictive | None = None,
    samples: int | None = None,
    batch_size: int = BATCH,
    seed: int | None = None,
    task: Said = None,
    from_logits: bool | None = None,
    trust: bool = False,
    progress: bool = True,
) -> Prediction:
    """Predicts examples with a Bayesian network: averages over its weights, and says how certain each prediction is.

    Keras's `model.predict` gives the outputs of one random draw of the weights instead. The answers equal those of an export of
    the network with the same seed. Apart from the answers, memory does not grow with the number of examples.

    Args:
      model: a functional or sequential Keras model, pruned or not, compiled or not; the folder of an export or of a run; or
        what `load_model` returns. An export runs in a process of its own, as in `reload`.
      x: examples in their raw units: an array, tensor or data frame [n, ...]; for several inputs a list of these, or a dictionary
        by name; batches, such as a tf.data dataset; or a split of the data. Targets are ignored.
      predictive: "moments" carries a mean and a variance for each activation through the network in one pass; "sampled" averages
        over draws of the weights; "mean" uses the posterior means, without any uncertainty of the weights. By default that of
        the export; for a model "sampled", or "mean" if nothing in it is random.
      samples: number of draws, for "sampled"; 30 by default.
      batch_size: examples computed at once.
      seed: seed of the draws; 0 by default.
      task, from_logits: what the outputs mean, if the model does not determine it; see `export`.
      trust: for an export, as in `reload`.
      progress: show a progress bar on standard error if it takes long.

    Returns:
      A `Prediction`: arrays of n answers.

    Raises:
      ExportError: the network has no such predictive; or the export is damaged or harmful, or was written with other settings
        than those asked for.
      DataError: there are no examples, or they do not have the shape that the network takes.
      BpruneError: what an output means is unknown.

    Example:
      answer = bp.predict(model, images, predictive="moments")
      answer.labels, answer.probabilities, answer.epistemic
    """
    check_batch_size(batch_size)
    wish = Wish(predictive, samples, seed, task, from_logits, trust)
    with runner_for(model, wish, "predict") as runner:
        parts = (outputs for outputs, _ in answered(runner, x, batch_size, progress))
        return prediction_of(runner, gathered(parts))


def check_batch_size(batch_size: int) -> None:
    """Refuses a batch of no examples.

    Raises:
      DataError: it is one.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}")


def answered(
    runner: Runner, data: Any, batch_size: int, progress: bool
) -> Iterator[tuple[dict[str, np.ndarray], Target]]:
    """Outputs and targets of batch after batch; targets None where the data has none."""
    total, done, start = count_of(runner.inputs, data), 0, time.monotonic()
    bar: Bar | None = None
    try:
        for x, y in batches_of(runner.inputs, data, batch_size):
            size = len(next(iter(x.values())))
            for i in range(0, size, batch_size):
                part = {name: one[i : i + batch_size] for name, one in x.items()}
                yield runner.run(part), _rows(y, i, batch_size, size)
                done += len(next(iter(part.values())))
                if progress and bar is None and time.monotonic() - start > _PATIENCE:
                    bar = Bar(runner.inputs.who, total, done, remaining=True)
                    bar.start()
                if bar:
                    bar.to(done)
    finally:
        if bar:
            bar.stop()


def _rows(y: Target, start: int, count: int, size: int) -> Target:
    """The targets of part of a batch, as arrays."""
    if y is None:
        return None
    if isinstance(y, dict):
        return {name: _rows(one, start, count, size) for name, one in y.items()}
    if isinstance(y, tuple | list) and len(y) != size:
        return tuple(_rows(one, start, count, size) for one in y)
    return np.asarray(y)[start : start + count]


def gathered(parts: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of all batches; no array is held twice but one.

    Raises:
      DataError: there is no batch.
    """
    lists: dict[str, list[np.ndarray]] = defaultdict(list)
    for part in parts:
        for name, value in part.items():
            lists[name].append(value)
    if not lists:
        raise DataError("there are no examples to predict: expected at least one")
    return {name: np.concatenate(lists.pop(name)) for name in list(lists)}


def prediction_of(runner: Runner, outputs: dict[str, np.ndarray]) -> Prediction:
    """The outputs with what they mean."""
    return Prediction(outputs, runner.heads, runner.predictive, runner.samples)
