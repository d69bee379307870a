"""Tables and pictures of a search and of a sensitivity analysis, from their JSON."""

from __future__ import annotations

from matplotlib.figure import Figure
from rich.table import Table

from tfp_bprune.plot.searched import MAPS, front, sensitivity
from tfp_bprune.plot.style import picture
from tfp_bprune.reports.tables import human_bytes
from tfp_bprune.types import Json

_SCORES = (("accuracy", "accuracy"), ("RMSE", "rmse"), ("NLL", "nll"), ("ECE", "ece"))


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
        "certified",
    )
    for name, row in (("every layer", result), ("one threshold", result["global"])):
        latency = row["latency_ms"]
        table.add_row(
            name, f"{row['nonzeros']:,}", f"{100 * row['sparsity']:.2f} %", *(f"{row[key]:.4f}" for _, key in scores),
            human_bytes(row["bytes"]), f"{latency['1']:.2f}", f"{latency['256']:.2f}",
            "yes" if row["claim"]["holds"] else "no",
        )  # fmt: skip
    return table


def search_figure(result: Json, trials: list[Json]) -> bytes:
    """A PNG: accuracy lost on the searched examples against weights left, or bytes where they were the target, and against latency.

    Pareto points are numbered.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        front(result, trials, axes=left)
        front(result, trials, size="latency", axes=right).set_ylabel("")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)

    names = [str(result[key]) for key in ("network", "dataset") if key in result]
    return picture(11, 4.6, f"Search: {' on '.join(names)}", draw)


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
    """A PNG: heat maps of what accuracy, NLL and ECE, or the RMSE, lose, a row a layer and a column a part kept."""
    [whole] = [row for row in result["rows"] if not row["layer"]]
    scores, layers = [score for score in MAPS if score in whole], {row["tensor"] for row in result["rows"]} - {None}

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for axes, score in zip(panels, scores, strict=True):
            sensitivity(result, score=score, axes=axes)

    title = f"One layer pruned at a time: {result.get('network', 'network')} on {result.get('dataset', 'data')}"
    return picture(12, 1.9 + 0.45 * len(layers), title, draw, grid=False)
