"""Curves of a report on axes of Matplotlib, from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfp_bprune.plot.style import BLUE, GREY, style_of
from tfp_bprune.types import Json

Points = Sequence[Sequence[float]]


def calibration(axes: Any, networks: Mapping[str, Points], classes: bool) -> Any:
    """A reliability diagram: on the diagonal a network is as often right as it says."""
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    most = max((n for points in networks.values() for *_, n in points), default=1)
    for number, (name, points) in enumerate(networks.items()):
        style = style_of(number)
        axes.plot([p[0] for p in points], [p[1] for p in points], color=style["color"], linewidth=1.2, label=name)
        sizes = [8 + 60 * p[2] / most for p in points]
        axes.scatter([p[0] for p in points], [p[1] for p in points], s=sizes, color=style["color"])
    names = ("confidence", "accuracy") if classes else ("level of the interval", "targets within it")
    axes.set(xlabel=names[0], ylabel=names[1], xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(fontsize=8)
    return axes


def risk(axes: Any, networks: Mapping[str, Points], classes: bool) -> Any:
    """Error among the least uncertain predictions, by the fraction that is answered."""
    for number, (name, points) in enumerate(networks.items()):
        axes.plot([p[0] for p in points], [p[1] for p in points], color=style_of(number)["color"], label=name)
    axes.set(
        xlabel="fraction answered, least uncertain first", ylabel="error rate" if classes else "RMSE (target units)"
    )
    axes.set(xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return axes


def uncertainties(axes: Any, networks: Mapping[str, Mapping[str, Sequence[float]]], unit: str) -> Any:
    """Quantiles of an uncertainty: a thin line from 5 to 95 %, a thick one from 25 to 75 %, a point at the median."""
    labels, place = [], 0
    for number, (name, groups) in enumerate(networks.items()):
        for group, values in groups.items():
            if not values:
                continue
            low, left, middle, right, high = values
            colour = style_of(number)["color"]
            axes.plot([low, high], [place, place], color=colour, linewidth=1)
            axes.plot([left, right], [place, place], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.6)
            axes.plot([middle], [place], "o", color=colour, markersize=5)
            labels.append(name if group == "all" else f"{name}, {group}")
            place += 1
    axes.set_yticks(range(place), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=unit)
    return axes


def sizes(axes: Any, rows: Sequence[Json]) -> Any:
    """Bytes of each network as bars."""
    axes.barh(range(len(rows)), [row["bytes"] / 1000 for row in rows], color=BLUE, height=0.6)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    _of_bars(axes)
    axes.set(xlabel="kB on disk")
    return axes


def times(axes: Any, rows: Sequence[Json]) -> Any:
    """Median milliseconds by batch size."""
    for number, row in enumerate(rows):
        points = sorted((int(batch), ms) for batch, ms in row["latency_ms"].items())
        style = style_of(number)
        axes.plot(
            *zip(*points, strict=True), color=style["color"], marker=style["marker"], markersize=4, label=row["name"]
        )
    axes.set(xscale="log", yscale="log", xlabel="examples in a batch", ylabel="ms a call, median")
    axes.legend(fontsize=8)
    return axes


def _of_bars(axes: Any) -> None:
    """From top to bottom, with lines behind them that mark values alone."""
    axes.invert_yaxis()
    axes.set_axisbelow(True)
    axes.yaxis.grid(False)
