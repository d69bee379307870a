"""A search in pictures, from its JSON: trials with their Pareto front, and what pruning one layer at a time costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tfp_bprune.plot.style import axes_or_new
from tfp_bprune.types import DataError, Json

_PHASES = {
    "global": ("one threshold", "#e69f00"),
    "sensitivity": ("one layer", "#8a8f94"),
    "start": ("start", "#56b4e9"),
    "bayesian": ("Bayesian", "#0072b2"),
    "local": ("local", "#009e73"),
    "bits": ("fewer bits", "#cc79a7"),
}
_SIZES = {
    "nonzeros": "weights left",
    "bytes": "bytes by the model of sizes",
    "latency": "latency by the cost model (µs, batch 64)",
}
MAPS = {
    "rmse": ("RMSE, more", 1.0),
    "accuracy": ("accuracy, points lost", -100.0),
    "nll": ("NLL, nats more", 1.0),
    "ece": ("ECE, points more", 100.0),
}
_APART = 11  # pixels between two numbers of Pareto points; between them the fronts in search.json have all
_SHOWN = 8.0  # times the smallest size, and _HIGH times the budget: beyond it a trial tells nothing of the front
_HIGH = 4.0


def front(result: Json, trials: Sequence[Json], *, size: str | None = None, axes: Any = None) -> Any:
    """Trials of a search, its Pareto front and the budget; trials far beyond both are left out.

    The numbers at the points are those of `tfp-bprune search --export`.

    Args:
      result: the JSON of `tfp-bprune search`.
      trials: its trials, with the same keys.
      size: "nonzeros", "bytes" or "latency"; by default the size of the front beside latency: bytes if they were the target,
        otherwise nonzeros.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.

    Raises:
      DataError: there is no such size.
    """
    size = size or ("bytes" if any("bytes" in row["on"] for row in result["front"]) else "nonzeros")
    if size not in _SIZES:
        raise DataError(f"no size {size!r} of a trial: expected one of {', '.join(map(repr, _SIZES))}")
    axes = axes_or_new(axes)
    for phase, (title, colour) in _PHASES.items():
        rows = [row for row in trials if row["phase"] == phase]
        points = [(row[size], _lost(row)) for row in rows]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, color=colour, alpha=0.7, label=title, linewidths=0)
    best = sorted((row for row in result["front"] if size in row["on"]), key=lambda row: float(row[size]))
    if best:  # a size that was not looked for has none
        places = [r[size] for r in best], [_lost(r) for r in best]
        axes.plot(*places, "-", color="#d55e00", lw=1, label="Pareto front")
    lost = [_lost(row) for row in trials]
    limit = result["budget"].get("max_rmse_increase" if "rmse" in result else "max_accuracy_drop")
    if limit is not None:
        axes.axhline(100 * limit, color="#d55e00", lw=0.8, ls=":", label="budget")
        axes.set_ylim(min(-0.1, *lost) - 0.05, max(_HIGH * 100 * limit, 1.0))
    least = min(row[size] for row in trials)
    axes.set(xscale="log", xlabel=_SIZES[size], xlim=(0.9 * least, _SHOWN * least))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    what = "growth of the RMSE" if "rmse" in result else "accuracy lost"
    axes.set_ylabel(f"{what} on the searched examples ({'%' if 'rmse' in result else 'points'})")
    _numbers(axes, [(row[size], _lost(row), row["point"]) for row in best])
    return axes


def _numbers(axes: Any, points: list[tuple[float, float, int]]) -> None:
    """Numbers beside points, left out where they would cover one another."""
    taken: list[np.ndarray] = []
    for x, y, number in points:
        place = axes.transData.transform((x, y))
        inside = axes.get_xlim()[0] <= x <= axes.get_xlim()[1] and y <= axes.get_ylim()[1]
        if inside and all(np.hypot(*(place - other)) >= _APART for other in taken):
            axes.annotate(str(number), (x, y), (3, 4), textcoords="offset points", fontsize=7)
            taken.append(place)


def sensitivity(result: Json, *, score: str = "accuracy", axes: Any = None) -> Any:
    """Heat map of the loss in a score when one layer is pruned: a row for each layer, a column for each fraction kept.

    Gains are not shaded.

    Args:
      result: the JSON of `tfp-bprune search --sensitivity`.
      score: "accuracy", "nll", "ece" or "rmse".
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.

    Raises:
      DataError: the result does not have that score.
    """
    rows = [row for row in result["rows"] if row["layer"]]
    [whole] = [row for row in result["rows"] if not row["layer"]]
    if score not in MAPS or score not in whole:
        raise DataError(
            f"no score {score!r} here: expected one of {', '.join(repr(one) for one in MAPS if one in whole)}"
        )
    layers, parts = list(dict.fromkeys(r["tensor"] for r in rows)), sorted({r["kept"] for r in rows}, reverse=True)
    names = [next(r["layer"] for r in rows if r["tensor"] == tensor) for tensor in layers]
    title, scale = MAPS[score]
    values = [[_at(rows, tensor, part)[score] - whole[score] for part in parts] for tensor in layers]
    axes = axes_or_new(axes)
    _heat(axes, np.array(values) * scale, names, [f"{100 * part:g} %" for part in parts], title)
    return axes


def _lost(row: Json) -> float:
    """Points of accuracy lost, or per cent by which the RMSE grew."""
    return 100.0 * float(row["accuracy_drop"] if "accuracy_drop" in row else row["rmse_increase"])


def _at(rows: list[Json], tensor: str, part: float) -> Json:
    return next(r for r in rows if r["tensor"] == tensor and r["kept"] == part)


def _heat(axes: Any, grid: np.ndarray, names: list[str], parts: list[str], title: str) -> None:
    harm = np.maximum(grid, 0)
    shade = np.log1p(harm / max(np.median(harm), 1e-3))
    axes.imshow(shade, cmap="OrRd", aspect="auto")
    axes.set_title(title, fontsize=10)
    axes.set(xlabel="weights kept", xticks=range(len(parts)), yticks=range(len(names)))
    axes.set_xticklabels(parts, fontsize=8)
    axes.set_yticklabels(names, fontsize=8)
    for (i, j), value in np.ndenumerate(np.round(grid, 2) + 0.0):  # 0.0 takes the sign from a zero
        dark = shade[i, j] > 0.65 * shade.max()
        text = f"{value:+.2f}" if value else "0"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
