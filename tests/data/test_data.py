"""Data: what is loaded, how it is split, and how training walks through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfp_bprune.data.info import Info, info_of
from tfp_bprune.data.splits import Splits, from_arrays, load
from tfp_bprune.types import DataError


def numbered(n: int, batch_size: int = 4, validation_fraction: float = 0.0, seed: int = 0) -> Splits:
    """Examples whose value is their number, so that each can be told apart."""
    x = np.arange(n, dtype=np.float32).reshape(-1, 1)
    info = Info("numbered", "classification", (1,), max(n, 1))
    return from_arrays(
        (x, np.arange(n)),
        (x, np.arange(n)),
        info=info,
        batch_size=batch_size,
        validation_fraction=validation_fraction,
        seed=seed,
    )


def epoch_of(data: Splits, epoch: int) -> list[np.ndarray]:
    """The targets of each batch of one epoch."""
    return [batch[1].numpy() for batch in data.epochs(epoch).take(data.steps)]


def test_digits() -> None:
    data = load("digits")
    train, valid, test = (data.examples(name) for name in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (1294, 144, 359)
    assert (data.info.task, data.info.input_shape, data.info.classes) == ("classification", (8, 8, 1), 10)
    assert train.x.shape[1:] == (8, 8, 1)
    assert (train.x.min(), train.x.max()) == (0, 16)
    assert set(train.y) == set(range(10))


def test_diabetes() -> None:
    data = load("diabetes")
    info, train = data.info, data.examples("train")
    assert sum(len(data.examples(name)) for name in ("train", "valid", "test")) == 442
    assert (info.task, info.input_shape, info.classes) == ("regression", (10,), 1)
    # The network's first step makes features of about zero mean and unit variance, its last step target units.
    scaled = train.x * info.scale + info.offset
    np.testing.assert_allclose(scaled.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(scaled.std(0), 1, atol=0.1)
    np.testing.assert_allclose([info.target_loc, info.target_scale], [train.y.mean(), train.y.std()], rtol=1e-6)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_batches_of_evaluation_are_the_split_in_order(name: str) -> None:
    data = load(name)
    for split, batches in (("valid", data.valid), ("test", data.test)):
        x, y = (np.concatenate(parts) for parts in zip(*[(x.numpy(), y.numpy()) for x, y in batches], strict=True))
        np.testing.assert_array_equal(x, data.examples(split).x)
        np.testing.assert_array_equal(y, data.examples(split).y)
        assert x.dtype == np.float32


def test_the_test_split_never_depends_on_the_seed_and_the_fingerprint_only_on_the_data() -> None:
    one, other = load("digits", seed=1), load("digits", seed=2, validation_fraction=0.3)
    np.testing.assert_array_equal(one.examples("test").x, other.examples("test").x)
    assert one.info.fingerprint == other.info.fingerprint
    assert one.info.fingerprint != load("diabetes").info.fingerprint
    assert 0 < len(one.examples("valid")) < len(other.examples("valid"))


def test_one_changed_pixel_changes_the_fingerprint() -> None:
    x, y, info = np.zeros((4, 1), np.float32), np.zeros(4, int), Info("x", "classification", (1,), 2)
    changed = x.copy()
    changed[2, 0] = 1e-30
    prints = {from_arrays((a, y), (x, y), info=info, validation_fraction=0).info.fingerprint for a in (x, changed)}
    assert len(prints) == 2


@given(
    n=st.integers(1, 60),
    fraction=st.floats(0, 0.999),
    seed=st.integers(0, 5),
)
def test_validation_and_training_are_disjoint_and_lose_nothing(n: int, fraction: float, seed: int) -> None:
    held_out = round(fraction * n)
    if held_out == n or (fraction > 0 and held_out == 0):
        with pytest.raises(DataError, match="split of numbered is empty"):
            numbered(n, validation_fraction=fraction, seed=seed)
        return
    data = numbered(n, validation_fraction=fraction, seed=seed)
    train, valid = data.examples("train").y, data.examples("valid").y
    assert len(valid) == held_out
    assert sorted([*train, *valid]) == list(range(n))


def test_empty_splits_are_refused_by_name() -> None:
    x, y, info = np.zeros((4, 1), np.float32), np.zeros(4, int), Info("mine", "classification", (1,), 2)
    with pytest.raises(DataError, match="test split of mine is empty"):
        from_arrays((x, y), (x[:0], y[:0]), info=info, validation_fraction=0)
    with pytest.raises(DataError, match="training split of mine is empty"):
        from_arrays((x[:0], y[:0]), (x, y), info=info, validation_fraction=0)
    with pytest.raises(DataError, match="validation split of mine is empty"):
        from_arrays((x, y), (x, y), info=info, validation_fraction=0.1)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"validation_fraction": -0.1}, "validation_fraction"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(argument: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("digits", **argument)


@settings(max_examples=10)
@example(n=5, batch=1, workers=4, epoch=0)  # five examples in two global batches of four workers
@given(n=st.integers(1, 50), batch=st.integers(1, 12), workers=st.integers(1, 3), epoch=st.integers(0, 3))
def test_every_example_comes_once_an_epoch_in_near_equal_batches(n: int, batch: int, workers: int, epoch: int) -> None:
    data = numbered(n, batch)
    if n < workers:
        with pytest.raises(DataError, match="cannot be shared"):
            data.shard(0, workers)
        return
    shards = [epoch_of(data.shard(rank, workers), epoch) for rank in range(workers)]
    assert {len(batches) for batches in shards} == {data.shard(0, workers).steps}
    seen = [y for batches in shards for b in batches for y in b]
    assert sorted(seen) == list(range(n))
    sizes = [[len(b) for b in batches] for batches in zip(*shards, strict=True)]
    assert all(max(step) - min(step) <= 1 for step in sizes)
    totals = [sum(step) for step in sizes]
    assert max(totals) - min(totals) <= 1
    # A worker without examples would average the others' gradients with a zero.
    assert min(map(min, sizes)) >= 1
    assert max(map(max, sizes)) <= max(batch, 2)
    assert [data.shard(rank, workers).seen("train") for rank in range(workers)] == [
        sum(map(len, batches)) for batches in shards
    ]


@settings(max_examples=10)
@given(n=st.integers(3, 50), batch=st.integers(1, 12), workers=st.integers(2, 3))
def test_the_mean_of_the_workers_weighted_means_is_the_mean_of_the_global_batch(
    n: int, batch: int, workers: int
) -> None:
    data = numbered(n, batch)
    shards = [data.shard(rank, workers) for rank in range(workers)]
    for parts in zip(*(shard.epochs().take(shard.steps) for shard in shards), strict=True):
        means = [np.mean(y.numpy() * weight.numpy()) for _, y, weight in parts]
        together = np.concatenate([y.numpy() for _, y, _ in parts])
        np.testing.assert_allclose(np.mean(means), together.mean(), rtol=1e-5)


@pytest.mark.parametrize(("valid", "workers"), [(7, 2), (2001, 2), (2000, 3), (1, 2)])
def test_workers_share_the_validation_split_in_equally_many_batches(valid: int, workers: int) -> None:
    data = replace(numbered(30), parts=numbered(30).parts | {"valid": numbered(valid).examples("train")})
    shards = [data.shard(rank, workers) for rank in range(workers)]
    batches = [[y.numpy() for _, y in shard.valid] for shard in shards]
    assert len(set(map(len, batches))) == 1
    assert [sum(map(len, mine)) for mine in batches] == [shard.seen("valid") for shard in shards]
    together = sorted(y for mine in batches for y in np.concatenate(mine))
    everything = sorted(data.examples("valid").y)
    assert together == (everything if valid >= workers else sorted(everything * workers))


def test_the_order_of_an_epoch_follows_from_seed_and_epoch_alone() -> None:
    data = numbered(30, seed=5)
    orders = {(s, e): tuple(np.concatenate(epoch_of(numbered(30, seed=s), e))) for s in (5, 6) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    walked = np.concatenate([y.numpy() for _, y in data.epochs(0).take(2 * data.steps)])
    np.testing.assert_array_equal(walked, orders[5, 0] + orders[5, 1])  # an unbroken walk sees what restarts see
    assert tuple(np.concatenate(epoch_of(data, 0))) == orders[5, 0]


def test_train_is_one_epoch_shuffled_anew_each_time() -> None:
    data = numbered(30)
    train = data.train
    passes = [np.concatenate([y.numpy() for _, y in train]) for _ in range(2)]
    assert [sorted(p) for p in passes] == [list(range(30))] * 2
    assert not np.array_equal(*passes)
    assert len(train) == data.steps


def test_sharding_keeps_the_number_of_examples_of_the_whole_job() -> None:
    # N of the evidence lower bound is the job's, whoever asks.
    data = load("digits")
    assert data.shard(1, 3).train_size == data.train_size
    assert data.shard(1, 3).steps < data.steps


def test_an_unknown_name_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset 'no_such_data' .* digits, diabetes.* or a name such as mnist"):
        load("no_such_data", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["two words", "mnist/", "mnist:99.9.9", "../x", ""])
def test_a_name_that_cannot_be_one_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset"):
        load(name, data_dir=tmp_path)


@pytest.mark.parametrize("by_environment", [False, True])
def test_absent_data_names_dataset_folder_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, by_environment: bool
) -> None:
    (tmp_path / "mnist" / "3.0.1").mkdir(parents=True)  # begun once, and not finished
    if by_environment:
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load("mnist", None if by_environment else tmp_path)
    message = str(caught.value)
    assert "'mnist'" in message
    assert f"is not in {tmp_path}" in message
    assert f"tfds build mnist --data_dir {tmp_path}" in message
    assert caplog.text == ""


class Shades(tfds.core.GeneratorBasedBuilder):
    """Small grey and colour images of which each says its own number; the configs differ in their splits."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        tfds.core.BuilderConfig(name=name) for name in ("train_test", "train_validation", "only_test", "captions")
    )

    def _info(self) -> Any:
        label = (
            tfds.features.Text() if self.builder_config.name == "captions" else tfds.features.ClassLabel(num_classes=3)
        )
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(4, 4, 3)), "label": label}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        names = self.builder_config.name.split("_") if "_" in self.builder_config.name else ["train"]
        return {name: self._generate_examples(20 * i) for i, name in enumerate(n for n in names if n != "only")}

    def _generate_examples(self, start: int) -> Any:
        text = self.builder_config.name == "captions"
        for i in range(start, start + 20):
            yield i, {"image": np.full((4, 4, 3), i, np.uint8), "label": "a shade" if text else i % 3}


@pytest.fixture
def shades(tmp_path: Path) -> Any:
    """Prepares one config of `Shades` on disk and returns how to name it and where it is."""

    def prepare(config: str) -> tuple[str, Path]:
        Shades(config=config, data_dir=tmp_path).download_and_prepare()
        return f"shades/{config}", tmp_path

    tfds.disable_progress_bar()
    return prepare


def images_of(data: Splits, *names: str) -> list[int]:
    return sorted(int(x[0, 0, 0]) for name in names for x in data.examples(name).x)


@pytest.mark.parametrize("config", ["train_test", "train_validation"])
def test_a_prepared_dataset_is_read_whole(shades: Any, config: str) -> None:
    data = load(*shades(config), validation_fraction=0.2)
    assert images_of(data, "train", "valid") == list(range(20))
    assert images_of(data, "test") == list(range(20, 40))
    assert (data.info.input_shape, data.info.classes, data.info.task) == ((4, 4, 3), 3, "classification")
    assert all(
        y == int(x[0, 0, 0]) % 3 for x, y in zip(data.examples("train").x, data.examples("train").y, strict=True)
    )
    assert (data.info.scale, data.info.offset) == (1 / 126, -1.0)


def test_a_dataset_with_one_split_is_parted_not_read_twice(shades: Any) -> None:
    # Scored on what it was trained on, a network would look better than it is.
    data = load(*shades("only_test"), validation_fraction=0.25)
    assert images_of(data, "train", "valid", "test") == list(range(20))


def test_what_is_no_image_classification_is_refused(shades: Any) -> None:
    with pytest.raises(DataError, match="is not an image classification"):
        load(*shades("captions"))


def test_arrays_describe_themselves() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal([3.0, -50.0, 7.0], [0.1, 20.0, 0.0], (200, 3))
    info = info_of(table, np.arange(200) % 4)
    assert (info.task, info.input_shape, info.classes) == ("classification", (3,), 4)
    scaled = table * info.scale + info.offset
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(0), [1, 1, 0], atol=1e-9)  # a constant feature says nothing
    images = rng.integers(0, 256, (20, 4, 4, 1), np.uint8)
    info = info_of(images, rng.normal(size=20))
    assert (info.task, info.input_shape, info.classes) == ("regression", (4, 4, 1), 1)
    scaled = images * info.scale + info.offset
    np.testing.assert_allclose([scaled.mean(), scaled.std()], [0, 1], atol=1e-9)


def test_arrays_need_no_description() -> None:
    x, y = np.random.default_rng(0).normal(5, 3, (40, 2)), np.arange(40) % 3
    data = from_arrays((x[:30], y[:30]), (x[30:], y[30:]))
    assert (data.info.name, data.info.input_shape, data.info.classes) == ("arrays", (2,), 3)
    np.testing.assert_allclose((x[:30] * data.info.scale + data.info.offset).mean(0), 0, atol=1e-9)


_X, _Y = np.ones((6, 2)), np.arange(6) % 2


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (_X, _Y[:5], r"expected \[n, ...\] and \[n\]"),
        (_X[:, 0], _Y, r"expected \[n, ...\] and \[n\]"),
        (np.full((6, 2), np.nan), _Y, "examples that are NaN or infinite"),
        (_X, np.full(6, np.inf), "targets that are NaN or infinite"),
        (_X, _Y - 1, "classes from -1 to 0: expected 0 to 0"),
        (_X, _Y.astype(str), "targets of type <U21: expected numbers"),
        (_X[:0], _Y[:0], "no examples"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(x: np.ndarray, y: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        info_of(x, y)


def test_test_examples_must_be_as_the_training_examples() -> None:
    for test, said in (((_X[:, :1], _Y), "expected \\(2,\\)"), ((_X, _Y + 1), "classes from 1 to 2: expected 0 to 1")):
        with pytest.raises(DataError, match=said):
            from_arrays((_X, _Y), test, validation_fraction=0)
    for wrong in ({"batch_size": 0}, {"seed": -1}):
        with pytest.raises(DataError, match="must be at least"):
            from_arrays((_X, _Y), (_X, _Y), **wrong)
    with pytest.raises(DataError, match="of type float64: expected whole numbers"):
        from_arrays((_X, _Y / 1), (_X, _Y), info=Info("mine", "classification", (2,), 2), validation_fraction=0)
