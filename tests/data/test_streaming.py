"""Examples that stay on disk: the batches that they give in memory, in memory that does not grow with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

import tfp_bprune as bp
from tests.data.test_data import Shades
from tests.training.test_resume import Interrupt, assert_bit_identical
from tfp_bprune._keras import tf
from tfp_bprune.cli.main import main
from tfp_bprune.data.records import Records
from tfp_bprune.data.splits import load
from tfp_bprune.types import DataError


class Noise(tfds.core.GeneratorBasedBuilder):
    """Images of noise, which no compression makes smaller, in several files."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("small", "many", "large"))

    @property
    def _side(self) -> int:
        return 128 if self.builder_config.name == "large" else 8

    def _info(self) -> Any:
        image = tfds.features.Image(shape=(self._side, self._side, 3))
        features = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(257, 1), "test": self._generate_examples(20, 2)}

    def _generate_examples(self, count: int, seed: int) -> Any:
        random = np.random.default_rng(seed)
        for i in range(count):
            yield i, {"image": random.integers(0, 256, (self._side, self._side, 3), np.uint8), "label": i % 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Noise`, small, and two configs of `Shades`, prepared."""
    tfds.disable_progress_bar()
    made = tmp_path_factory.mktemp("tfds")
    for config, shards in (("small", 3), ("many", 20)):
        download = tfds.download.DownloadConfig(num_shards=shards)
        Noise(config=config, data_dir=made).download_and_prepare(download_config=download)
    for config in ("train_test", "only_test", "captions"):
        Shades(config=config, data_dir=made).download_and_prepare()
    return made


def both(name: str, folder: Path, **options: Any) -> list[Any]:
    """The data on disk, and in memory."""
    return [load(name, folder, streaming=streaming, **options) for streaming in (True, False)]


def assert_equal_batches(one: Any, other: Any, count: int | None = None) -> None:
    pairs = list(zip(one.take(count or -1), other.take(count or -1), strict=True))
    assert pairs
    for ours, theirs in pairs:
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("augmentation", ["none", "shift_flip"])
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_those_in_memory(folder: Path, augmentation: Any, workers: int) -> None:
    options = {"batch_size": 16, "validation_fraction": 0.2, "seed": 5, "augmentation": augmentation}
    ours, theirs = both("noise/small", folder, **options)
    assert len(list(folder.glob("noise/small/1.0.0/*train.tfrecord*"))) == 3
    assert (ours.info.input_shape, ours.info.classes, ours.train_size) == ((8, 8, 3), 3, theirs.train_size)
    assert (ours.info.scale, ours.info.offset) == (theirs.info.scale, theirs.info.offset)
    for rank in range(workers):
        mine, same = (data.shard(rank, workers) for data in (ours, theirs))
        assert_equal_batches(mine.epochs(3), same.epochs(3), 2 * ours.steps)
        assert_equal_batches(mine.valid, same.valid)
    assert_equal_batches(ours.test, theirs.test)


def test_shards_have_every_example_once(folder: Path) -> None:
    data = load("noise/small", folder, batch_size=16, validation_fraction=0.0, streaming=True)
    seen = [x.numpy() for rank in range(3) for x, *_ in data.shard(rank, 3).epochs(1).take(data.shard(0, 3).steps)]
    images = {one.tobytes() for batch in seen for one in batch}
    assert sum(map(len, seen)) == len(images) == 257


def test_the_order_is_that_of_files_read_in_turns(folder: Path) -> None:
    assert len(list(folder.glob("noise/many/1.0.0/*train.tfrecord*"))) == 20  # more than are read at once
    ours, theirs = both("noise/many", folder, validation_fraction=0.0)
    np.testing.assert_array_equal(ours.examples("train").x, theirs.examples("train").x)


def test_splits_are_those_in_memory_and_arrays_are_read_where_they_are_asked_for(folder: Path) -> None:
    for name in ("shades/train_test", "shades/only_test"):
        ours, theirs = both(name, folder, validation_fraction=0.2)
        for split in ("train", "valid", "test"):
            one, other = ours.examples(split), theirs.examples(split)
            np.testing.assert_array_equal(one.x, other.x)
            np.testing.assert_array_equal(one.y, other.y)
            np.testing.assert_array_equal(one.rows(slice(1, 3)).y, other.rows(slice(1, 3)).y)
            assert len(one) == len(other)
    assert "on disk" in repr(ours.examples("train"))
    assert "shades/only_test" in repr(ours)


def test_a_training_ends_in_the_bits_of_one_in_memory_also_after_a_kill(folder: Path, tmp_path: Path) -> None:
    def run(data: Any, out: str, *callbacks: Any, resume: bool = False) -> Any:
        model = bp.build("mlp", data.info, options={"hidden": (6,)})
        settings = bp.Settings(epochs=3)
        bp.fit(model, data, settings=settings, out=tmp_path / out, callbacks=callbacks, resume=resume, progress=False)
        return model

    ours, theirs = both("noise/small", folder, batch_size=64, validation_fraction=0.2)
    streamed, held = run(ours, "whole"), run(theirs, "memory")
    for a, b in zip(streamed.get_weights(), held.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    with pytest.raises(InterruptedError):
        run(ours, "parts", Interrupt(epoch=1, batch=1))
    run(ours, "parts", resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")


def test_commands_train_and_evaluate_what_stays_on_disk(folder: Path, tmp_path: Path) -> None:
    words = ["train", "--dataset", "noise/small", "--data-dir", str(folder), "--streaming", "--hidden", "6"]
    assert main([*words, "--epochs", "1", "--validation-fraction", "0.2", "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())


def damaged(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(sorted((copy / "noise/small/1.0.0").glob("*train.tfrecord*"))[1])
    return copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "is cut after [0-9]+ records: prepare the dataset anew",
        ),
        (lambda path: path.write_bytes(b"\xff" * 40), "is cut after 0 records"),
        (lambda path: path.write_bytes(b""), "expected 257, as dataset_info.json says"),
        (lambda path: path.unlink(), r"cannot be read \(No such file"),
    ],
)
def test_damaged_files_are_refused(folder: Path, tmp_path: Path, change: Callable[[Path], None], said: str) -> None:
    with pytest.raises(DataError, match=said):
        load("noise/small", damaged(folder, tmp_path, change), streaming=True)


def test_what_is_in_a_record_is_part_of_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    def change(path: Path) -> None:
        first, *_ = tf.data.TFRecordDataset(str(path))
        records = [r.numpy() for r in tf.data.TFRecordDataset(str(path))]
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in [*records[1:], first.numpy()]:
                writer.write(record)

    copy = damaged(folder, tmp_path, change)
    found = [load("noise/small", place, streaming=True).info.fingerprint for place in (folder, folder, copy)]
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_streamed_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="'digits' is made in memory"):
        load("digits", streaming=True)
    with pytest.raises(DataError, match="is not an image classification"):
        load("shades/captions", folder, streaming=True)
    Shades(config="train_test", data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(DataError, match="is stored as array_record: expected tfrecord to stream it"):
        load("shades/train_test", tmp_path, streaming=True)


def test_a_file_that_gets_shorter_meanwhile_is_said(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    shutil.copy(sorted((folder / "noise/small/1.0.0").glob("*train.tfrecord*"))[0], path)
    records = Records([path])
    path.write_bytes(b"")
    with pytest.raises(DataError, match="has changed while it is read"):
        records.read(np.array([3]))


PEAK = """
import sys
from pathlib import Path
import tfp_bprune as bp
data = bp.load("noise/large", sys.argv[1], streaming=True, batch_size=64, validation_fraction=0.001)
model = bp.build("mlp", data.info, options={"hidden": (4,)})
bp.fit(model, data, settings=bp.Settings(epochs=1), progress=False)
[peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(data.train_size, int(peak.split()[1]) / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    tfds.disable_progress_bar()
    Noise(config="large", data_dir=tmp_path).download_and_prepare()
    place = tmp_path / "noise/large/1.0.0"
    [path], described = place.glob("*train.tfrecord*"), json.loads((place / "dataset_info.json").read_text())
    once, peaks = path.read_bytes(), []
    for size in (0.5e9, 1e9, 4.1e9):
        times = round(size / len(once))
        with path.open("wb") as file:
            for _ in range(times):
                file.write(once)
        [train] = [split for split in described["splits"] if split["name"] == "train"]
        train["shardLengths"], train["numBytes"] = [str(257 * times)], str(len(once) * times)
        (place / "dataset_info.json").write_text(json.dumps(described))
        words = [sys.executable, "-c", PEAK, str(tmp_path)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        assert int(said[0]) == pytest.approx(257 * times, rel=0.01)
        peaks.append(float(said[1]))
        print(f"{size / 1e9:.1f} GB: {peaks[-1]:.0f} MiB at the peak")
    path.unlink()
    assert max(peaks) - min(peaks) < 150  # MiB; the data grew by 3,600 MB
