"""Random shifts and mirror images of training examples, stateless like all other noise of training.

What happens to an example is a function of (seed, epoch, example) alone: the same on one worker or many, and the
same again when a killed run is resumed.
"""

from __future__ import annotations

from typing import Any, get_args

from tfp_bprune._keras import tf
from tfp_bprune.types import Augmentation, DataError

_STREAM = 0x5EED  # keeps these numbers apart from those that order an epoch
_PART_SHIFTED = 8  # a shift is by at most 1/8 of the side: 4 pixels of 32


def check_augmentation(kind: str, shape: tuple[int, ...]) -> None:
    """Refuses an augmentation that there is not, or that examples of `shape` cannot have.

    Raises:
      DataError: unknown, or asked for on examples that are no images.
    """
    if kind not in get_args(Augmentation):
        raise DataError(f"unknown augmentation {kind!r}: expected one of {', '.join(get_args(Augmentation))}")
    if kind != "none" and (len(shape) != 3 or min(shape[:2]) < _PART_SHIFTED):
        raise DataError(
            f"augmentation {kind!r} needs images of at least {_PART_SHIFTED} pixels a side, examples have shape {shape}"
        )


def draws(kind: Augmentation, examples: int, seed: int, epoch: Any) -> Any:
    """The numbers in [0, 1) that decide the augmentation of every example in one epoch [examples, 3]."""
    width = 0 if kind == "none" else 3
    key = tf.stack([tf.cast(seed, tf.int64) ^ _STREAM, tf.cast(epoch, tf.int64)])
    return tf.random.stateless_uniform([examples, width], key)


def augment(kind: Augmentation, images: Any, numbers: Any) -> Any:
    """Images [b, height, width, channels] moved by up to an eighth of their sides, what moves in being a reflection;
    with "shift_flip" half of them mirrored left to right besides (as is usual on CIFAR, He et al. 2016, section 4.2).

    Args:
      numbers: rows of `draws` [b, 3].
    """
    if kind == "none":
        return images
    height, width = images.shape[1:3]
    down, right = height // _PART_SHIFTED, width // _PART_SHIFTED
    rows = tf.range(height)[None] + _offsets(numbers[:, 0], down)
    columns = tf.range(width)[None]
    if kind == "shift_flip":
        columns = tf.where(numbers[:, 2:] < 0.5, columns, width - 1 - columns)
    columns = columns + _offsets(numbers[:, 1], right)
    padded = tf.pad(images, [[0, 0], [down, down], [right, right], [0, 0]], "SYMMETRIC")
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _offsets(numbers: Any, most: int) -> Any:
    return tf.cast(numbers[:, None] * (2 * most + 1), tf.int32)
