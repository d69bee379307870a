"""Faults: kills, two writers, full disks and signals leave whole files or none, and one line."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Process
from tfp_bprune.cli.main import main
from tfp_bprune.exports import export
from tfp_bprune.files.runs import Run
from tfp_bprune.files.writing import beside, held, put_in_place, write_atomically
from tfp_bprune.types import BpruneError, ExportError, RunError

TRAIN = [
    "train",
    "--dataset",
    "digits",
    "--hidden",
    "16",
    "--batch-size",
    "200",
    "--epochs",
    "500",
    "--learning-rate",
    "0.001",
    "--out",
]


def test_what_a_killed_export_left_goes_with_the_next_and_a_living_one_stays(tmp_path: Path) -> None:
    (dead := tmp_path / ".partial-export-dead").mkdir()
    (dead / "file").write_text("x")
    (living := tmp_path / ".partial-export-living").mkdir()
    (foreign := tmp_path / ".partial-notes").write_text("mine")
    with held(living), beside(tmp_path / "export") as folder:
        (folder / "whole").write_text("x")
        put_in_place(folder, tmp_path / "export")
        assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, foreign.name, "export"]
    with beside(tmp_path / "other"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [foreign.name, "export"]


def test_a_link_in_the_place_of_a_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "victim").write_text("mine")
    (place := tmp_path / "place").mkdir()
    (place / ".partial-export-x").symlink_to(tmp_path / "outside")
    with beside(place / "export"):
        pass
    with Run(place).locked():
        pass
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["victim"]


def test_of_two_exports_to_one_folder_one_is_refused(tiny_model: Any, tmp_path: Path) -> None:
    errors: list[BpruneError] = []

    def write() -> None:
        try:
            export(tiny_model, tmp_path / "export", kernels="dense")
        except ExportError as error:
            errors.append(error)

    write()
    with pytest.raises(ExportError, match="already exists"):
        export(tiny_model, tmp_path / "export")
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(put, [tmp_path] * 2))
    Run.open(tmp_path / "export").verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["export", "many"]
    assert errors == []


def put(place: Path) -> None:
    for i in range(50):
        with beside(place / "many") as folder:
            (folder / str(i)).write_text("x")
            try:
                put_in_place(folder, place / "many")
            except RunError:  # the other was faster
                continue


@pytest.mark.parametrize("writer", ["file", "export", "run"])
def test_a_full_disk_is_one_line(writer: str, tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    def commit() -> None:
        with Run.create(tmp_path / "run").locked() as run:
            run.commit({"config.json": b"{}"})

    writers = {
        "file": lambda: write_atomically(tmp_path / "file", b"x"),
        "export": lambda: export(tiny_model, tmp_path / "export"),
        "run": commit,
    }
    with pytest.raises(BpruneError, match="No space left on device"):
        writers[writer]()
    assert [p.name for p in tmp_path.rglob("*") if p.name not in (".lock", "run")] == []


def test_an_error_of_the_system_is_one_line(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("tfp_bprune.storage.load_model", full)
    assert main(["prune", str(tiny_run), "--sparsity", "0.5", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"tfp-bprune prune: {tmp_path}: No space left on device\n"


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_training_with_its_code_and_says_how_it_goes_on(
    number: int, code: int, word: str, tmp_path: Path
) -> None:
    with Process([*TRAIN, tmp_path / "run"]) as process:
        while not list((tmp_path / "run").glob("weights/epoch-*")) and not process.ended:
            time.sleep(0.05)
        process.kill(number)
        ended, _, said = process.wait()
    assert ended == code, said
    assert said.splitlines()[-1] == f"tfp-bprune train: {word}; continue with --resume from the last finished epoch"
    run = Run.open(tmp_path / "run")
    run.verify()
    assert [row["epoch"] for row in run.read_rows()] == list(range(1, run.manifest["epoch"] + 1))


def test_a_signal_where_nothing_was_written_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("tfp_bprune.cli.train.train", ended)
    assert main([*TRAIN, str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err == "tfp-bprune train: terminated; nothing was written, run it again\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
