"""What TensorFlow Datasets prepared, as splits whose examples stay on disk."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.data.datasets import DATASETS, hold_out
from tfp_bprune.data.info import Info
from tfp_bprune.data.prepared import image_and_label, info_of_images, prepared_builder, sources
from tfp_bprune.data.records import Decode, Records, StoredSplit
from tfp_bprune.data.splits import Split, held_out
from tfp_bprune.types import DataError

_FILES_AT_ONCE, _BLOCK = 16, 16  # as `tfds.ReadConfig` has them by default


def streamed(name: str, data_dir: Path, fraction: float, seed: int) -> tuple[dict[str, Split], Info]:
    """An image classification that TensorFlow Datasets prepared: its splits and its description.

    The splits have the examples that they have in memory, in the same order. The fingerprint is of the lengths and checksums of
    all records, for which no example is read.

    Raises:
      DataError: as `prepared`; or it is held in memory, its files are no TFRecords, or they hold another number of examples
        than its description says.
    """
    if name in DATASETS:
        raise DataError(f"dataset {name!r} is made in memory: expected one of TensorFlow Datasets, or streaming=False")
    builder = prepared_builder(name, data_dir)
    image, label = image_and_label(builder)
    source, other = sources(builder)
    train = _records(builder, source)
    test = train if other is None else _records(builder, other)
    rows, test_rows = (_order(builder, records) for records in (train, test))
    if other is None:
        (rows, _), (test_rows, _) = hold_out(rows, rows)
    valid, kept = held_out(name, len(rows), fraction, seed, len(test_rows))
    decode = _decoder(builder)
    parts: dict[str, Split] = {
        "train": StoredSplit("train", train, rows[kept], decode),
        "valid": StoredSplit("valid", train, rows[valid], decode),
        "test": StoredSplit("test", test, test_rows, decode),
    }
    digest = hashlib.sha256("/".join([train.digest, test.digest, str(image.shape)]).encode()).hexdigest()
    info = info_of_images(name, tuple(image.shape), image.np_dtype, label.num_classes)
    return parts, replace(info, fingerprint=digest)


def _records(builder: Any, split: str) -> Records:
    described = builder.info.splits[split]
    form = str(getattr(builder.info.file_format, "value", builder.info.file_format))
    if form != "tfrecord":
        raise DataError(f"dataset {builder.name!r} is stored as {form}: expected tfrecord to stream it")
    records = Records([Path(path) for path in described.filepaths])
    if len(records) != described.num_examples or not len(records):
        raise DataError(
            f"split {split!r} of {builder.name} has {len(records):,} records: expected {described.num_examples:,}, as "
            "dataset_info.json says, and at least one; prepare the dataset anew"
        )
    return records


def _order(builder: Any, records: Records) -> np.ndarray:
    """The numbers of the records in the order in which TensorFlow Datasets reads them: from several files in turns."""
    begins = np.cumsum([0, *records.counts[:-1]], dtype=np.int64)
    files = tf.data.Dataset.from_tensor_slices((begins, begins + records.counts))
    together = 1 if builder.info.disable_shuffling else _FILES_AT_ONCE
    numbers = files.interleave(tf.data.Dataset.range, cycle_length=together, block_length=_BLOCK)
    return np.concatenate(list(numbers.batch(2**16).as_numpy_iterator()))


def _decoder(builder: Any) -> Decode:
    features, (image, label) = builder.info.features, builder.info.supervised_keys

    def decode(record: Any) -> tuple[Any, Any]:
        example = features.deserialize_example(record)
        return example[image], tf.cast(example[label], tf.int64)

    return decode
