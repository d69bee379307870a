"""A self-contained page of HTML: no script, nothing from the network, and whatever comes from a file is escaped."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tfp_bprune.files.reading import printable

_INK = "#0a0b0c"  # stands for the colour of the text, which the page decides
_STYLE = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10,
    "svg.fonttype": "none", "svg.hashsalt": "tfp_bprune", "text.parse_math": False, "legend.frameon": False,
    **{f"{name}": _INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor")},
    "grid.color": "#8a8f94", "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
# Colours that are too dark on a dark ground.
_BY_GROUND = {"#1f5f99": "blue", "#0072b2": "deep", "#000000": "black"}
_CSS = """
:root { color-scheme: light dark; --ink: #1b1f23; --paper: #ffffff; --soft: #f3f5f7; --line: #d5dae0;
        --blue: #1f5f99; --deep: #0072b2; --black: #000000; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7eb; --paper: #14171a; --soft: #1d2226; --line: #363d44;
          --blue: #6aaee6; --deep: #4aa8e8; --black: #e3e7eb; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .4rem 0 .8rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figcaption { font-size: .88rem; opacity: .85; margin-top: .2rem; }
figure svg { width: 100%; height: auto; display: block; }
.table { overflow-x: auto; margin: .4rem 0 1rem; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; white-space: nowrap; }
th { background: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
td.word, th.word { text-align: left; white-space: normal; }
td.word:not(:first-child) { overflow-wrap: anywhere; }
th { white-space: normal; }
td:first-child { min-width: 7.5rem; }
td code { font-size: .8rem; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; font-size: .85rem; opacity: .8; }
"""
# Even if something slipped through, a browser would load and run nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def escaped(value: object) -> str:
    """A value as text of a page: no markup, no control characters."""
    return html.escape(printable(str(value)).replace("\n", " "))


def page(title: str, sections: Sequence[str]) -> str:
    """The page; sections are HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(title)}</title>
<style>{_CSS}</style>
</head>
<body>
<h1>{escaped(title)}</h1>
{chr(10).join(sections)}
<footer>Written by tfp-bprune report. This page loads nothing from the network.</footer>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where there is nothing."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escaped(title)}</h2>\n{content}\n</section>" if content else ""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escaped(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> str:
    """A table; the first `words` columns stand left, all others are numbers."""
    if not rows:
        return ""
    marks = ['class="word"' if i < words else "" for i in range(len(header))]
    head = "".join(f"<th {mark}>{escaped(cell)}</th>" for mark, cell in zip(marks, header, strict=True))
    lines = ["".join(f"<td {m}>{escaped(cell)}</td>" for m, cell in zip(marks, row, strict=True)) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figures(*drawn: str) -> str:
    """Figures beside each other, as many as the width takes."""
    return f'<div class="figures">\n{chr(10).join(drawn)}\n</div>' if any(drawn) else ""


def figure(draw: Callable[[Any], Any], caption: str, size: tuple[float, float] = (4.6, 3.2)) -> str:
    """What `draw` puts on axes, as a picture within the page, in the page's colours.

    Args:
      draw: told the axes.
      caption: plain text below it.
      size: inches, at the width of a telephone.
    """
    with mpl.rc_context(_STYLE):
        canvas = Figure(figsize=size, layout="constrained")
        draw(canvas.subplots())
        content = io.StringIO()
        canvas.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    drawn = content.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace(_INK, "currentColor")
    for colour, name in _BY_GROUND.items():
        drawn = drawn.replace(f": {colour}", f": var(--{name})")
    drawn = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", drawn)
    drawn = drawn.replace("<svg ", f'<svg role="img" aria-label="{escaped(caption)}" ', 1)
    return f"<figure>\n{_own_names(drawn, caption)}\n<figcaption>{escaped(caption)}</figcaption>\n</figure>"


def _own_names(drawn: str, caption: str) -> str:
    """The picture with identifiers that no other picture of the page has."""
    mark = f"f{abs(hash_of(caption)):x}-"
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{mark}\1"', drawn)
    drawn = re.sub(r"url\(#([^)]+)\)", rf"url(#{mark}\1)", drawn)
    return re.sub(r'href="#([^"]+)"', rf'href="#{mark}\1"', drawn)


def hash_of(text: str) -> int:
    """A number of the text, the same in every process."""
    import zlib

    return zlib.crc32(text.encode())
