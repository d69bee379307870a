"""Pictures from the JSON of a sweep."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfp_bprune.plot.style import GREY, picture, plain_numbers, style_of
from tfp_bprune.plot.sweep import histogram, sweep
from tfp_bprune.plot.training import history
from tfp_bprune.types import Json

_HALF_A_LINE = 62  # characters in the legend


def sweep_figure(result: Json, title: str) -> bytes:
    """A PNG: quality against sparsity on the left, the histogram of scores with the cuts on the right."""

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        sweep(result, axes=left)
        histogram(result, axes=right)

    return picture(11, 4.2, title, draw)


def history_figure(rows: list[Json], title: str) -> bytes:
    """A PNG of a training: negative log likelihood and, where there is one, accuracy, by epoch."""

    def draw(figure: Figure) -> None:
        axes, keys = figure.subplots(), rows[0] if rows else {}
        if "nll" in keys:
            history(rows, axes=axes).get_legend().remove()
        if "accuracy" in keys:
            other = axes.twinx()
            other.grid(False)
            history(rows, score="accuracy", axes=other).get_legend().remove()
            other.spines["right"].set_visible(True)
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)

    return picture(7, 4, title, draw)


def bench_figure(result: Json) -> bytes:
    """A PNG: milliseconds of each export by batch size, a point at the median and a line up to the 95th percentile."""
    rows = result["rows"]
    batches, labels = sorted({row["batch"] for row in rows}), list(dict.fromkeys(row["label"] for row in rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, label in enumerate(labels):
            shift = 0.7 * ((i + 0.5) / len(labels) - 0.5)
            _latencies(axes, [row for row in rows if row["label"] == label], batches, i, shift)
        _log_milliseconds(axes)
        _batch_sizes(axes, batches)
        longest = max(len(_titled(row)) for row in rows)
        columns = 2 if len(labels) > 3 and longest < _HALF_A_LINE else 1
        figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)

    title = f"{result['machine']['processor']}, {result['threads']} threads"
    return picture(8, 4.2 + 0.2 * len(labels), title, draw, title_size=10)


def _batch_sizes(axes: Any, batches: list[int]) -> None:
    """One place for each batch size, with a line between them."""
    axes.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    axes.set(xlabel="examples in a batch", xlim=(-0.5, len(batches) - 0.5))
    axes.xaxis.grid(False)
    for edge in range(1, len(batches)):
        axes.axvline(edge - 0.5, color=GREY, linewidth=0.6, alpha=0.4)


def _latencies(axes: Any, rows: list[Json], batches: list[int], number: int, shift: float) -> None:
    """The points of one export, beside those of the others at the same batch size."""
    style = style_of(number)
    x = np.array([batches.index(row["batch"]) for row in rows]) + shift
    medians, highs = [row["latency_ms"] for row in rows], [row["p95_ms"] for row in rows]
    axes.plot(x, medians, linestyle="none", **style, label=_titled(rows[0]))
    axes.vlines(x, medians, highs, color=style["color"], alpha=0.6)


def _log_milliseconds(axes: Any) -> None:
    axes.set_yscale("log")
    plain_numbers(axes.yaxis, (1, 2, 5))
    axes.set_ylabel("ms a call, median to 95th percentile")


def _titled(row: Json) -> str:
    """An export's line in the legend, with its scores where there are any."""
    scores = [("accuracy", "accuracy"), ("rmse", "RMSE"), ("nll", "NLL"), ("ece", "ECE")]
    shown = [f"{title} {row[key]:.4f}" for key, title in scores if row.get(key) is not None]
    return ", ".join([f"{row['label']} ({row['format']})", *shown])
