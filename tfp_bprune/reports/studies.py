"""Numbers and pictures of the studies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tfp_bprune.plot.style import picture, plain_numbers, style_of
from tfp_bprune.types import Json


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """The mean, and the sample standard deviation where there are several.

    >>> mean_and_spread([0.5]), mean_and_spread([0.5, 0.6])
    ('0.5000', '0.5500 ± 0.0707')
    """
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


def against_sparsity(axes: Any, rows: list[Json], key: str, number: int, label: str, **line: Any) -> None:
    """Mean over seeds of `key` at each sparsity asked for, a bar from the least to the most; evenly spaced."""
    requested = sorted({row["requested"] for row in rows})
    values = [[row[key] for row in rows if row["requested"] == s and row.get(key) is not None] for s in requested]
    middle = np.array([np.mean(v) for v in values])
    spread = np.abs(np.array([[np.min(v), np.max(v)] for v in values]).T - middle)
    options = {"markersize": 4.5, "linewidth": 1.4, "capsize": 2, **style_of(number), **line}
    axes.errorbar(np.arange(len(requested)), middle, spread, label=label, **options)
    axes.set_xticks(np.arange(len(requested)), [f"{100 * s:g}" for s in requested])
    axes.set_xlabel("weights removed (%)")


def accuracy_figure(
    series: Mapping[str, list[Json]], title: str, published: Mapping[str, list[float | None]] | None = None
) -> bytes:
    """Accuracy against sparsity, whole on the left and from .9 of the best on the right; published values hollow.

    Args:
      series: rows by name.
      published: accuracy at each sparsity of the rows, in rising order; by the same names.
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        best = max(row["accuracy"] for rows in series.values() for row in rows)
        for axes in panels:
            for number, (name, rows) in enumerate(series.items()):
                against_sparsity(axes, rows, "accuracy", number, name)
                known = [(i, v) for i, v in enumerate((published or {}).get(name, [])) if v is not None]
                if known:
                    style = style_of(number) | {"markerfacecolor": "none", "linestyle": "none", "markersize": 8}
                    axes.plot(*zip(*known, strict=True), **style)
            axes.set_ylabel("test accuracy")
        panels[0].set_ylim(0, 1.02)
        panels[1].set_ylim(best - 0.1, best + 0.005)
        handles, labels = panels[0].get_legend_handles_labels()
        _legend_below(figure, dict(zip(labels, handles, strict=True)))

    return picture(11, 4.6, title, draw)


def curves_figure(curves: Mapping[str, Json], title: str) -> bytes:
    """Training loss by epoch: negative log likelihood on the left, with the KL on the right.

    Args:
      curves: `nll` and `loss` by epoch, by name.
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2)
        parts = (("nll", "negative log likelihood"), ("loss", "negative log likelihood + KL / N"))
        for axes, (key, label) in zip(panels, parts, strict=True):
            for number, (name, curve) in enumerate(curves.items()):
                epochs = np.arange(1, len(curve[key]) + 1)
                axes.plot(epochs, np.maximum(curve[key], 1e-6), color=style_of(number)["color"], label=name)
            axes.set(xlabel="epoch", ylabel="nats per training example", yscale="log", title=label)
            axes.title.set_fontsize(10)
        handles, labels = panels[0].get_legend_handles_labels()
        _legend_below(figure, dict(zip(labels, handles, strict=True)))

    return picture(11, 4.6, title, draw)


def weights_figure(histograms: Mapping[str, Sequence[int]], edges: Sequence[float], title: str) -> bytes:
    """Histograms of weights (posterior means), a panel each, on one logarithmic scale."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(histograms), sharey=True, squeeze=False)[0]
        for number, (axes, (name, counts)) in enumerate(zip(panels, histograms.items(), strict=True)):
            density = np.asarray(counts) / max(1, np.sum(counts))
            axes.stairs(density, edges, fill=True, color=style_of(number)["color"], alpha=0.75)
            axes.set(title=name, xlabel="weight", yscale="log", xlim=(edges[0], edges[-1]))
            axes.xaxis.set_major_locator(MaxNLocator(2))
            axes.title.set_fontsize(10)
        panels[0].set_ylabel("part of the weights")

    return picture(2.5 * max(2, len(histograms)), 3.2, title, draw)


def panels_figure(
    series: Mapping[str, list[Json]],
    panels: Mapping[str, str],
    title: str,
    width: float = 12.0,
    x_label: str = "weights removed (%)",
    place: str | None = None,
    logarithmic: Collection[str] = (),
) -> bytes:
    """Several scores against `requested` of the rows, a panel each.

    Args:
      series: rows by name; of one name over the same places. A name without rows keeps its colour for itself.
      panels: title by key of the rows; series without the key are left out of its panel.
      place: key of the rows whose value is their place; by default `requested`, evenly spaced.
      logarithmic: keys of the scores that have a logarithmic axis.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    lines = -(-len(panels) // columns)

    def draw(figure: Figure) -> None:
        places = figure.subplots(lines, columns, squeeze=False).ravel()
        named: dict[str, Any] = {}
        for axes, (key, label) in zip(places, panels.items(), strict=False):
            for number, (name, rows) in enumerate(series.items()):
                known = [row for row in rows if row.get(key) is not None]
                if known and place:
                    known.sort(key=lambda row: row[place])
                    x, y = [row[place] for row in known], [row[key] for row in known]
                    axes.plot(x, y, markersize=4.5, linewidth=1.4, label=name, **style_of(number))
                elif known:
                    against_sparsity(axes, known, key, number, name)
            axes.set(title=label, xlabel=x_label, yscale="log" if key in logarithmic else "linear")
            axes.title.set_fontsize(10)
            if key in logarithmic:
                plain_numbers(axes.yaxis)
            handles, labels = axes.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        _legend_below(figure, named, most=5 if width > 10 else 3)

    return picture(width, 3.3 * lines + 0.6, title, draw)


def _legend_below(figure: Figure, named: Mapping[str, Any], most: int = 5) -> None:
    """A legend under the panels, in lines of equal length of at most `most` names."""
    lines = -(-len(named) // most)
    figure.legend(
        named.values(),
        named,
        loc="outside lower center",
        ncols=-(-len(named) // lines),
        frameon=False,
        fontsize=9,
    )


def layers_figure(counts: Mapping[str, Sequence[int]], edges: Sequence[float], title: str) -> bytes:
    """The distribution of SNR in each layer: a line a layer, first at the top, dark where many weights are."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        table = np.array(list(counts.values()), float)
        table /= np.maximum(table.sum(1, keepdims=True), 1)
        axes.grid(False)
        image = axes.pcolormesh(edges, np.arange(len(table) + 1), table, cmap="Blues")
        axes.set_yticks(np.arange(len(table)) + 0.5, list(counts), fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("signal-to-noise ratio |mu| / sigma (dB)")
        figure.colorbar(image, label="part of the layer's weights")

    return picture(8, 1.6 + 0.22 * len(counts), f"{title}: SNR by layer", draw)


def lines_figure(
    panels: Mapping[str, Mapping[str, Sequence[float] | None]],
    x: Sequence[float],
    x_label: str,
    y_label: str,
    title: str,
) -> bytes:
    """Lines by name over common places `x`, a panel for each group, on a logarithmic axis; a name's line may be missing.

    A value of 0 has no place on the axis and is left out.
    """

    def draw(figure: Figure) -> None:
        places = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (name, lines) in zip(places, panels.items(), strict=True):
            for number, (label, values) in enumerate(lines.items()):
                if values is not None:
                    above = np.where(np.asarray(values) > 0, values, np.nan)
                    axes.plot(x, above, color=style_of(number)["color"], label=label)
            axes.set(title=name, xlabel=x_label, yscale="log", xlim=(0, x[-1]))
            axes.title.set_fontsize(10)
        places[0].set_ylabel(y_label)
        plain_numbers(places[0].yaxis)
        handles, labels = places[0].get_legend_handles_labels()
        _legend_below(figure, dict(zip(labels, handles, strict=True)))

    return picture(4 * max(2, len(panels)), 4, title, draw)


def scatter_figure(series: Mapping[str, Sequence[tuple[float, float]]], labels: tuple[str, str], title: str) -> bytes:
    """Points (x, y) by name, on logarithmic axes; a name without points keeps its colour for itself.

    Args:
      labels: of the two axes.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (name, points) in enumerate(series.items()):
            if points:
                axes.plot(*zip(*points, strict=True), **(style_of(number) | {"linestyle": "none"}), label=name)
        axes.set(xlabel=labels[0], ylabel=labels[1], xscale="log", yscale="log")
        axes.margins(0.15)
        for axis in (axes.xaxis, axes.yaxis):
            plain_numbers(axis)
        handles, names = axes.get_legend_handles_labels()
        _legend_below(figure, dict(zip(names, handles, strict=True)), most=2)

    return picture(7, 4.8, title, draw)
