"""The documentation site: `make docs`. Everything that it says of names and commands comes from the code."""

from __future__ import annotations

import html
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COPIED = ("notebooks", "benchmarks")
sys.path.insert(0, str(HERE))

from reference import write_reference  # noqa: E402

import tfp_bprune as bp  # noqa: E402

project, author, copyright = "tfp_bprune", "the authors of tfp_bprune", "Apache-2.0"
version = release = metadata.version("tfp-bprune")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]

html_theme, html_title, html_static_path = "furo", "tfp_bprune", ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = html_show_copyright = html_copy_source = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # lines for the shell in notebooks
nb_execution_mode = "off"  # notebooks are kept executed, and a test runs them
nb_render_markdown_format = "myst"
html_math_renderer = "mathml"

autodoc_typehints, autodoc_member_order = "none", "bysource"
autodoc_preserve_defaults, autodoc_inherit_docstrings = True, False
napoleon_use_rtype, napoleon_use_ivar = False, True
python_display_short_literal_types = True
add_module_names = False


def as_restructured_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in single backticks: what reStructuredText would take for markup is none."""
    for number, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        if line.lstrip().startswith((">>>", "...")):
            continue
        lines[number] = "".join(f"`{p}`" if p.startswith("`") else re.sub(r"([|*])", r"\\\1", p) for p in parts)


def math_block(self: Any, node: Any) -> None:
    """An equation as MathML, which browsers draw themselves: no script, no network."""
    from docutils import nodes
    from latex2mathml.converter import convert

    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def math_inline(self: Any, node: Any) -> None:
    """An equation within a line, as MathML."""
    from docutils import nodes
    from latex2mathml.converter import convert

    self.body.append(convert(html.unescape(node.astext())))
    raise nodes.SkipNode


def copied(name: str) -> None:
    """Pages that lie beside this folder, where Sphinx can read them: a link to a folder would not do for their own links.

    What they link to in this folder is then a folder nearer.
    """
    shutil.copytree(
        HERE.parent / name, HERE / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", "*.json", "*.txt")
    )
    for page in (page for page in (HERE / name).iterdir() if page.suffix in (".md", ".ipynb")):
        page.write_text(page.read_text().replace("](../docs/", "](../"))


def within(app: Any, name: str, source: list[str]) -> None:
    """Links to what was copied, which files have as they lie in the repository."""
    for folder in COPIED:
        source[0] = source[0].replace(f"](../{folder}/", f"]({folder}/")


def setup(app: Any) -> None:
    """Writes the pages that are made of the code, before they are read."""
    for folder in COPIED:
        copied(folder)
    app.connect("source-read", within)
    app.add_html_math_renderer("mathml", inline_renderers=(math_inline, None), block_renderers=(math_block, None))
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon's
    write_reference(HERE / "reference", bp)
