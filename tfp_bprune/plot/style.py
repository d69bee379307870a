"""How every picture looks, and the one way from a figure to a PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

BLUE, ORANGE, GREY = "#1f5f99", "#d9772b", "#8a8f94"
WRONG = "#c0392b"  # of answers
# Okabe and Ito's colours, told apart by the colour-blind too; with the markers 56 looks.
DISTINCT = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#8a8f94")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 10}


def style_of(number: int) -> dict[str, Any]:
    """Colour and marker of the series of that number."""
    return {"color": DISTINCT[number % len(DISTINCT)], "marker": MARKERS[number % len(MARKERS)]}


def picture(
    width: float, height: float, title: str, draw: Callable[[Figure], None], *, title_size: int = 12, grid: bool = True
) -> bytes:
    """A PNG of what `draw` puts on a figure of so many inches, in the package's style.

    The figure is Matplotlib's own object, not pyplot's: none stays open.
    """
    with mpl.rc_context(_STYLE | {"axes.grid": grid}):
        figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
        figure.suptitle(title, fontsize=title_size)
        draw(figure)
        return png(figure)


def axes_or_new(axes: Any, width: float = 5.5, height: float = 3.6) -> Any:
    """The axes given, or those of a new figure of pyplot, of so many inches, in the package's style."""
    if axes is not None:
        return axes
    from matplotlib import pyplot as plt

    with mpl.rc_context(_STYLE):
        return plt.subplots(figsize=(width, height), layout="constrained")[1]


def plain_numbers(axis: Any, within: Sequence[float] | None = None) -> None:
    """Numbers of a logarithmic axis without exponents.

    Args:
      within: a decade, the places of labels; by default as many as there is room for.
    """
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=within or ((1, 1.5, 2, 3, 5) if high < 30 * low else (1, 3))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def png(figure: Figure) -> bytes:
    """The content of a PNG file of a figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
