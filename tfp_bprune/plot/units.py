"""The units of a network, layer by layer: the scales of their weights, or their signal-to-noise ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune.plot.style import BLUE, GREY, ORANGE, axes_or_new, plain_numbers
from tfp_bprune.types import DataError, Json

LEAST = 1e-3  # of what is shown on an axis of logarithms, of its largest value
_LABELS = {"scale": "scale of the unit's weights", "snr": "signal-to-noise ratio of the unit"}


def units(model: Any, *, measure: str | None = None, axes: Any = None) -> Any:
    """The units of each layer, sorted from the largest to the smallest.

    Blue units are worth keeping by their evidence; orange units are better removed.

    Args:
      model: with Bayesian layers; or the rows of `pruning.units_table`.
      measure: "scale", the scale that a prior over groups gives a unit, or "snr"; by default "scale" if there is one.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.

    Raises:
      DataError: there is no such measure, or no unit.
      PruneError: the channels of the model cannot be followed.
    """
    rows = model if isinstance(model, list | tuple) else _rows_of(model)
    if not rows:
        raise DataError(
            "there are no units to show: expected a model with layers whose units can go, or rows of units_table"
        )
    scales = all(row["scale"] is not None for row in rows)
    measure = measure or ("scale" if scales else "snr")
    if measure not in _LABELS or (measure == "scale" and not scales):
        expected = "'scale' or 'snr'" if scales else "'snr', for the prior gives units no scales"
        raise DataError(f"units have no measure {measure!r}: expected {expected}")
    names = list(dict.fromkeys(row["layer"] for row in rows))
    axes = axes_or_new(axes, max(5.0, 1.6 * len(names) + 1.5), 3.4)
    least = LEAST * max((row[measure] for row in rows if np.isfinite(row[measure])), default=1.0) or LEAST
    start, places = 0, []
    for name in names:
        mine = [row for row in rows if row["layer"] == name]
        column(axes, mine, measure, least, start)
        places.append((start + (len(mine) - 1) / 2, name.removesuffix("/kernel")))
        start += len(mine) + _gap(rows)
        axes.axvline(start - (_gap(rows) + 1) / 2, color=GREY, linewidth=0.6, alpha=0.5)
    axes.set_xticks([place for place, _ in places], [name for _, name in places])
    axes.set(ylabel=_LABELS[measure], xlabel="units of each layer, sorted")
    axes.xaxis.grid(False)
    plain_numbers(axes.yaxis)
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    axes.legend(shown.values(), shown.keys(), frameon=False, fontsize=8)
    return axes


def column(axes: Any, rows: Sequence[Json], key: str, least: float, start: int = 0) -> None:
    """One measure of one layer's units, from the largest to the smallest; what is less than `least` stands there.

    Args:
      start: place of the first.
    """
    order = sorted(rows, key=lambda row: -row[key])
    values = np.array([row[key] for row in order])
    finite = values[np.isfinite(values)]
    values = np.clip(values, least, finite.max(initial=least))
    wanted = np.array([row["evidence"] >= 0 for row in order])
    for which, colour, label in ((wanted, BLUE, "evidence for the unit"), (~wanted, ORANGE, "better gone")):
        if which.any():
            axes.plot(start + np.flatnonzero(which), values[which], ".", color=colour, markersize=4, label=label)
    axes.set_yscale("log")


def _gap(rows: Sequence[Json]) -> int:
    return max(1, len(rows) // 40)


def _rows_of(model: Any) -> list[Json]:
    from tfp_bprune.pruning.units import units_table

    return units_table(model)
