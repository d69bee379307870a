"""Several networks beside each other, from numbers that were measured before: calibration, risk, uncertainty, bytes, time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfp_bprune.plot.style import BLUE, GREY, axes_or_new, style_of
from tfp_bprune.types import Json

Points = Sequence[Sequence[float]]


def calibration_curves(networks: Mapping[str, Points], *, classes: bool = True, axes: Any = None) -> Any:
    """Reliability of several networks: on the diagonal, confidence equals accuracy. Larger points hold more examples.

    `reliability` draws one network from its predictions, with intervals.

    Args:
      networks: points (confidence, accuracy, examples) by name; for a regression (level, fraction of targets within, examples).
      classes: whether the networks predict classes.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
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


def risk_curves(networks: Mapping[str, Points], *, classes: bool = True, axes: Any = None) -> Any:
    """Error among the least uncertain predictions of several networks, against the fraction that is answered.

    `risk_coverage` draws one network from its predictions.

    Args:
      networks: points (fraction answered, error) by name.
      classes, axes: as in `calibration_curves`.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    for number, (name, points) in enumerate(networks.items()):
        axes.plot([p[0] for p in points], [p[1] for p in points], color=style_of(number)["color"], label=name)
    axes.set(
        xlabel="fraction answered, least uncertain first", ylabel="error rate" if classes else "RMSE (target units)"
    )
    axes.set(xlim=(0, 1.02))
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return axes


def uncertainties(
    networks: Mapping[str, Mapping[str, Sequence[float]]], *, unit: str = "nats", axes: Any = None
) -> Any:
    """Quantiles of an uncertainty: a thin line from 5 to 95 %, a thick one from 25 to 75 %, a point at the median.

    Args:
      networks: quantiles at 5, 25, 50, 75 and 95 %, by network and by group of examples, such as "right" and "wrong"; the group is
        "all" if a network has only one.
      unit: unit of the uncertainty.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes, labels, place = axes_or_new(axes), list[str](), 0
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


def sizes(rows: Sequence[Json], *, axes: Any = None) -> Any:
    """Size of each network in bytes, as bars.

    Args:
      rows: each with `name` and `bytes`, as in the manifests of exports.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
    axes.barh(range(len(rows)), [row["bytes"] / 1000 for row in rows], color=BLUE, height=0.6)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    _of_bars(axes)
    axes.set(xlabel="kB on disk")
    return axes


def latencies(rows: Sequence[Json], *, axes: Any = None) -> Any:
    """Median latency of each network by batch size, in milliseconds.

    Args:
      rows: each with `name`, and `latency_ms` by batch size.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes = axes_or_new(axes)
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
