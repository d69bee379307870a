"""Every snippet of README and of the site runs: quickly here, as it stands among the slow tests."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tfp_bprune import _registry
from tfp_bprune.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/guides").glob("*.md")),
]
LEAST = 25  # so that a wrong pattern does not make everything pass
_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|slow)(?:: [^\n]+)? -->\n)?^```(?P<kind>python|bash)\n(?P<code>.*?)^```$", re.M | re.S
)
# Fewer epochs and smaller networks: that a snippet runs does not depend on them.
_QUICK = (
    (r"epochs=\d+", "epochs=2"),
    (r"--epochs \d+", "--epochs 2"),
    (r"\"hidden\": \([\d, ]+\)", '"hidden": (16,)'),
    (r"--hidden [\d ]+", "--hidden 16 "),
    (r"samples=\d+", "samples=3"),
)


class Snippet(NamedTuple):
    """One fenced block: `mark` is "not run", "slow" or None."""

    mark: str | None
    kind: str
    code: str


def snippets(page: Path) -> list[Snippet]:
    return [Snippet(*found.group("mark", "kind", "code")) for found in _FENCE.finditer(page.read_text())]


def run(snippet: Snippet, names: dict[str, Any], quick: bool) -> None:
    code = snippet.code
    for pattern, less in _QUICK if quick else ():
        code = re.sub(pattern, less, code)
    if snippet.kind == "python":
        exec(compile(code, "snippet", "exec"), names)
        return
    for line in code.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        assert program in ("", "tfp-bprune"), f"{line}: mark the block `not run`, with the reason"
        assert not words or main(words) == 0, line


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; what snippets register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    kept = [(registry, dict(registry._things)) for registry in _registry._ALL]
    yield tmp_path
    for registry, things in kept:
        registry._things = things


def test_there_are_snippets_and_each_that_is_not_run_says_why() -> None:
    found = [snippet for page in PAGES for snippet in snippets(page)]
    assert len([one for one in found if one.mark is None]) >= LEAST
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^```(?:python|bash)$", text, re.M)) == len(snippets(page))
        assert not re.findall(r"^<!-- not run -->", text, re.M), page
        assert not re.findall(r"^    (?:tfp-bprune|make) ", text, re.M), f"{page.name}: fence the command"


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run(page: Path, place: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.mark is None:
            run(snippet, names, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_as_they_stand(page: Path, place: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(page):
        if snippet.mark != "not run":
            run(snippet, names, quick=False)


def test_readme_is_a_landing_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 100
    assert "make demo" in text
    assert "make test" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    made = {"reference", "api"}  # of the code, by `make docs`
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", page.read_text()):
        if not made & set(Path(target).parts):
            assert (page.parent / target).exists(), target
