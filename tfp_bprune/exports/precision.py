"""In how many bits an export holds the weights of each layer: as asked, or as few as the posterior allows.

A layer takes the fewest bits whose rounding lies within the width of its posterior: the ELBO falls, as the posterior predicts
it (`prediction.grids.elbo_loss`), by no more than 1/24 nat for each weight that is left, as much as a grid costs whose step
is a weight's standard deviation, or by as much as is said. A step of D standard deviations loses D^2 / 24 nats a weight and
saves ln D nats of its code, together the most at D^2 = 12: half a nat a weight is the shortest description of network and data
(Hinton and van Camp 1993), and more gains nothing. Where the uncertainty of weights is told (`sampled`, `moments`), weights
that could as well be 0, at a loss of 1/24 nat or less, do not count: they lose next to nothing in any number of bits, and many
of them would allow the others, by which examples are told apart, to lose far more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np

from tfp_bprune.exports.forms import Form
from tfp_bprune.graphs.convert import adopt, weighted_layers
from tfp_bprune.layers import kernels_of
from tfp_bprune.prediction.grids import (
    WITHIN,
    Steps,
    bits_of,
    elbo_loss,
    entropy_of,
    multiples,
    storage_of,
    widest,
)
from tfp_bprune.prediction.kernels import grid_of, rounded
from tfp_bprune.prediction.lower import channels_of
from tfp_bprune.types import ExportError, Precision, Predictive, Storage, check_number

_PLACE = 1  # byte that the place of a weight takes at most
Asked = Precision | Mapping[str, Precision]


@dataclass(frozen=True)
class Plan:
    """How the weights of each layer are held.

    Attributes:
      storages: by the layer's name.
      choices: of the layers for which it was left open, those that come into question, from few bits to many.
      steps: of layers whose means are multiples of one step, in as many bits as their storage says, how wide it is.
      losses: of layers with distributions the nats of ELBO that the posterior predicts to be lost by rounding, for each
        weight that counts.
    """

    storages: dict[str, Storage]
    choices: dict[str, tuple[Storage, ...]] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether all is in float32."""
        return set(self.storages.values()) <= {"float32"}

    @property
    def few(self) -> bool:
        """Whether any layer's weights are whole numbers of a few bits."""
        return any(bits_of(storage) for storage in self.storages.values())

    @property
    def uniform(self) -> Storage | None:
        """The storage of all layers; None where they differ."""
        found = set(self.storages.values())
        return next(iter(found)) if len(found) == 1 else None


def planned(model: Any, asked: Asked, form: Form, predictive: Predictive, loss: float | None = None) -> Plan:
    """What is asked for, or chosen, for each layer of `model`, where "auto" may lose so many nats a weight.

    Raises:
      ExportError: there is no such layer or precision, the form cannot hold it, there is no posterior to go by, or no "auto" to
        which `loss` applies.
    """
    if loss is not None:
        check_number("rounding_loss", loss, ExportError)
    if loss is not None and not 0 < loss < float("inf"):
        raise ExportError(f"rounding_loss must be a positive number of nats per weight, got {loss}")
    layers = {layer.name: layer for layer in weighted_layers(adopt(model))}
    by_layer = _by_layer(asked, list(layers))
    for name, precision in by_layer.items():
        _check(name, precision, form)
        if precision == "float16":
            _check_range(name, layers[name])
    if loss is not None and "auto" not in by_layer.values():
        raise ExportError(f"rounding_loss is what precision 'auto' may lose: leave it out with {asked!r}")
    within = WITHIN if loss is None else loss
    plan = Plan({name: "float32" if p == "auto" else p for name, p in by_layer.items()})
    with_scales = predictive != "mean"
    for name in (name for name, precision in by_layer.items() if precision == "auto"):
        if _uncertain(layers[name]):
            plan = _chosen(plan, name, layers[name], form, with_scales, within)
        elif asked != "auto":
            raise ExportError(f"layer {name!r} has no posterior, which 'auto' needs: name a precision for it")
    if asked == "auto" and not plan.choices:
        raise ExportError(
            f"model {model.name!r} has no posterior, which 'auto' needs: expected 'int8' or another precision"
        )
    known = {
        name: loss_of(layers[name], s, with_scales, plan.steps.get(name))
        for name, s in plan.storages.items()
        if _uncertain(layers[name])
    }
    return replace(plan, losses=known)


def wider(plan: Plan, model: Any, predictive: Predictive) -> Plan | None:
    """The plan with the next more bits where most is lost of what was left open; None where nothing more is to be had."""
    left = {name: plan.losses[name] for name, choices in plan.choices.items() if _can_grow(plan, name, choices)}
    if not left:
        return None
    name = max(left, key=lambda one: left[one])
    choices = plan.choices[name]
    storage = choices[1] if name in plan.steps else choices[choices.index(plan.storages[name]) + 1]
    layer = next(layer for layer in weighted_layers(adopt(model)) if layer.name == name)
    loss = loss_of(layer, storage, predictive != "mean")
    steps = {one: step for one, step in plan.steps.items() if one != name}
    return replace(plan, storages=plan.storages | {name: storage}, losses=plan.losses | {name: loss}, steps=steps)


def _can_grow(plan: Plan, name: str, choices: tuple[Storage, ...]) -> bool:
    """Whether a layer can have more bits: one of a single step goes on with those after its first choice."""
    return len(choices) > 1 if name in plan.steps else plan.storages[name] != choices[-1]


def loss_of(layer: Any, storage: Storage, with_scales: bool, step: float | None = None) -> float:
    """Nats of ELBO for each weight that counts, which a layer with distributions is predicted to lose by rounding.

    All count that are left; with scales those alone that would lose more than `WITHIN` if they were 0.
    """
    nats, number = 0.0, 0
    for name, weights in kernels_of(layer).items():
        if weights.scale is None:
            continue
        channels = channels_of(layer, name, weights.loc.ndim)
        loc = rounded(weights.loc, storage, channels, step=step)
        scale = rounded(weights.scale, storage, (-1,), positive=True) if with_scales else None
        counts = _counted(weights.loc, weights.scale, with_scales)
        nats += elbo_loss(
            weights.loc[counts], weights.scale[counts], loc[counts], None if scale is None else scale[counts]
        )
        number += int(counts.sum())
    return nats / max(number, 1)


def _counted(loc: np.ndarray, scale: np.ndarray, with_scales: bool) -> np.ndarray:
    """Which weights count, as `loss_of` says."""
    left: np.ndarray = scale > 0
    return left & (np.abs(loc) > np.sqrt(2 * WITHIN) * scale) if with_scales else left


def _chosen(plan: Plan, name: str, layer: Any, form: Form, with_scales: bool, within: float) -> Plan:
    """The plan with the fewest bits for a layer that lose no more than `within` nats a weight."""
    choices = tuple(sorted(form.precisions, key=lambda storage: bits_of(storage) or int(storage[5:])))
    low, high = 0, len(choices) - 1
    while low < high:  # more bits lose less
        middle = (low + high) // 2
        if loss_of(layer, choices[middle], with_scales) <= within:
            high = middle
        else:
            low = middle + 1
    plan = replace(plan, storages=plan.storages | {name: choices[low]}, choices=plan.choices | {name: choices[low:]})
    one = _of_one_step(layer, choices[low], with_scales, within) if form.sparse else None
    if one is None:
        return plan
    step, storage = one
    return replace(plan, storages=plan.storages | {name: storage}, steps=plan.steps | {name: step})


def _of_one_step(layer: Any, storage: Storage, with_scales: bool, within: float) -> tuple[float, Storage] | None:
    """The widest step for all weights of a layer, and the storage of its multiples; None where these take as many bytes as
    `storage` with a scale for each output."""
    kernels = {name: weights for name, weights in kernels_of(layer).items() if weights.scale is not None}
    if len(kernels) != 1 or not bits_of(storage):
        return None
    [(name, weights)] = kernels.items()
    assert weights.scale is not None
    counts = _counted(weights.loc, weights.scale, with_scales)
    step = widest(weights.loc, np.where(counts, weights.scale, 0), within)
    if step is None:
        return None
    one = multiples(weights.loc.reshape(1, -1), step)
    each = grid_of(weights.loc, storage, channels_of(layer, name, weights.loc.ndim))
    return (step, storage_of(one.bits)) if _bytes(one) < _bytes(each) else None


def _bytes(grid: Steps) -> float:
    """What files hold of a grid, but for places: codes by their frequency, and scales."""
    left = grid.codes != grid.zero
    return entropy_of(grid.codes[left]) + _PLACE * np.count_nonzero(left) + 2 * len(grid.scale)


def _uncertain(layer: Any) -> bool:
    return any(weights.scale is not None for weights in kernels_of(layer).values())


def _by_layer(asked: Asked, layers: list[str]) -> dict[str, Precision]:
    if isinstance(asked, str):
        return dict.fromkeys(layers, asked)
    unknown = [name for name in asked if name not in layers]
    if unknown:
        raise ExportError(f"precision names the layer {unknown[0]!r}: expected of {', '.join(map(repr, layers))}")
    return {name: asked.get(name, "float32") for name in layers}


def _check_range(name: str, layer: Any) -> None:
    """Refuses weights that would be others in 16 bits."""
    held = [
        array for weights in kernels_of(layer).values() for array in (weights.loc, weights.scale) if array is not None
    ]
    peak = max((float(np.abs(array).max(initial=0.0)) for array in held), default=0.0)
    if peak > (most := float(np.finfo(np.float16).max)):
        raise ExportError(
            f"layer {name!r} has weights up to {peak:.3g}, and float16 holds none beyond {most:.0f}: expected precision 'float32' "
            "for this layer"
        )


def _check(layer: str, precision: Any, form: Form) -> None:
    known = ("auto", *(storage for storage in get_args(Storage) if storage in form.precisions))
    if precision in known and (precision != "auto" or form.by_layer):
        return
    if precision not in ("auto", *get_args(Storage)):
        raise ExportError(
            f"unknown precision {precision!r} of layer {layer!r}: expected one of {', '.join(map(repr, known))}"
        )
    raise ExportError(
        f"{form.title} holds no weights in {precision!r}, which layer {layer!r} is to have: expected one of "
        f"{', '.join(map(repr, form.precisions))}"
    )
