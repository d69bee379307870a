"""The reference: each public name is on a page, and has an example that runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tfp_bprune as bp
from tests.site.test_snippets import place as place

DOCS = Path(__file__).parents[2] / "docs"


def page_maker(name: str) -> ModuleType:
    """A module of the site, which is no part of the package."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DOCS))


EXAMPLES: dict[str, str] = page_maker("examples").EXAMPLES


def test_every_public_name_is_on_one_page_and_has_an_example() -> None:
    listed = [name for _, names in page_maker("reference").PAGES.values() for name in names.split()]
    assert sorted(listed) == bp.__all__
    assert sorted(EXAMPLES) == bp.__all__
    for name, example in EXAMPLES.items():
        assert (
            f"{name}(" in example
            or f"bp.{name}" in example
            or name in ("Form", "Prediction", "Evaluation", "register_posterior")
        )


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """What the pages of the reference begin with."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(page_maker("examples").BEGINNING, names)
    return names


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name: str, shared: dict[str, Any], place: Path) -> None:
    exec(compile(EXAMPLES[name], name, "exec"), dict(shared))
