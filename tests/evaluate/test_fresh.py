"""`reload` refuses what it cannot run before it starts a process, and reports what failed in one."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune.evaluate import fresh, reload
from tfp_bprune.export import export
from tfp_bprune.types import DataError, ExportError, RunError


@pytest.fixture(scope="module")
def exported(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny network."""
    place = tmp_path_factory.mktemp("exported") / "mean"
    export(tiny_model, place)
    return place


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (3, 8, 8), (3, 64), (3, 9, 8, 1)])
def test_examples_of_another_shape_are_refused(exported: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"takes examples of shape \(8, 8, 1\): got \d of shape"):
        reload([exported], np.zeros(shape, np.float32))


def test_what_is_no_export_is_refused(exported: Path, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a run: expected a folder written by `tfp-bprune export`"):
        reload([exported, tiny_run], np.zeros((1, 8, 8, 1)))
    with pytest.raises(RunError, match="holds no run"):
        reload([tmp_path], np.zeros((1, 8, 8, 1)))


def test_what_fails_in_the_fresh_process_is_one_line(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\n  ...\nOSError: SavedModel file does not exist\n")
    monkeypatch.setattr(fresh.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ExportError, match=r"failed in a fresh process: OSError: SavedModel file does not exist$"):
        reload([exported], np.zeros((1, 8, 8, 1)))
