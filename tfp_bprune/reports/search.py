"""Tables and pictures of a search and of a sensitivity analysis, from their JSON."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.table import Table

from tfp_bprune.plot.style import picture
from tfp_bprune.reports.tables import human_bytes
from tfp_bprune.types import Json

_COLOURS = {
    "global": "#e69f00",
    "sensitivity": "#8a8f94",
    "start": "#56b4e9",
    "bayesian": "#0072b2",
    "local": "#009e73",
}
_TITLES = {
    "global": "one threshold",
    "sensitivity": "one layer",
    "start": "start",
    "bayesian": "Bayesian",
    "local": "local",
}
_SCORES = (("accuracy", "accuracy"), ("RMSE", "rmse"), ("NLL", "nll"), ("ECE", "ece"))
_APART = 11  # pixels between two numbers of Pareto points; between them the fronts in search.json have all
_SHOWN = 8.0  # times the smallest size, and _HIGH times the budget: beyond it a trial tells nothing of the front
_HIGH = 4.0


def search_table(result: Json) -> Table:
    """What was found for every layer beside the best single threshold."""
    scores = [(title, key) for title, key in _SCORES if key in result]
    table = Table(
        "",
        "weights left",
        "sparsity",
        *(title for title, _ in scores),
        "bytes",
        "ms, batch 1",
        "ms, batch 256",
        "shown",
    )
    for name, row in (("every layer", result), ("one threshold", result["global"])):
        latency = row["latency_ms"]
        table.add_row(
            name, f"{row['nonzeros']:,}", f"{100 * row['sparsity']:.2f} %", *(f"{row[key]:.4f}" for _, key in scores),
            human_bytes(row["bytes"]), f"{latency['1']:.2f}", f"{latency['256']:.2f}",
            "yes" if row["claim"]["holds"] else "no",
        )  # fmt: skip
    return table


def _lost(row: Json) -> float:
    """Points of accuracy lost, or per cent by which the RMSE grew."""
    return 100.0 * float(row["accuracy_drop"] if "accuracy_drop" in row else row["rmse_increase"])


def search_figure(result: Json, trials: list[Json]) -> bytes:
    """A PNG: accuracy lost on the searched examples against weights left and against latency; numbered Pareto points."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        _front(left, result, trials, "nonzeros", "weights left")
        _front(right, result, trials, "latency", "latency by the cost model (µs, batch 64)")
        what = "growth of the RMSE" if "rmse" in result else "accuracy lost"
        left.set_ylabel(f"{what} on the searched examples ({'%' if 'rmse' in result else 'points'})")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8)

    names = [str(result[key]) for key in ("network", "dataset") if key in result]
    return picture(11, 4.6, f"Search: {' on '.join(names)}", draw)


def _front(axes: Any, result: Json, trials: list[Json], size: str, label: str) -> None:
    """Trials, the Pareto front and the budget; what is far beyond both is left out."""
    for phase, colour in _COLOURS.items():
        rows = [row for row in trials if row["phase"] == phase]
        points = [(row[size], _lost(row)) for row in rows]
        if points:
            axes.scatter(*zip(*points, strict=True), s=14, color=colour, alpha=0.7, label=_TITLES[phase], linewidths=0)
    best = sorted((row for row in result["front"] if size in row["on"]), key=lambda row: float(row[size]))
    axes.plot(
        [r[size] for r in best],
        [_lost(r) for r in best],
        "-",
        color="#d55e00",
        lw=1,
        label="Pareto front",
    )
    lost = [_lost(row) for row in trials]
    limit = result["budget"].get("max_rmse_increase" if "rmse" in result else "max_accuracy_drop")
    if limit is not None:
        axes.axhline(100 * limit, color="#d55e00", lw=0.8, ls=":", label="budget")
        axes.set_ylim(min(-0.1, *lost) - 0.05, max(_HIGH * 100 * limit, 1.0))
    least = min(row[size] for row in trials)
    axes.set(xscale="log", xlabel=label, xlim=(0.9 * least, _SHOWN * least))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    _numbers(axes, [(row[size], _lost(row), row["point"]) for row in best])


def _numbers(axes: Any, points: list[tuple[float, float, int]]) -> None:
    """Numbers beside points, left out where they would cover one another."""
    taken: list[np.ndarray] = []
    for x, y, number in points:
        place = axes.transData.transform((x, y))
        inside = axes.get_xlim()[0] <= x <= axes.get_xlim()[1] and y <= axes.get_ylim()[1]
        if inside and all(np.hypot(*(place - other)) >= _APART for other in taken):
            axes.annotate(str(number), (x, y), (3, 4), textcoords="offset points", fontsize=7)
            taken.append(place)


def sensitivity_table(result: Json) -> Table:
    """Accuracy, NLL and ECE, or the RMSE, by layer and part of its weights kept."""
    scores = [(title, key) for title, key in _SCORES if key in result["rows"][0]]
    table = Table("layer", "kept", "weights", *(title for title, _ in scores))
    for row in result["rows"]:
        weights = row["counts"][row["tensor"]] if row["tensor"] else row["nonzeros"]
        table.add_row(
            row["layer"] or "none pruned", f"{100 * row['kept']:g} %", f"{int(weights):,}",
            *(f"{row[key]:.4f}" for _, key in scores),
        )  # fmt: skip
    return table


def sensitivity_figure(result: Json) -> bytes:
    """A PNG: heat maps of what accuracy, NLL and ECE, or the RMSE, lose, a row a layer and a column a part kept; gains are not shaded."""
    rows = [row for row in result["rows"] if row["layer"]]
    [whole] = [row for row in result["rows"] if not row["layer"]]
    layers, parts = list(dict.fromkeys(r["tensor"] for r in rows)), sorted({r["kept"] for r in rows}, reverse=True)
    names = [next(r["layer"] for r in rows if r["tensor"] == tensor) for tensor in layers]
    maps = [one for one in _MAPS if one[0] in whole]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
        for axes, (key, title, scale) in zip(panels, maps, strict=True):
            values = [[_at(rows, tensor, part)[key] - whole[key] for part in parts] for tensor in layers]
            _heat(axes, np.array(values) * scale, names, [f"{100 * part:g} %" for part in parts], title)

    title = f"One layer pruned at a time: {result.get('network', 'network')} on {result.get('dataset', 'data')}"
    return picture(12, 1.9 + 0.45 * len(layers), title, draw, grid=False)


_MAPS = (
    ("rmse", "RMSE, more", 1.0),
    ("accuracy", "accuracy, points lost", -100.0),
    ("nll", "NLL, nats more", 1.0),
    ("ece", "ECE, points more", 100.0),
)


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
