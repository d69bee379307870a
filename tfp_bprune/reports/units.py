"""A picture of the units of a network, from the rows of `units_table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfp_bprune.plot.style import picture
from tfp_bprune.plot.units import LEAST, column
from tfp_bprune.types import Json

_MOST = 6  # layers beside each other


def units_figure(rows: Sequence[Json], title: str) -> bytes:
    """A PNG: of each layer's units in order the scale of their weights, where a prior gives one, and their SNR.

    Blue are those for which the evidence speaks, orange those that it says are better gone. Of more than six layers the
    first five and the last are shown.
    """
    names = list(dict.fromkeys(row["layer"] for row in rows))
    shown = names if len(names) <= _MOST else [*names[: _MOST - 1], names[-1]]
    measures = {"scale": "scale of the weights"} if all(row["scale"] is not None for row in rows) else {}
    measures |= {"snr": "signal-to-noise ratio"}

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(len(measures), len(shown), sharey="row", squeeze=False)
        for row_of_axes, (key, label) in zip(all_axes, measures.items(), strict=True):
            least = LEAST * max((row[key] for row in rows if np.isfinite(row[key])), default=1.0)
            for axes, name in zip(row_of_axes, shown, strict=True):
                column(axes, [row for row in rows if row["layer"] == name], key, least or LEAST)
            row_of_axes[0].set_ylabel(label)
        for axes, name in zip(all_axes[0], shown, strict=True):
            axes.set_title(name.removesuffix("/kernel"), fontsize=9)
        for axes in all_axes[-1]:
            axes.set_xlabel("units, sorted")
        handles = dict(zip(*reversed(_legend(all_axes)), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    return picture(max(5.0, 2.4 * len(shown)), 1 + 2.2 * len(measures), title, draw)


def _legend(all_axes: Any) -> tuple[list[Any], list[str]]:
    found = [axes.get_legend_handles_labels() for axes in all_axes.flat]
    return [handle for handles, _ in found for handle in handles], [label for _, labels in found for label in labels]
