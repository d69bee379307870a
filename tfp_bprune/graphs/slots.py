"""What an optimizer keeps of each variable, such as its moments, and how it goes on for other variables in their place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.types import BpruneError

Values = dict[int, np.ndarray]
AVERAGE = "_model_variables_moving_average"


def optimizer_variables(model: Any) -> list[Any]:
    """The state of the model's optimizer, created if need be; for Keras's old and new optimizers, and what scales losses."""
    optimizer = model.optimizer
    if _is_legacy(optimizer):
        optimizer._create_all_weights(model.trainable_variables)
        return [*optimizer.variables(), *_scale_of(optimizer)]
    optimizer.build(model.trainable_variables)
    return [*optimizer.variables, *_scale_of(optimizer)]


def _scale_of(optimizer: Any) -> list[Any]:
    """The factor on losses computed in float16, and for how many steps it has been that; none where it is fixed."""
    state: Any = getattr(optimizer, "_loss_scale", None)
    return [state.current_loss_scale, state.counter] if hasattr(state, "counter") else []


def check_slots(model: Any) -> None:
    """Refuses an optimizer whose state could not go on for slices of the model's variables.

    Raises:
      BpruneError: naming it, and what it keeps.
    """
    optimizer_variables(model)
    optimizer = _innermost(model.optimizer)
    name = type(optimizer).__name__
    if getattr(optimizer, "_agg_helper", None) is not None:
        raise BpruneError(
            f"optimizer {name} adds up gradients over several batches, which cannot be sliced: expected backward_passes_per_step=1"
        )
    variables = {id(variable): variable for variable in model.variables}
    for slot, kept in _slots(optimizer, model.variables).items():
        for key, value in kept.items():
            if value.shape != variables[key].shape:
                raise BpruneError(
                    f"optimizer {name} keeps {slot.strip('_')!r} of shape {list(value.shape)} for {variables[key].name}, which "
                    f"is of {list(variables[key].shape)}: expected, of a network that shrinks, one number for each weight, as "
                    "Adam, SGD or RMSprop keep"
                )


def check_unused(optimizer: Any, model: Any) -> None:
    """Refuses an optimizer that was built for the variables of another model, whose state it would go on with.

    Raises:
      BpruneError: naming it.
    """
    keys = set(getattr(_innermost(optimizer), "_index_dict", ()))
    if not keys <= {variable._unique_id for variable in model.variables}:
        raise BpruneError(
            f"optimizer {type(_innermost(optimizer)).__name__} has been used for another model, of whose weights it keeps the state: "
            "expected a new one for each model"
        )


def carry(optimizer: Any, successors: Mapping[int, tuple[Any, Any]], sliced: Callable[[Values, str], Values]) -> None:
    """Has `optimizer` go on with other variables: iterations and rate as they are, of slots what `sliced` makes of them.

    Args:
      successors: each variable and the one in its place, by the id of the first.
      sliced: from a slot's values by the id of the variable, and the slot's name, to those for its successor.
    """
    optimizer = _innermost(optimizer)
    if not _is_legacy(optimizer) and not getattr(optimizer, "_built", False):
        return
    before = _slots(optimizer, [old for old, _ in successors.values()])
    values = {name: sliced({key: s.numpy() for key, s in slots.items()}, name) for name, slots in before.items()}
    order = [successors[key][1] for key in next(iter(before.values()), {})]
    (_renew_legacy if _is_legacy(optimizer) else _renew)(optimizer, order, before)
    _keep_excluded(optimizer, successors)
    after = _slots(optimizer, [new for _, new in successors.values()])
    for name, slots in before.items():
        for key in slots:
            after[name][id(successors[key][1])].assign(values[name][key])


def _is_legacy(optimizer: Any) -> bool:
    return isinstance(optimizer, keras.optimizers.legacy.Optimizer)


def _innermost(optimizer: Any) -> Any:
    """Without what scales losses around it, whose own state knows no variables."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _slots(optimizer: Any, variables: Sequence[Any]) -> dict[str, dict[int, Any]]:
    """The slots by name, and of each those of the variables, by the id of the variable, in the optimizer's order."""
    known = {variable._unique_id: id(variable) for variable in variables}
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    if _is_legacy(optimizer):
        for key, slots in optimizer._slots.items():
            for name, slot in slots.items():
                found[name][_key(known, key, optimizer)] = slot
        return dict(found)
    keys = [_key(known, key, optimizer) for key in optimizer._index_dict]
    for name, value in vars(optimizer).items():
        if (
            name != "_variables"
            and isinstance(value, list)
            and value
            and all(isinstance(v, tf.Variable) for v in value)
        ):
            found[name] = dict(zip(keys, value, strict=True))
    return dict(found)


def _key(known: Mapping[str, int], key: str, optimizer: Any) -> int:
    if key not in known:
        raise BpruneError(
            f"optimizer {type(optimizer).__name__} trains variables that do not belong to the model: use an optimizer of its own for each model"
        )
    return known[key]


def _renew_legacy(optimizer: Any, variables: list[Any], before: Mapping[str, Mapping[int, Any]]) -> None:
    slots = _ids(before)
    optimizer._weights = [one for one in optimizer._weights if id(one) not in slots]
    optimizer._slots = {}
    if variables:
        optimizer._create_all_weights(variables)


def _renew(optimizer: Any, variables: list[Any], before: Mapping[str, Mapping[int, Any]]) -> None:
    """Builds it again for other variables; what it keeps besides slots stays."""
    slots, count = _ids(before), len(optimizer._variables)
    beside = {name: one for name, one in vars(optimizer).items() if isinstance(one, tf.Variable)}
    optimizer._variables = [one for one in optimizer._variables if id(one) not in slots]
    optimizer._built = False
    vars(optimizer).pop("_coalesced_children", None)  # of a checkpoint that was written
    optimizer.build(variables)
    for name, one in beside.items():
        if getattr(optimizer, name) is not one:
            getattr(optimizer, name).assign(one)
    if len(optimizer._variables) != count:
        raise BpruneError(
            f"optimizer {type(optimizer).__name__} has {len(optimizer._variables)} variables after the network shrank, {count} "
            "before: expected equal numbers; use one of Keras's optimizers"
        )


def _keep_excluded(optimizer: Any, successors: Mapping[int, tuple[Any, Any]]) -> None:
    """Variables whose weights do not decay, which an optimizer of Keras knows by their names for themselves."""
    excluded = getattr(optimizer, "_exclude_from_weight_decay", None)
    if excluded:
        names = {old._unique_id: new._unique_id for old, new in successors.values()}
        optimizer._exclude_from_weight_decay = [names.get(name, name) for name in excluded]


def _ids(slots: Mapping[str, Mapping[int, Any]]) -> set[int]:
    return {id(one) for kept in slots.values() for one in kept.values()}
