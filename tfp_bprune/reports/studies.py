"""Numbers and pictures of the studies."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfp_bprune.plot.studied import against, lines, losses, over_seeds, points, ratios_by_layer, shares
from tfp_bprune.plot.style import picture, plain_numbers
from tfp_bprune.types import Json


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """The mean, and the sample standard deviation where there are several.

    >>> mean_and_spread([0.5]), mean_and_spread([0.5, 0.6])
    ('0.5000', '0.5500 ± 0.0707')
    """
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


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
            over_seeds(series, "accuracy", published=published, axes=axes).set_ylabel("test accuracy")
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
            losses({name: curve[key] for name, curve in curves.items()}, axes=axes).set_title(label)
            axes.title.set_fontsize(10)
        handles, labels = panels[0].get_legend_handles_labels()
        _legend_below(figure, dict(zip(labels, handles, strict=True)))

    return picture(11, 4.6, title, draw)


def weights_figure(histograms: Mapping[str, Sequence[int]], edges: Sequence[float], title: str) -> bytes:
    """Histograms of weights (posterior means), a panel each, on one logarithmic scale."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(histograms), sharey=True, squeeze=False)[0]
        for number, (axes, (name, counts)) in enumerate(zip(panels, histograms.items(), strict=True)):
            shares(counts, edges, number=number, axes=axes).set(title=name, ylabel="")
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
            if place:
                against(series, place, key, axes=axes)
            else:
                over_seeds(series, key, axes=axes)
            axes.set(title=label, xlabel=x_label, ylabel="", yscale="log" if key in logarithmic else "linear")
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
        ratios_by_layer(counts, edges, axes=figure.subplots())

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
        for axes, (name, named) in zip(places, panels.items(), strict=True):
            lines(named, x, axes=axes).set(title=name, xlabel=x_label)
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
        axes = points(series, axes=figure.subplots())
        axes.set(xlabel=labels[0], ylabel=labels[1])
        handles, names = axes.get_legend_handles_labels()
        _legend_below(figure, dict(zip(names, handles, strict=True)), most=2)

    return picture(7, 4.8, title, draw)
