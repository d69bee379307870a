"""Progress: a bar on a terminal, lines elsewhere, which begin after some seconds or at the end."""

from __future__ import annotations

import io
import re
import sys

import pytest

from tfp_bprune import _progress
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


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int, **environment: str) -> Terminal:
    """Standard error as a terminal of so many columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": str(columns), **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", shown := Terminal())
    return shown


@pytest.mark.parametrize("columns", [60, 80, 100, 140])
def test_a_bar_keeps_steps_and_time_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    shown = on_a_terminal(monkeypatch, columns)
    with Bar("train", 100, remaining=True) as bar:
        bar.to(12, "loss 0.1234  val_nll 0.3456  val_accuracy 0.9876")
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.getvalue()).splitlines()[-1]
    assert len(last.rstrip()) <= columns
    for part in ("train", "12/100", "0:00:0", "loss 0."):
        assert part in last


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_there_are_lines_and_nothing_that_a_terminal_acts_on(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    shown = on_a_terminal(monkeypatch, 80, **environment)
    with Bar("train", 2) as bar:
        bar.to(2, "loss 0.5")
    assert shown.getvalue() == "train 2/2  0:00 min  loss 0.5\n"


def test_a_log_has_a_line_every_ten_seconds_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0, 75.0, 76.0])
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys, "stderr", shown := io.StringIO())
    bar = Bar("train", 5)
    for done in range(1, 6):
        bar.to(done, f"loss {done}")
    assert shown.getvalue().splitlines() == [
        "train 2/5  0:11 min  loss 2",
        "train 4/5  1:15 min  loss 4",
        "train 5/5  1:16 min  loss 5",
    ]
