"""How many products with weights a network takes for an example."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tfp_bprune.graphs.compact import Kept
from tfp_bprune.graphs.graph import Step, graph_of
from tfp_bprune.layers import Axes, kernels_of, kind_of


def multiplications(model: Any, kept: Mapping[str, Kept] | None = None) -> int:
    """Products with weights that the mean network takes for an example; with `kept`, those of what stays; 0 where unknown."""
    graph = graph_of(model)
    if graph is None or not graph.is_sized:
        return 0
    return sum(_products(step, (kept or {}).get(step.layer.name)) for step in graph.steps)


def positions(step: Step) -> int:
    """How often an example multiplies each weight of a layer; 0 where it is looked up, or there is none."""
    kind = kind_of(step.layer)
    if kind is None or not kind.kernels or kind.reads_indices:
        return 0
    made = math.prod(size or 1 for size in step.shape[1:]) // kind.width(step.layer)
    return kind.positions(step.layer, made)


def _products(step: Step, kept: Kept | None) -> int:
    times, kind = positions(step), kind_of(step.layer)
    if not times or kind is None:
        return 0
    kernels = kernels_of(step.layer)
    return times * sum(_entries(w.loc.shape, kind.axes(name), kept) for name, w in kernels.items())


def _entries(shape: tuple[int, ...], axes: Axes, kept: Kept | None) -> int:
    return math.prod(shape if kept is None else (index.size for index in kept.index(shape, axes)))
