"""A training by epoch: its scores, and the divergence of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfp_bprune.plot.style import BLUE, ORANGE, axes_or_new, style_of
from tfp_bprune.types import DataError, Json

_LABELS = {"nll": "NLL (nats per example)", "loss": "loss (nats per example)", "mse": "mean squared error"}
_MOST_NAMES = 8  # in a legend


def history(rows: Sequence[Json], *, score: str = "nll", axes: Any = None) -> Any:
    """A score by epoch, in training (solid) and in validation (dashed).

    Args:
      rows: what `fit` returns, or the `history` of a run.
      score: a key of the rows, such as "nll", "loss" or "accuracy".
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.

    Raises:
      DataError: no row has that score.

    Example:
      bp.plot.history(bp.fit(model, data), score="accuracy")
    """
    lines = [(what, style, _points(rows, key)) for what, style, key in _keys(score)]
    if not any(points for *_, points in lines):
        scores = [key for key in (rows[0] if rows else {}) if not key.startswith(("val_", "kl")) and key != "epoch"]
        raise DataError(f"the history has no score {score!r}: expected one of {', '.join(map(repr, scores))}")
    axes, name = axes_or_new(axes), score.upper() if score == "nll" else score.replace("_", " ")
    for what, style, points in lines:
        if points:
            colour = BLUE if score in ("nll", "loss") else ORANGE
            axes.plot(*zip(*points, strict=True), style, color=colour, label=f"{name}, {what}")
    axes.set(xlabel="epoch", ylabel=_LABELS.get(score, name))
    axes.legend(frameon=False, fontsize=8)
    return axes


def divergences(rows: Sequence[Json], *, axes: Any = None) -> Any:
    """KL divergence of each layer's posterior from its prior, by epoch.

    Args:
      rows, axes: as in `history`.

    Returns:
      The axes.

    Raises:
      DataError: no layer has a KL.
    """
    names = [key for key in (rows[0] if rows else {}) if key.startswith("kl/")]
    if not names:
        raise DataError("the history has no KL of a layer: expected the history of a Bayesian network")
    axes = axes_or_new(axes)
    for number, name in enumerate(names):
        points = _points(rows, name)
        if points:
            axes.plot(*zip(*points, strict=True), color=style_of(number)["color"], label=name.removeprefix("kl/"))
    axes.set(xlabel="epoch", ylabel="KL(q || p) of a layer (nats)")
    if len(names) <= _MOST_NAMES:
        axes.legend(frameon=False, fontsize=8)
    return axes


def _keys(score: str) -> tuple[tuple[str, str, str], ...]:
    return ("training", "-", score), ("validation", "--", f"val_{score}")


def _points(rows: Sequence[Json], key: str) -> list[tuple[int, float | None]]:
    """Epochs and values, None where there is none, which is a gap of the line; nothing if there is no value at all."""
    points = [(row["epoch"], row.get(key)) for row in rows]
    return points if any(value is not None for _, value in points) else []
