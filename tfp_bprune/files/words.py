"""Words that the files of earlier versions use, in those of today."""

from __future__ import annotations

from typing import Any, get_args

from tfp_bprune.types import Json

_TODAY = {"twin": "layers"}


def renewed(entries: Json) -> Json:
    """`entries` with the names of today, for what a version before wrote.

    >>> renewed({"model": "mlp", "twin": "flipout"})
    {'model': 'mlp', 'layers': 'flipout'}
    """
    return {_TODAY.get(name, name): value for name, value in entries.items()}


def begun_as(begun: Json | None, name: str, kind: Any) -> Any:
    """What a job that is there already has under `name`, said for it or the default of its time.

    Args:
      begun: its request or settings, of any version; None where no job is there.
      kind: a `Literal`.

    Returns:
      One of `kind`; None where it does not say one.

    >>> from tfp_bprune.types import Layers
    >>> begun_as({"twin": "local"}, "layers", Layers), begun_as({"layers": "other"}, "layers", Layers)
    ('local', None)
    """
    value = renewed(begun or {}).get(name)
    return value if value in get_args(kind) else None


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
