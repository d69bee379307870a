"""What a pruning costs: the mean network before and after, on examples that it was not chosen by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.arrays import by_name
from tfp_bprune.data.batches import Inputs, batches_of
from tfp_bprune.data.splits import Splits
from tfp_bprune.data.targets import targets_like
from tfp_bprune.graphs.convert import strip
from tfp_bprune.graphs.heads import Head, heads_of, input_names
from tfp_bprune.types import DataError

_BATCH = 500
_MOST_NATS, _MOST_ACCURACY, _MOST_RMSE = 0.05, 0.01, 0.05  # an example; points; part of the RMSE
_DEVIATIONS = 3.0
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cost:
    """Scores of the mean network before and after: `accuracy` and `nll`, or `rmse`; of several outputs by their names.

    Attributes:
      lost: in one line what was lost, where that is much, and more than chance makes of so many examples; else empty.
    """

    before: dict[str, float]
    after: dict[str, float]
    lost: str


def cost_of(model: Any, pruned: Any, data: Any) -> Cost:
    """Scores both on data in any form that `batches_of` takes; of all splits on the validation split.

    Raises:
      DataError: there are no targets, or none that suit the model.
      BpruneError: what the model's outputs mean is not certain.
    """
    if isinstance(data, Splits):
        data = data.examples("valid")
    before, after = (_values(network, data) for network in (model, pruned))
    old, new = ({name: _score(name, one) for name, one in values.items()} for values in (before, after))
    return Cost(old, new, _lost(before, after, old, new))


def _values(model: Any, data: Any) -> Values:
    """Of each example, by score: 0 or 1, nats, or squared errors."""
    heads, network = heads_of(model), strip(model)
    specs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype)
        for name, tensor in zip(input_names(model), model.inputs, strict=True)
    }
    step = tf.function(lambda *x: tf.nest.flatten(network(_packed(network, x), training=False)), reduce_retracing=True)
    parts: list[Values] = []
    for x, y in batches_of(Inputs("prune", model.name, specs), data, _BATCH):
        if y is None:
            raise DataError("prune got validation data without targets: expected (x, y), a split, or batches of (x, y)")
        parts.append(dict(_of_batch(heads, [one.numpy() for one in step(*x.values())], y)))
    if not parts:
        raise DataError("prune got no validation data: expected at least one example")
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _packed(network: Any, x: Any) -> Any:
    return tf.nest.pack_sequence_as(network._nested_inputs, list(x)) if len(x) > 1 else x[0]


def _of_batch(heads: dict[str, Head], outputs: list[np.ndarray], y: Any) -> Iterator[tuple[str, np.ndarray]]:
    targets = by_name(y if isinstance(y, dict | tuple) else tuple(y) if isinstance(y, list) and len(heads) > 1 else y)
    if len(targets) != len(heads):
        raise DataError(f"prune got {len(targets)} validation targets: expected {', '.join(map(repr, heads))}")
    for i, (name, head) in enumerate(heads.items()):
        one = targets[name] if name in targets else list(targets.values())[i]
        prefix = f"{name}_" if len(heads) > 1 else ""
        for key, value in _of_output(head, outputs[i].astype(np.float64), np.asarray(one)).items():
            yield prefix + key, value


def _of_output(head: Head, output: np.ndarray, y: np.ndarray) -> Values:
    if not head.classifies:
        width = output.shape[-1] // 2 if head.task == "gaussian" else output.shape[-1]
        mean = output[..., :width] if head.task == "gaussian" else output
        error = (targets_like(y, "regression", mean.shape, "prune") - mean).reshape(len(mean), -1)
        return {"rmse": np.square(error).mean(1)}
    p = head.finished(tf.constant(output)).numpy()
    y = targets_like(y, head.task, p.shape, "prune")  # type: ignore[arg-type]
    if head.task == "classification":
        true, right = np.take_along_axis(p, y[..., None], -1)[..., 0], p.argmax(-1) == y
    else:
        p = p[..., 0] if head.task == "binary" else p
        true, right = np.where(y > 0, p, 1 - p), (p > 0.5) == (y > 0)
    nats = -np.log(np.maximum(true, np.finfo(float).tiny))
    return {"accuracy": right.reshape(len(y), -1).mean(1), "nll": nats.reshape(len(y), -1).sum(1)}


def _score(name: str, values: np.ndarray) -> float:
    return float(np.sqrt(values.mean()) if name.endswith("rmse") else values.mean())


def _lost(before: Values, after: Values, old: dict[str, float], new: dict[str, float]) -> str:
    """By the paired differences of examples, three deviations beyond chance."""
    said = []
    for name in before:
        worse = before[name] - after[name] if name.endswith("accuracy") else after[name] - before[name]
        chance = _DEVIATIONS * worse.std() / np.sqrt(len(worse))
        most = _MOST_RMSE * 2 * before[name].mean() if name.endswith("rmse") else _MOST_NATS
        most = _MOST_ACCURACY if name.endswith("accuracy") else most
        if worse.mean() > max(most, chance):
            said.append(f"{name} {old[name]:.4g} -> {new[name]:.4g}")
    if not said:
        return ""
    return (
        f"pruning cost much of what the network knew ({', '.join(said)}, on {len(next(iter(before.values()))):,} validation "
        "examples): prune less, train on afterwards, or prune while training with GradualPruning"
    )
