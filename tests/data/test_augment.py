"""Augmentation: what it may do to an image, how often, and that it depends on (seed, epoch, example) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tfp_bprune._keras import tf
from tfp_bprune.data.augment import augment, draws
from tfp_bprune.data.splits import Info, Splits, from_arrays
from tfp_bprune.types import DataError

SIDE = 16


def images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, SIDE, SIDE, 1)).astype(np.uint8)


def moved(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """What an image must look like after a given move, written the slow way."""
    image = image[:, ::-1] if flip else image
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    return padded[down : down + SIDE, right : right + SIDE]


@pytest.mark.parametrize("kind", ["shift", "shift_flip"])
def test_each_image_is_one_of_its_own_moves_and_all_moves_are_equally_likely(kind: Any) -> None:
    n = 2000
    x = images(n)
    out = augment(kind, tf.constant(x), draws(kind, n, 3, tf.constant(0, tf.int64))).numpy()
    flips = (False, True) if kind == "shift_flip" else (False,)
    moves = [(d, r, f) for d in range(5) for r in range(5) for f in flips]
    counts = np.zeros(len(moves))
    for before, after in zip(x, out, strict=True):
        matches = [np.array_equal(moved(before, *move), after) for move in moves]
        assert sum(matches) == 1
        counts += matches
    # Pearson's statistic is chi-squared with len(moves) - 1 degrees of freedom; its 1 - 1e-6 quantile is below
    # df + 2 sqrt(13.8 df) + 2 * 13.8 (Laurent and Massart 2000, lemma 1, with exp(-13.8) = 1e-6).
    expected, df = n / len(moves), len(moves) - 1
    assert np.sum((counts - expected) ** 2 / expected) < df + 2 * np.sqrt(13.8 * df) + 27.6


def data(augmentation: Any, seed: int = 0) -> Splits:
    x, y = images(23), np.arange(23)
    info = Info("moves", "classification", (SIDE, SIDE, 1), 23)
    return from_arrays(
        (x, y), (x, y), info=info, batch_size=4, validation_fraction=0.0, seed=seed, augmentation=augmentation
    )


def seen(splits: Splits, epoch: int) -> dict[int, np.ndarray]:
    batches = splits.epochs(epoch).take(splits.steps)
    return {int(label): image.numpy() for x, y, *_ in batches for image, label in zip(x, y, strict=True)}


def test_the_moves_follow_from_seed_and_epoch_and_not_from_the_workers() -> None:
    whole = seen(data("shift_flip"), 1)
    shared = {k: v for rank in (0, 1) for k, v in seen(data("shift_flip").shard(rank, 2), 1).items()}
    assert whole.keys() == shared.keys() == set(range(23))
    assert all(np.array_equal(whole[k], shared[k]) for k in whole)
    for other in (seen(data("shift_flip"), 2), seen(data("shift_flip", seed=1), 1)):
        assert sum(not np.array_equal(whole[k], other[k]) for k in whole) > 10


def test_nothing_but_training_is_augmented() -> None:
    splits = data("shift_flip")
    assert np.array_equal(np.concatenate([x.numpy() for x, _ in splits.test]), images(23))
    plain = seen(data("none"), 0)
    assert all(np.array_equal(plain[i], image) for i, image in enumerate(images(23)))


def test_what_cannot_be_augmented_is_refused() -> None:
    rows = (np.zeros((5, 3), np.float32), np.zeros(5, np.int64))
    info = Info("rows", "classification", (3,), 2)
    with pytest.raises(
        DataError, match=r"'shift' needs images of at least 8 pixels a side, examples have shape \(3,\)"
    ):
        from_arrays(rows, rows, info=info, augmentation="shift")
    with pytest.raises(DataError, match="unknown augmentation 'rotate': expected one of none, shift, shift_flip"):
        from_arrays(rows, rows, info=info, augmentation="rotate")  # type: ignore[arg-type]
