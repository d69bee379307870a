"""What TensorFlow Datasets prepared on disk; a folder is looked at first: its `features.json` names Python classes."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import errors_alone, tf
from tfp_bprune.data.datasets import DATASETS, hold_out
from tfp_bprune.data.info import Info
from tfp_bprune.files.reading import read_json
from tfp_bprune.types import DataError, RunError

_OURS_TO_IMPORT = re.compile(r"tensorflow_datasets\.core\.features\.[a-z0-9_.]+\.[A-Za-z0-9]+")
_NAME = re.compile(r"\w+(/[\w.=,+-]+)*(:[\d*]+(\.[\d*]+)*(/[\w.=,+-]+)*)?")
_KEY = "pythonClassName"
_READ_AT_ONCE = 1000


def prepared(name: str, data_dir: Path) -> tuple[Any, Any, Info]:
    """An image classification that TensorFlow Datasets prepared: train, test and its description.

    Raises:
      DataError: it is unknown, absent, damaged, or not an image classification.
    """
    builder = prepared_builder(name, data_dir)
    _, label = image_and_label(builder)
    source, held_out = sources(builder)
    x, y = _read(builder, source)
    train, test = ((x, y), _read(builder, held_out)) if held_out else hold_out(x, y)
    return train, test, info_of_images(name, x.shape[1:], x.dtype, label.num_classes)


def sources(builder: Any) -> tuple[str, str | None]:
    """The splits to train on and to test on; None where the second has to be taken out of the first."""
    splits = builder.info.splits
    source = "train" if "train" in splits else next(iter(splits))
    return source, next((s for s in ("test", "validation") if s in splits and s != source), None)


def info_of_images(name: str, shape: tuple[int, ...], dtype: Any, classes: int) -> Info:
    """What a network needs to know of them."""
    if dtype != np.uint8:
        scale, offset = 1.0, 0.0
    else:  # pixels / 126 as in Blundell et al. 2015; colour images are centred besides
        scale, offset = 1 / 126, (-1.0 if shape[-1] == 3 else 0.0)
    return Info(name, "classification", tuple(shape), classes, scale, offset)


def prepared_builder(name: str, data_dir: Path) -> Any:
    """The dataset's builder, its folder looked at first.

    Raises:
      DataError: it is unknown, absent or damaged.
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    if not _NAME.fullmatch(name):  # of another form it could name a repository of elsewhere, or a folder
        raise DataError(f"dataset {name!r} is none of NAME, NAME/CONFIG and NAME:VERSION: {_expected()}")
    check_prepared(data_dir / re.split("[:/]", name)[0])
    try:
        with errors_alone(logging.getLogger("absl")):  # what is wrong with the folder is said below
            builder = tfds.builder(name, data_dir=str(data_dir))
            is_whole = builder.is_prepared()
    except tfds.core.registered.DatasetNotFoundError as error:
        raise DataError(
            f"there is no dataset {name!r} in {data_dir} nor in TensorFlow Datasets' catalogue: {_expected()}"
        ) from error
    except Exception as error:  # a malformed name, an unknown configuration or version, a damaged folder
        said = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"dataset {name!r} cannot be loaded ({said[0]}): {_expected()}") from error
    if not is_whole:
        raise DataError(
            f"dataset {name!r} is not in {data_dir}: give the folder that holds it (--data-dir or TFDS_DATA_DIR), "
            f"or fetch it with: tfds build {name} --data_dir {data_dir}"
        )
    return builder


def _expected() -> str:
    return f"expected one of {', '.join(DATASETS)} or a name such as mnist, fashion_mnist, cifar10"


def image_and_label(builder: Any) -> tuple[Any, Any]:
    """The features of an example's image and of its class.

    Raises:
      DataError: it is not an image classification, or its images have no one size.
    """
    import tensorflow_datasets as tfds

    keys, features = builder.info.supervised_keys, builder.info.features
    if keys is not None and len(keys) == 2:
        image, label = features[keys[0]], features[keys[1]]
        if isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel):
            if None in image.shape:
                raise DataError(
                    f"images of {builder.name} have no fixed size {image.shape}: expected one shape for all examples"
                )
            return image, label
    raise DataError(
        f"{builder.name} is not an image classification: expected supervised keys (image, class label), got {keys}"
    )


def _read(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    try:
        dataset = builder.as_dataset(split=split, as_supervised=True, batch_size=_READ_AT_ONCE)
        batches = [(np.asarray(x), np.asarray(y)) for x, y in tfds.as_numpy(dataset)]
    except (tf.errors.OpError, OSError, ValueError, AssertionError) as error:  # records that are cut or missing
        said = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"split {split!r} of {builder.name} cannot be read ({said[0]}): prepare the dataset anew"
        ) from error
    if not batches:
        raise DataError(f"split {split!r} of {builder.name} is empty: prepare the dataset anew")
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def check_prepared(folder: Path) -> None:
    """Refuses the folder of a dataset that would have modules of the writer's choice imported.

    Raises:
      DataError: naming the class, or a file that cannot be read.
    """
    for path in [*folder.glob("*/features.json"), *folder.glob("*/*/features.json")]:
        try:
            content = read_json(path)
        except RunError as error:
            raise DataError(f"{error}; prepare the dataset anew") from error
        for name in _classes(content):
            if not isinstance(name, str) or not _OURS_TO_IMPORT.fullmatch(name):
                raise DataError(
                    f"{path} names the class {str(name)[:100]!r}: expected one of tensorflow_datasets.core.features"
                )


def _classes(node: Any) -> list[Any]:
    """What stands under the key that names a class, at any depth."""
    below = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    here = [node[_KEY]] if isinstance(node, dict) and _KEY in node else []
    return [*here, *(name for item in below for name in _classes(item))]
