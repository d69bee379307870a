"""The examples of `--help` can be pasted after `make demo`, in the order of the commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tfp_bprune.cli.main import COMMANDS, _module, main

# Of other data, workers or files of the reader's own; the shell's redirection is left to the shell.
_ELSEWHERE = re.compile(r"mnist|horovodrun|DIR|photos| > |\bcompression\b|demo --out")


def lines() -> list[str]:
    found = []
    for command in COMMANDS:
        text = _module(command).EXAMPLE.split("example:")[1].replace("\\\n", " ")
        found += [line.strip() for line in text.splitlines() if line.strip().startswith("tfp-bprune ")]
    return found


def test_every_command_has_examples_that_the_parser_takes() -> None:
    from tfp_bprune.cli.main import parser_of_all

    assert len(lines()) > 30
    for line in lines():
        words = shlex.split(line.split(" > ")[0], comments=True)[1:]
        parser_of_all().parse_args(words)


@pytest.mark.slow
def test_examples_run_after_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "runs/demo"]) == 0
    (tmp_path / "served").mkdir()
    for line in lines():
        if not _ELSEWHERE.search(line):
            assert main(shlex.split(line, comments=True)[1:]) == 0, line
