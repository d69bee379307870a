"""Words that the files of earlier versions use, in those of today."""

from __future__ import annotations

from tfp_bprune.types import Json

_TODAY = {"twin": "layers"}


def renewed(entries: Json) -> Json:
    """`entries` with the names of today, for what a version before wrote.

    >>> renewed({"model": "mlp", "twin": "flipout"})
    {'model': 'mlp', 'layers': 'flipout'}
    """
    return {_TODAY.get(name, name): value for name, value in entries.items()}
