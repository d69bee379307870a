"""A folder that TensorFlow Datasets prepared, looked at before it reads it: its `features.json` names Python classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tfp_bprune.files.reading import read_json
from tfp_bprune.types import DataError, RunError

_OURS_TO_IMPORT = re.compile(r"tensorflow_datasets\.core\.features\.[a-z0-9_.]+\.[A-Za-z0-9]+")
_KEY = "pythonClassName"


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
