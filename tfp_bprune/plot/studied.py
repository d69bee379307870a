"""Results of several trainings: scores against sparsity over seeds, losses, weights and ratios of layers, lines and points by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from tfp_bprune.plot.style import axes_or_new, plain_numbers, style_of
from tfp_bprune.types import Json


def over_seeds(
    series: Mapping[str, Sequence[Json]],
    key: str,
    *,
    published: Mapping[str, Sequence[float | None]] | None = None,
    axes: Any = None,
) -> Any:
    """A score against sparsity: the mean over seeds, with a bar from the smallest to the largest; sparsities are evenly spaced.

    Args:
      series: rows by name. Each row has `requested`, its sparsity, and scores; all rows of a name cover the same sparsities. Rows
        without the score are left out; a name without any only reserves its colour.
      key: key of the score.
      published: the same score in a paper, at each sparsity in rising order, by the same names; drawn as hollow markers.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    for number, (name, rows) in enumerate(series.items()):
        known = [row for row in rows if row.get(key) is not None]
        if known:
            _with_spread(axes, known, key, number, name)
        stated = [(i, v) for i, v in enumerate((published or {}).get(name, [])) if v is not None]
        if stated:
            style = style_of(number) | {"markerfacecolor": "none", "linestyle": "none", "markersize": 8}
            axes.plot(*zip(*stated, strict=True), **style)
    axes.set(xlabel="weights removed (%)", ylabel=key)
    return axes


def _with_spread(axes: Any, rows: Sequence[Json], key: str, number: int, label: str) -> None:
    requested = sorted({row["requested"] for row in rows})
    values = [[row[key] for row in rows if row["requested"] == s] for s in requested]
    middle = np.array([np.mean(v) for v in values])
    spread = np.abs(np.array([[np.min(v), np.max(v)] for v in values]).T - middle)
    options = {"markersize": 4.5, "linewidth": 1.4, "capsize": 2, **style_of(number)}
    axes.errorbar(np.arange(len(requested)), middle, spread, label=label, **options)
    axes.set_xticks(np.arange(len(requested)), [f"{100 * s:g}" for s in requested])


def against(series: Mapping[str, Sequence[Json]], place: str, key: str, *, axes: Any = None) -> Any:
    """A score against another number of the same rows, with a line for each series; rows without the score are left out.

    Args:
      series: rows by name.
      place: key of the number on the horizontal axis.
      key: key of the score.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    for number, (name, rows) in enumerate(series.items()):
        known = sorted((row for row in rows if row.get(key) is not None), key=lambda row: row[place])
        if known:
            x, y = [row[place] for row in known], [row[key] for row in known]
            axes.plot(x, y, markersize=4.5, linewidth=1.4, label=name, **style_of(number))
    axes.set(xlabel=place, ylabel=key)
    return axes


def losses(curves: Mapping[str, Sequence[float]], *, axes: Any = None) -> Any:
    """Losses of several trainings by epoch, on a logarithmic axis.

    Args:
      curves: losses of each epoch, in nats per training example, by name.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    for number, (name, curve) in enumerate(curves.items()):
        axes.plot(np.arange(1, len(curve) + 1), np.maximum(curve, 1e-6), color=style_of(number)["color"], label=name)
    axes.set(xlabel="epoch", ylabel="nats per training example", yscale="log")
    return axes


def shares(counts: Sequence[int], edges: Sequence[float], *, number: int = 0, axes: Any = None) -> Any:
    """A histogram of weights (posterior means): the fraction of them in each bin, on a logarithmic axis.

    Args:
      counts: number of weights in each bin.
      edges: edges of the bins, one more than there are counts.
      number: number of the series, which determines its colour.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    density = np.asarray(counts) / max(1, np.sum(counts))
    axes.stairs(density, edges, fill=True, color=style_of(number)["color"], alpha=0.75)
    axes.set(xlabel="weight", ylabel="part of the weights", yscale="log", xlim=(edges[0], edges[-1]))
    axes.xaxis.set_major_locator(MaxNLocator(2))
    return axes


def ratios_by_layer(counts: Mapping[str, Sequence[int]], edges: Sequence[float], *, axes: Any = None) -> Any:
    """Heat map of the signal-to-noise ratios in each layer: a row for each layer, the first at the top, darker where more weights are.

    Args:
      counts: number of weights in each bin, by layer.
      edges: edges of the bins, in dB.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    table = np.array(list(counts.values()), float)
    table /= np.maximum(table.sum(1, keepdims=True), 1)
    axes.grid(False)
    image = axes.pcolormesh(edges, np.arange(len(table) + 1), table, cmap="Blues")
    axes.set_yticks(np.arange(len(table)) + 0.5, list(counts), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("signal-to-noise ratio |mu| / sigma (dB)")
    axes.figure.colorbar(image, ax=axes, label="part of the layer's weights")
    return axes


def lines(named: Mapping[str, Sequence[float] | None], x: Sequence[float], *, axes: Any = None) -> Any:
    """A line for each name over common x values, on a logarithmic vertical axis; the value 0 is left out.

    Args:
      named: values at `x` by name; None for a name that only reserves its colour.
      x: x values in rising order.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    for number, (label, values) in enumerate(named.items()):
        if values is not None:
            above = np.where(np.asarray(values) > 0, values, np.nan)
            axes.plot(x, above, color=style_of(number)["color"], label=label)
    axes.set(yscale="log", xlim=(0, x[-1]))
    return axes


def points(series: Mapping[str, Sequence[tuple[float, float]]], *, axes: Any = None) -> Any:
    """Points (x, y) by name, on logarithmic axes; a name without points only reserves its colour.

    Args:
      series: points by name.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    for number, (name, places) in enumerate(series.items()):
        if places:
            axes.plot(*zip(*places, strict=True), **(style_of(number) | {"linestyle": "none"}), label=name)
    axes.set(xscale="log", yscale="log")
    axes.margins(0.15)
    for axis in (axes.xaxis, axes.yaxis):
        plain_numbers(axis)
    return axes
