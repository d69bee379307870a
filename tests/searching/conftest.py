"""A run that several files search."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfp_bprune.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned something."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    words = ["train", "--hidden", "16", "--epochs", "15", "--learning-rate", "0.01", "--out", str(out)]
    assert main(words) == 0
    return out
