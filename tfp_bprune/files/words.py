"""Words that the files of earlier versions use, in those of today."""

from __future__ import annotations

from typing import Any

from tfp_bprune.types import Json

_TODAY = {"twin": "layers"}


def renewed(entries: Json) -> Json:
    """`entries` with the names of today, for what a version before wrote.

    >>> renewed({"model": "mlp", "twin": "flipout"})
    {'model': 'mlp', 'layers': 'flipout'}
    """
    return {_TODAY.get(name, name): value for name, value in entries.items()}


def without_homes(config: Any) -> Any:
    """A Keras config without the modules of registered classes, which move; Keras finds these by their registered names.

    >>> without_homes({"module": "a.b", "class_name": "C", "registered_name": "a>C"})
    {'class_name': 'C', 'registered_name': 'a>C'}
    """
    if isinstance(config, list):
        return [without_homes(one) for one in config]
    if not isinstance(config, dict):
        return config
    gone = ("module",) if config.get("registered_name") else ()
    return {key: without_homes(value) for key, value in config.items() if key not in gone}
