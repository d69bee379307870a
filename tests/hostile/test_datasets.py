"""Folders of TensorFlow Datasets that a stranger prepared, or that were damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow_datasets as tfds

from tests.data.test_data import Shades
from tfp_bprune.data.splits import load
from tfp_bprune.types import DataError


def evil(place: Path) -> None:
    path = place / "features.json"
    content = json.loads(path.read_text())
    content["pythonClassName"] = "evilmod.Foo"
    path.write_text(json.dumps(content))


def evil_below(place: Path) -> None:
    path = place / "features.json"
    path.write_text(path.read_text().replace("tensorflow_datasets.core.features.image_feature.Image", "evilmod.Foo"))


def cut(place: Path) -> None:
    for path in place.glob("*.tfrecord*"):
        path.write_bytes(path.read_bytes()[:-9])


def missing(place: Path) -> None:
    for path in place.glob("*.tfrecord*"):
        path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a module of the writer's": evil,
    "the same below": evil_below,
    "records cut": cut,
    "records missing": missing,
    "garbage": lambda place: (place / "dataset_info.json").write_text("garbage") and None,
    "garbage features": lambda place: (place / "features.json").write_text("[" * 100_000) and None,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of small images."""
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("tfds")
    Shades(config="train_test", data_dir=folder).download_and_prepare()
    return folder


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_or_hostile_dataset_is_one_clear_error(
    kind: str, prepared: Path, copied: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, canary = copied(prepared), tmp_path / "canary"
    (tmp_path / "evilmod.py").write_text(f"open({str(canary)!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    [place] = [path.parent for path in folder.rglob("features.json")]
    DAMAGE[kind](place)
    with pytest.raises(DataError) as raised:
        load("shades/train_test", folder)
    assert "\n" not in str(raised.value)
    assert "evilmod" not in sys.modules
    assert not canary.exists()
