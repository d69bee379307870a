"""Commands on a run that was trained on arrays: its data comes in a file, which is looked at before it is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.cli.conftest import Refused
from tfp_bprune.cli.main import main
from tfp_bprune.types import DataError


@pytest.fixture(scope="module")
def table() -> tuple[np.ndarray, np.ndarray]:
    """Three features, the class by the first."""
    x = np.random.default_rng(0).normal(size=(90, 3)).astype("float32")
    return x, (x[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def run(table: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on the first 60 rows."""
    x, y = table
    data = bp.from_arrays((x[:60], y[:60]), (x[60:], y[60:]), batch_size=30, validation_fraction=0.25)
    path = tmp_path_factory.mktemp("runs") / "table"
    model = bp.build("mlp", data.info, options={"hidden": (4,)})
    bp.fit(model, data, settings=bp.Settings(epochs=1), out=path, progress=False)
    return path


@pytest.fixture
def files(table: Any, tmp_path: Path) -> dict[str, Path]:
    """The test split in every form, and the whole data."""
    (x, y), places = table, {kind: tmp_path / f"test.{kind}" for kind in ("npz", "csv")}
    np.savez(places["npz"], x=x[60:], y=y[60:])
    lines = [",".join(f"{value!r}" for value in map(float, row)) for row in x[60:]]
    places["csv"].write_text(
        "a,b,c,y\n" + "".join(f"{line},{label}\n" for line, label in zip(lines, y[60:], strict=True))
    )
    places["first"] = tmp_path / "first.csv"
    places["first"].write_text(
        "label,a,b,c\n" + "".join(f"{k},{line}\n" for line, k in zip(lines, y[60:], strict=True))
    )
    places["whole"] = tmp_path / "whole.npz"
    np.savez(places["whole"], x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return places


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    capsys.readouterr()
    assert main([*map(str, words), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_of_arrays_is_scored_on_a_file(run: Path, files: Any, table: Any, capsys: Any, tmp_path: Path) -> None:
    x, y = table
    bp.export(bp.load_model(run).model, tmp_path / "export")
    [found] = bp.reload(tmp_path / "export", x[60:])
    right = float((found.outputs["probabilities"].argmax(1) == y[60:]).mean())
    for kind in ("npz", "csv", "first", "whole"):
        scores = answer(capsys, "evaluate", run, "--data", files[kind])
        assert scores["accuracy"] == pytest.approx(right, abs=1e-6), kind
    valid = answer(capsys, "evaluate", run, "--data", files["whole"], "--split", "valid")
    assert valid["accuracy"] in [i / 15 for i in range(16)]  # of 60 a quarter


def test_sweep_and_prune_take_the_file(run: Path, files: Any, capsys: Any, copied: Callable[[Path], Path]) -> None:
    swept = answer(capsys, "sweep", copied(run), "--data", files["npz"], "--sparsity", 0.5, "--samples", 2)
    assert [row["requested"] for row in swept["rows"]] == [0.5]
    assert swept["rows"][0]["dataset"] == "arrays"


def test_without_the_file_it_says_what_to_give(run: Path, refused: Refused) -> None:
    for command in ("evaluate", "sweep", "search"):
        assert "give its data with --data FILE.npz" in refused(command, run)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"x": np.zeros((3, 3)), "z": np.zeros(3)}, "holds x, z: expected the arrays x and y, or x_train"),
        ({"x": np.zeros((3, 5)), "y": np.zeros(3, int)}, "has examples of shape (3, 5): expected (n, 3)"),
        ({"x": np.zeros((3, 3)), "y": np.arange(2)}, "has examples (3, 3) and targets (2,)"),
        ({"x": np.full((3, 3), np.nan), "y": np.zeros(3, int)}, "holds numbers that are NaN or infinite"),
        ({"x": np.zeros((3, 3)), "y": np.full(3, 7)}, "7"),
        ({"x": np.array([object()] * 3), "y": np.zeros(3, int)}, "cannot be read as an array"),
        (b"PK\x03\x04 nothing", "cannot be read as arrays"),
    ],
)
def test_a_npz_that_does_not_fit_is_refused(
    run: Path, refused: Refused, tmp_path: Path, contents: Any, said: str
) -> None:
    path = tmp_path / "bad.npz"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        np.savez(path, **contents)
    line = refused("evaluate", run, "--data", path)
    assert said in line
    assert str(path) in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no rows of numbers"),
        ("a,b,c,y\n", "has no rows of numbers"),
        ("1,2,3\n", "has 3 columns: expected 3 features and a target"),
        ("a,b,c,y\n1,2,3,0\n1,2,3\n", "row 3, has 3 cells: expected 4 finite numbers"),
        ("a,b,c,y\n1,2,three,0\n", "row 2, has 'three': expected 4 finite numbers"),
        ("1,2,inf,0\n1,2,3,0\n", "row 1, has 'inf': expected 4 finite numbers"),
        ("1,2,3,0.5\n", "expected whole numbers from 0 on"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    run: Path, refused: Refused, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert said in refused("evaluate", run, "--data", path)


def test_other_training_data_is_refused(run: Path, table: Any, refused: Refused, tmp_path: Path) -> None:
    x, y = table
    for name, begin in (("other", 1), ("fewer", 30)):
        shifted = np.roll(x[:60], 1, axis=0)[: 60 if begin == 1 else 20]
        np.savez(tmp_path / f"{name}.npz", x_train=shifted, y_train=y[: len(shifted)], x_test=x[60:], y_test=y[60:])
    assert "fingerprints differ" in refused("evaluate", run, "--data", tmp_path / "other.npz")
    assert "20 training examples: expected those that the run was trained on, 45 or more" in refused(
        "evaluate", run, "--data", tmp_path / "fewer.npz"
    )


def test_a_split_that_the_file_does_not_have_is_refused(run: Path, files: Any, refused: Refused) -> None:
    line = refused("evaluate", run, "--data", files["npz"], "--split", "valid")
    assert "has no split 'valid' here: expected one of test" in line
    assert "is of an unknown file type" in refused("evaluate", run, "--data", run / "manifest.json")
    assert "cannot be read (No such file" in refused("evaluate", run, "--data", files["npz"].with_name("none.npz"))


def test_an_info_comes_back_from_json() -> None:
    rng = np.random.default_rng(0)
    for y in (np.arange(6) % 3, rng.normal(size=6), rng.normal(size=(6, 2)), np.arange(6) % 2 == 0):
        info = bp.info_of(rng.normal(size=(6, 4)), y)
        assert bp.Info.from_json(json.loads(json.dumps(info.to_json()))) == info
    several = bp.info_of(
        {"a": rng.normal(size=(6, 2)), "b": rng.normal(size=(6, 3))}, {"u": np.arange(6), "v": rng.normal(size=6)}
    )
    assert bp.Info.from_json(json.loads(json.dumps(several.to_json()))) == several
    for damage in ({"classes": "many"}, {"task": "guess"}, {"input_shape": [-1]}, {"name": None}):
        with pytest.raises(DataError, match="the description of the data is not as it was written"):
            bp.Info.from_json(info.to_json() | damage)
