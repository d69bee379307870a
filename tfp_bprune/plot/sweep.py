"""A sweep in pictures, from its JSON: quality against sparsity, and the histogram of scores with its cuts."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune.plot.style import BLUE, GREY, ORANGE, axes_or_new
from tfp_bprune.types import Json


def sweep(result: Json, *, axes: Any = None) -> Any:
    """Quality against sparsity: accuracy or RMSE on the left axis, NLL on the right; dotted with squares, the mean over draws.

    Args:
      result: what `bp.sweep` returns, or the JSON of `tfp-bprune sweep`.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes, rows = axes_or_new(axes), result["rows"]
    first, label = _first(rows[0])
    x = np.arange(len(rows))  # evenly spaced: what matters happens between 90 and 99 %
    axes.plot(x, [row[first] for row in rows], "o-", color=BLUE, label=f"{label}, mean")
    if f"sampled_{first}" in rows[0]:
        axes.plot(x, [row[f"sampled_{first}"] for row in rows], "s:", color=BLUE, alpha=0.6, label=f"{label}, sampled")
    axes.set_xticks(x, [f"{100 * row['requested']:g}" for row in rows])
    axes.set(xlabel="weights removed (%)", ylabel=label)
    other = axes.twinx()
    other.grid(False)
    if "nll" in rows[0]:
        other.plot(x, [row["nll"] for row in rows], "o-", color=ORANGE, label="NLL, mean")
    if "sampled_nll" in rows[0]:
        other.plot(x, [row["sampled_nll"] for row in rows], "s:", color=ORANGE, alpha=0.6, label="NLL, sampled")
    other.set_ylabel("NLL (nats per example)")
    other.spines["right"].set_visible(True)
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    axes.legend(handles, [handle.get_label() for handle in handles], loc="center left", frameon=False, fontsize=8)
    return axes


def _first(row: Json) -> tuple[str, str]:
    """The score that a row is judged by, of several outputs that of the first."""
    for key, label in (("rmse", "RMSE"), ("accuracy", "accuracy")):
        if key in row:
            return key, label
    key = next(key for key in row if key.endswith(("_rmse", "_accuracy")))
    return key, key.replace("_", " ")


def histogram(result: Json, *, axes: Any = None) -> Any:
    """Histogram of the weights' scores, with a line at the cut of each sparsity: everything to its left is removed.

    Args:
      result: what `bp.sweep` returns, or the JSON of `tfp-bprune sweep`.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    axes, scores, rows = axes_or_new(axes), result["scores"], result["rows"]
    edges, counts = np.asarray(scores["edges_db"]), np.asarray(scores["counts"])
    axes.stairs(counts, edges, fill=True, color=GREY, alpha=0.6)
    top = counts.max()
    for i, (cut, row) in enumerate(zip(scores["cuts_db"], rows, strict=True)):
        if cut is None or not row["requested"] or not edges[0] <= cut <= edges[-1]:
            continue
        axes.axvline(cut, color=ORANGE, linewidth=1)
        axes.annotate(
            f"{100 * row['requested']:g} %",
            (cut, top * (1.0 - 0.06 * i)),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=8,
        )
    known = {"snr": "signal-to-noise ratio |mu| / sigma (dB)", "magnitude": "magnitude |w| (dB)"}
    name = known.get(scores["criterion"], f"{scores['criterion']} of a weight (nats)")
    cut_units = rows[0].get("granularity") == "unit"
    what = "units with a score left of a line" if cut_units else "everything left of a line"
    axes.set(xlabel=name, ylabel="weights", title=f"what is cut: {what}")
    axes.title.set_fontsize(10)
    return axes
