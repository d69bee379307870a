"""The bar: on a terminal it says what is at work and how far it is, elsewhere nothing."""

from __future__ import annotations

import io
import sys

import pytest

from tfp_bprune._progress import Bar


class Terminal(io.StringIO):
    """Takes what a terminal would show."""

    def isatty(self) -> bool:
        """Unlike its parent."""
        return True


@pytest.mark.parametrize("there", [True, False])
def test_a_bar_is_for_terminals(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stderr", shown := Terminal() if there else io.StringIO())
    with Bar("work", 7, 2, remaining=True) as bar:
        bar.to(note="layer [a/b]")
        bar.to(5)
    for part in ("work", "5/7", "layer [a/b]"):
        assert (part in shown.getvalue()) == there
    assert there or shown.getvalue() == ""
