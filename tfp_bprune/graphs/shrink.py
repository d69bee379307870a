"""A compiled model made smaller in its place: weights, masks, priors and the optimizer's state sliced, the function kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tfp_bprune.graphs.compact import Kept, fill, smaller
from tfp_bprune.graphs.install import check_installable, graph_alone, graph_layers, install
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.graphs.slots import AVERAGE, Values, carry, check_slots
from tfp_bprune.layers import kind_of
from tfp_bprune.types import BpruneError


def shrink(model: Any, kept: Mapping[str, Kept]) -> None:
    """Takes out of `model` itself what does not stay by `kept` (`compact.kept_of`); its layers become new objects.

    Outputs stay equal to within float32 rounding, draws being slices of the draws before. What the optimizer keeps of each
    weight that stays is the same to the last bit.
    """
    small = smaller(graph_alone(model), dict(kept))
    if getattr(model, "optimizer", None) is not None:
        _carry_state(model, small, kept)
    install(model, small)


def check_shrinkable(model: Any) -> None:
    """Refuses a model, or an optimizer, that `shrink` could not serve.

    Raises:
      BpruneError: naming what stands in the way.
    """
    check_installable(model)
    copy = rebuild(graph_alone(model), lambda layer: None, lambda old, new: None)
    for old, new in _pairs(model, copy):
        if len(old._callable_losses) != len(new._callable_losses):
            raise BpruneError(
                f"layer {old.name!r} has a loss added to it (`add_loss`), which a smaller one in its place would not have: "
                "expected regularizers, or losses in the layer's `call`"
            )
    if getattr(model, "optimizer", None) is not None:
        check_slots(model)


def units(model: Any) -> dict[str, int]:
    """How many units each layer has whose units may leave, by its name."""
    layers = ((layer, kind_of(layer)) for layer in graph_layers(model))
    return {layer.name: kind.width(layer) for layer, kind in layers if kind is not None and kind.kernels}


def _carry_state(model: Any, small: Any, kept: Mapping[str, Kept]) -> None:
    pairs = list(_pairs(model, small))
    variables = [both for old, new in pairs for both in zip(old.weights, new.weights, strict=True)]
    successors = {id(old): (old, new) for old, new in variables}
    successors |= {id(one): (one, one) for one in model.variables if id(one) not in successors}
    held = [(one, one.numpy()) for both in variables for one in both]

    def sliced(values: Values, name: str) -> Values:
        """Numbers go the way that weights go: through the variables, which get their own back afterwards."""
        for old, _ in variables:
            if id(old) in values:
                old.assign(values[id(old)])
        for old, new in pairs:
            _move(old, new, kept.get(old.name), name == AVERAGE)
        return values | {id(old): new.numpy() for old, new in variables}

    try:
        carry(model.optimizer, successors, sliced)
    finally:
        for variable, value in held:
            variable.assign(value)


def _move(old: Any, new: Any, kept: Kept | None, fold: bool) -> None:
    if kept is not None:
        fill(old, new, kept, fold)
    else:
        for source, target in zip(old.weights, new.weights, strict=True):
            target.assign(source)


def _pairs(model: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """The layers of the graph and those of the same names."""
    by_name = {layer.name: layer for layer in graph_layers(other)}
    return ((layer, by_name[layer.name]) for layer in graph_layers(model))
