"""Training data as `model.fit` takes them, as splits: arrays, datasets, Sequences, and what to validate on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, get_args

from tfp_bprune.data.arrays import Arrays, count, rows
from tfp_bprune.data.info import Info, described_arrays, read_arrays
from tfp_bprune.data.splits import Split, Splits, check_order, with_fingerprint, with_target_scale
from tfp_bprune.data.stream import is_stream, stream, with_validation
from tfp_bprune.data.targets import SaidTask, UncertainTask
from tfp_bprune.graphs.heads import end_of, heads_for
from tfp_bprune.types import BpruneError, DataError, Task, check_number

_BATCH = 32


@dataclass(frozen=True)
class Given:
    """What `fit` was given besides the data; None for what was not.

    Attributes:
      y, batch_size, validation_data, validation_split, task: as in `fit`.
      seed: of the order of the examples.
    """

    y: Any = None
    batch_size: int | None = None
    validation_data: Any = None
    validation_split: float | None = None
    task: SaidTask = None
    seed: int = 0


def splits_of(model: Any, data: Any, given: Given) -> Splits:
    """Data in any form as splits, without a test split where there was none.

    Raises:
      DataError: the parts contradict each other, or what the targets are is not certain.
    """
    if isinstance(data, Splits):
        return _whole(data, given)
    if isinstance(data, Split):
        data, given = data.x, replace(given, y=_alone(given.y, data))
    if is_stream(data):
        return _streamed(model, data, given)
    x, y = _pair(data, given.y)
    check_number("validation_split", given.validation_split or 0.0, DataError)
    if not 0 <= (part := given.validation_split or 0.0) < 1:
        raise DataError(f"validation_split must be in [0, 1), got {part}")
    if part and given.validation_data is not None:
        raise DataError("got both validation_data and validation_split: leave one of them out")
    return _of_arrays(model, x, y, part, given)


def _whole(data: Splits, given: Given) -> Splits:
    """Splits as they are, with which nothing else of data goes."""
    for name in ("y", "batch_size", "validation_data", "validation_split", "task"):
        if getattr(given, name) is not None:
            raise DataError(f"{data.info.name} comes as splits, which have their own {name}: leave it out")
    return data


def _alone(y: Any, split: Split) -> Any:
    if y is not None:
        raise DataError(f"split {split.name!r} has its own targets: leave y out")
    return split.y


def _pair(data: Any, y: Any) -> tuple[Any, Any]:
    if y is None and isinstance(data, tuple) and len(data) == 2:
        return data
    if y is None:
        raise DataError(
            f"got examples of type {type(data).__name__} and no targets: expected arrays x and y, splits as from `load` or "
            "`from_arrays`, a tf.data dataset of batches (x, y), or a Keras Sequence"
        )
    return data, y


def _streamed(model: Any, data: Any, given: Given) -> Splits:
    for name in ("y", "batch_size", "validation_split"):
        if getattr(given, name) is not None:
            raise DataError(f"a dataset of batches has its own {name.removeprefix('validation_')}: leave {name} out")
    made, info = _certain(model, lambda task: stream(data, task, given.seed), given.task)
    made, info = replace(made, info=_as_wide(model, info)), _as_wide(model, info)
    if given.validation_data is None:
        return made
    if is_stream(given.validation_data):
        return with_validation(made, given.validation_data)
    return _with_valid(made, _read(given.validation_data, info, given.task))


def _of_arrays(model: Any, x: Any, y: Any, part: float, given: Given) -> Splits:
    (x, y), info = _certain(model, lambda task: _described(x, y, task), given.task)
    info, n = _as_wide(model, info), count(x)
    kept = n - round(part * n)  # the last are held out, as Keras does
    if not 0 < kept <= n or (part and kept == n):
        raise DataError(f"validation_split={part} of {n} examples leaves {kept} to train on: expected some of both")
    train, valid = (
        Split("train", rows(x, slice(kept)), rows(y, slice(kept))),
        (rows(x, slice(kept, n)), rows(y, slice(kept, n))),
    )
    if given.validation_data is not None:
        if is_stream(given.validation_data):
            raise DataError("validation_data is a dataset while the training examples are arrays: give arrays (x, y)")
        valid = _read(given.validation_data, info, given.task)
    info = with_fingerprint(with_target_scale(info, train.y), x, y, *valid)
    parts = {
        "train": train,
        "valid": Split("valid", *valid),
        "test": Split("test", rows(x, slice(0)), rows(y, slice(0))),
    }
    batch = _BATCH if given.batch_size is None else given.batch_size
    check_order(batch, given.seed)
    return Splits(parts, info, batch, given.seed)


def _described(x: Any, y: Any, task: SaidTask) -> tuple[tuple[Arrays, Arrays], Info]:
    x, y, info = described_arrays(x, y, "the training data", task)
    return (x, y), info


def _read(data: Any, info: Info, task: SaidTask) -> tuple[Arrays, Arrays]:
    if isinstance(data, Split):
        data = (data.x, data.y)
    if not isinstance(data, tuple | list) or len(data) != 2:
        size = f" of {len(data)}" if isinstance(data, tuple | list) else ""
        raise DataError(f"validation_data is a {type(data).__name__}{size}: expected a pair (x, y)")
    said = task if task is not None else {name: target.task for name, target in info.targets.items()}
    return read_arrays(data[0], data[1], info, said if info.outputs is not None or task is not None else info.task)


def _with_valid(made: Splits, valid: tuple[Arrays, Arrays]) -> Splits:
    return replace(made, parts=made.parts | {"valid": Split("valid", *valid)})


def _certain(model: Any, describe: Any, task: SaidTask) -> tuple[Any, Info]:
    """What is made of the data, as the one task that suits the model where the targets leave it open.

    Raises:
      DataError: several tasks suit it, or none.
    """
    try:
        return describe(task)
    except UncertainTask:
        made = [_suiting(model, describe, one) for one in get_args(Task)]
        found = {tuple(heads.values()): one for heads, one in filter(None, made)}
        if len(found) != 1:
            raise
        return next(iter(found.values()))


def _as_wide(model: Any, info: Info) -> Info:
    """With as many classes as the model has outputs for, where the examples have fewer: the last may have none."""
    width = model.outputs[0].shape[-1]
    fewer = info.outputs is None and info.task == "classification" and len(model.outputs) == 1
    return replace(info, classes=width) if fewer and width is not None and width > info.classes else info


def _suiting(model: Any, describe: Any, task: Task) -> Any:
    """What the outputs mean if the targets are of this task, and what is made of the data; None where it does not suit."""
    try:
        made = describe(task)
        heads = heads_for(model, _as_wide(model, made[1]))
    except BpruneError:
        return None
    numbers = any(head.task == "regression" for head in heads.values())
    return (
        None if numbers and any(end_of(tensor) in ("softmax", "sigmoid") for tensor in model.outputs) else (heads, made)
    )
