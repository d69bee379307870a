"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tfp_bprune.cli.main import main

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused and returns its one line."""

    def run(*words: object) -> str:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code  # type: ignore[assignment]
        said = capsys.readouterr()
        assert code == 2
        assert said.out == ""
        assert said.err.endswith("\n")
        assert said.err.count("\n") == 1, said.err
        assert said.err.startswith("tfp-bprune")
        return said.err

    return run
