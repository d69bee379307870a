"""`predict`: a table for the examples of a file, whatever kind of file, with the numbers that `bp.predict` gives."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tfp_bprune as bp
from tests.cli.conftest import Refused
from tfp_bprune.cli.main import main


@pytest.fixture(scope="module")
def served(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network for digits, by moments."""
    path = tmp_path_factory.mktemp("served") / "moments"
    bp.export(tiny_model, path, predictive="moments")
    return path


@pytest.fixture
def pixels(images: np.ndarray) -> np.ndarray:
    """Three images of whole numbers."""
    return images[:3].astype(np.uint8)


def table(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["predict", *map(str, words)]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_kind_of_file_gives_the_same_table(served: Path, pixels: np.ndarray, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "x.npy", pixels)
    np.savez(tmp_path / "x.npz", x=pixels)
    flat = pixels.reshape(3, -1)
    (tmp_path / "x.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in flat))
    names = ",".join(f"p{i}" for i in range(64))
    (tmp_path / "y.csv").write_text(f"{names},label\n" + "".join(",".join(map(str, row)) + ",0\n" for row in flat))
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(tmp_path / "photos" / f"{i}.png")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    expected = bp.predict(served, pixels.astype(np.float32))
    for place in ("x.npy", "x.npz", "x.csv", "y.csv", "photos"):
        rows = table(capsys, served, tmp_path / place)
        assert [row["example"] for row in rows] == (
            ["0.png", "1.png", "2.png"] if place == "photos" else ["0", "1", "2"]
        )
        assert [int(row["label"]) for row in rows] == expected.labels.tolist()
        for name in ("entropy", "epistemic", "aleatoric", "confidence"):
            np.testing.assert_allclose([float(r[name]) for r in rows], getattr(expected, name), rtol=1e-4, atol=1e-6)
    [row] = table(capsys, served, tmp_path / "photos" / "1.png")
    assert row["example"] == "1.png"


def test_a_table_goes_into_a_file_and_json(served: Path, pixels: np.ndarray, tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "x.npy", pixels)
    assert main(["predict", str(served), str(tmp_path / "x.npy"), "--out", str(tmp_path / "out.csv")]) == 0
    assert "predicted 3 examples" in capsys.readouterr().out
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4
    assert main(["predict", str(served), str(tmp_path / "x.npy"), "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["columns"]["label"]) == 3


def test_a_run_and_a_regression(regression_run: Path, tmp_path: Path, capsys: Any) -> None:
    x = bp.load("diabetes").examples("test").x[:4]
    np.save(tmp_path / "x.npy", x)
    rows = table(capsys, regression_run, tmp_path / "x.npy")
    assert {"example", "mean", "noise_std", "weights_std"} <= set(rows[0])
    expected = bp.predict(regression_run, x)
    np.testing.assert_allclose([float(row["mean"]) for row in rows], expected.mean, rtol=1e-4)


def test_what_is_no_such_example_is_refused(served: Path, pixels: np.ndarray, refused: Refused, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pixels[:, :4])
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "z.npz", z=pixels)
    (tmp_path / "empty").mkdir()
    (tmp_path / "wide").mkdir()
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "wide" / "a.png")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "a.png").write_bytes(b"GIF89a")
    (tmp_path / "linked").mkdir()
    os.symlink(tmp_path / "wide" / "a.png", tmp_path / "linked" / "a.png")
    (tmp_path / "rgb").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "rgb" / "a.png")
    for name, said in (
        ("x.npy", "has examples of shape (3, 4, 8, 1): expected (n, 8, 8, 1)"),
        ("o.npy", "cannot be read as an array"),
        ("z.npz", "holds z: expected an array 'inputs'"),
        ("none.npy", "cannot be read (No such file or directory)"),
        ("empty", "holds no .png"),
        ("wide", "a.png is 9 x 8, L: expected 8 x 8, L (grey, 8 bits)"),
        ("rgb", "a.png is 8 x 8, RGB: expected 8 x 8, L (grey, 8 bits)"),
        ("fake", "a.png cannot be read as an image"),
        ("linked", "symbolic link, which is not followed"),
        ("x.txt", "is of an unknown file type"),
    ):
        assert said in refused("predict", served, tmp_path / name), name
