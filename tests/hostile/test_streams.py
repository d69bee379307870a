"""Entropy-coded weights that were made to do harm: bombs, cut ones, ones with more behind; each ends a command in one line."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hostile.conftest import Hostile, Refused
from tests.hostile.conftest import one_line as said
from tests.hostile.test_files import put
from tfp_bprune.files import reading
from tfp_bprune.files.runs import Run, tensors_to_bytes
from tfp_bprune.storage.compress import encode
from tfp_bprune.storage.planes import Arrays, Coded, coded

FILE = "weights/model.safetensors"
NAME = "kernel_loc"  # of the first layer, [64, 3]
Change = Callable[[str, Arrays], Any]


def stream(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)


def bomb(size: int) -> np.ndarray:
    """So many zeros in a thousandth of the bytes; its sum at the end is wrong, which is known too late."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return stream(head + again * ((size >> 20) - 1) + packer.flush())


def changed(**parts: Callable[[np.ndarray], Any]) -> Change:
    """The stream or the type of a coded tensor, exchanged."""

    def change(name: str, stored: Arrays) -> None:
        for form, value in parts.items():
            key = f"{form}:{name}"
            stored[key] = value(stored[key])

    return change


def like(*shape: int, dtype: Any = np.float32) -> Callable[[np.ndarray], np.ndarray]:
    return lambda _: np.empty((0, *shape), dtype)


def gone(form: str) -> Change:
    return lambda name, stored: stored.pop(f"{form}:{name}")


def as_pattern(name: str, stored: Arrays) -> None:
    """A tensor of 2^35 numbers in 170 kB: gaps of a million to one, coded a thousand to one."""
    gaps = 2**27 + 1
    del stored[f"coded:{name}"], stored[f"type:{name}"]
    stored |= {f"shape:{name}": np.array([gaps * 255 - 255]), f"kept:{name}": np.zeros(1, np.float32)}
    stored |= {f"coded:gaps:{name}": bomb(2**27), f"type:gaps:{name}": np.empty((0, gaps), np.uint8)}


STREAMS: dict[str, Change] = {
    "cut": changed(coded=lambda s: s[:-1]), "cut by half": changed(coded=lambda s: s[: len(s) // 2]), "of nothing": changed(coded=lambda s: s[:0]),
    "more behind": changed(coded=lambda s: np.append(s, s)), "a byte behind": changed(coded=lambda s: np.append(s, s[:1])),
    "garbage": changed(coded=lambda s: np.full_like(s, 255)), "a changed sum": changed(coded=lambda s: np.append(s[:-1], s[-1] ^ np.uint8(1))),
    "a bomb": changed(coded=lambda _: bomb(2**32)), "a bomb that says so": changed(coded=lambda _: bomb(2**32), type=like(2**15, 2**15)),
    "more than it holds": changed(type=like(2**31, 2**29)), "sides beyond": changed(type=like(2**40, 2**20, dtype=np.uint8)),
    "no numbers": changed(type=like(64, 3, dtype=bool)), "another shape": changed(type=like(3, 64)), "another size": changed(type=like(64, 4)),
    "another type": changed(type=like(64, 6, dtype=np.float16)), "a number for a type": changed(type=lambda _: np.ones(3, np.float32)),
    "no type": gone("type"), "no stream": gone("coded"), "a stream of numbers": changed(coded=lambda s: s.astype(np.float32)),
    "NaN": lambda name, stored: stored.update(coded(name, np.full((64, 3), np.nan, np.float32))),
    "both": lambda name, stored: stored.update({name: np.zeros((64, 3), np.float32)}),
    "coded twice": lambda name, stored: stored.update(coded(f"coded:{name}", stored.pop(f"coded:{name}"))),
    "gaps of gaps": as_pattern,
}  # fmt: skip


@pytest.fixture
def coded_run(hostile: Hostile) -> Callable[[Change], Path]:
    """The stranger's run with a change to the coded weights of its first layer."""
    arrays = encode(Run.open(hostile.run).read_tensors(FILE))
    [key] = [key for key in arrays if key.endswith(f"/a/{NAME}")]
    name = key.rpartition(":")[2]

    def make(change: Change) -> Path:
        stored = {each: array for each, array in arrays.items() if each != key} | coded(name, np.zeros((64, 3), "f4"))
        change(name, stored)
        hostile.put(FILE, tensors_to_bytes(stored))
        return hostile.run

    return make


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_that_are_none(
    kind: str, coded_run: Any, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "free_memory", lambda: 2.0**34)  # on a larger machine too
    run = coded_run(STREAMS[kind])
    assert "stored weight" in refused("prune", run, "--sparsity", 0.5, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_architecture_has_not_is_not_unpacked(
    coded_run: Any, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Coded, "read", lambda self: pytest.fail("it was unpacked"))
    run = coded_run(changed(coded=lambda _: bomb(2**30), type=like(2**14, 2**14)))
    assert "has shape (16384, 16384): expected (64, 3)" in refused(
        "prune", run, "--sparsity", 0.5, "--out", tmp_path / "o"
    )


def test_a_stream_that_is_well_is_read(coded_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tfp_bprune.cli.main import main

    run = coded_run(lambda name, stored: None)
    assert main(["prune", str(run), "--sparsity", "0.5", "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("optimizer", "has shape (16384, 16384): expected"),
        ("training", "do not fit into memory"),
    ],
)
def test_bombs_in_what_a_training_goes_on_with(
    kind: str,
    line: str,
    tiny_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    name = Run.open(run).manifest["checkpoint"]
    arrays = Run.open(run).read_tensors(name)
    victim = {"optimizer": "optimizer/0001", "training": "training/00-EarlyStopping/best_weights/00000"}[kind]
    arrays = {key: array for key, array in arrays.items() if not key.endswith(victim)}
    harm = {f"coded:{victim}": bomb(2**30), f"type:{victim}": np.empty((0, 2**14, 2**14), np.float32)}
    if kind == "training":
        monkeypatch.setattr(reading, "free_memory", lambda: 2.0**29)
    put(run, name, tensors_to_bytes(arrays | harm))
    monkeypatch.setattr(Coded, "read", lambda self: pytest.fail("it was unpacked"))
    words = ["--dataset", "digits", "--hidden", 16, "--batch-size", 200, "--epochs", 2, "--learning-rate", 0.01]
    assert line in said(capsys, "train", *words, "--resume", "--out", run)
