"""Writing so that a reader sees the old file or the new one, never a part, and never outside of the folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.files import aside
from tfp_bprune.files.aside import beside as beside
from tfp_bprune.files.aside import held as held
from tfp_bprune.files.aside import put_in_place as put_in_place
from tfp_bprune.files.reading import folder_below, parse, parts_of
from tfp_bprune.types import Json, RunError

_NO_HASH = "0" * 64


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
      RunError: the folder cannot be written to.
    """
    write_below(path.parent, path.name, content)


def write_below(folder: Path, name: str, content: bytes) -> None:
    """As `write_atomically`, to `folder/name`; no link below `folder` is followed.

    Raises:
      RunError: the folder cannot be written to, or `name` leads out of it.
    """
    *parents, last = parts_of(name, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_below(folder, parents, make=True) as place:
            _replace(last, content, place)
    except OSError as error:
        raise RunError(
            f"cannot write {folder / name}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def _replace(name: str, content: bytes, place: int) -> None:
    fresh, handle = aside.new_file(place)
    try:
        with os.fdopen(handle, "wb") as file:  # locked until it has its name, so that nobody takes it for a leftover
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(fresh, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(fresh, dir_fd=place)
        raise


def write_json(path: Path, value: Any, seal: bool = False) -> None:
    """Writes `value` as indented JSON, atomically; NaN and infinities become null, as JSON has no such numbers.

    Args:
      seal: with a hash of the file in it; see `sealed`.
    """
    write_atomically(path, sealed(value) if seal else _indented(value))


def _indented(value: Any) -> bytes:
    return (json.dumps(finite(value), indent=2) + "\n").encode()


def sealed(value: Mapping[str, Any]) -> bytes:
    """`value` as indented JSON with an entry `sha256` of all its bytes, taken with zeros in the place of the hash."""
    blank = _indented({"sha256": _NO_HASH} | {key: item for key, item in value.items() if key != "sha256"})
    return blank.replace(_NO_HASH.encode(), sha256(blank).encode(), 1)


def unsealed(content: bytes, where: object, schema: Mapping[str, Any] | None = None) -> Json:
    """What `sealed` wrote, checked to the last bit.

    Raises:
      RunError: it was changed, or does not fit `schema`.
    """
    value = parse(content, where, schema)
    stated = value.get("sha256") if isinstance(value, dict) else None
    if not isinstance(stated, str) or not re.fullmatch("[0-9a-f]{64}", stated):
        raise RunError(f"{where} does not state its SHA-256: it was changed or damaged; restore it from a copy")
    if sha256(content.replace(stated.encode(), _NO_HASH.encode(), 1)) != stated:
        raise RunError(f"{where} does not match its own SHA-256: it was changed or damaged; restore it from a copy")
    return value


def finite(value: Any) -> Any:
    """`value` with non-finite numbers as None and NumPy scalars as Python's, so that any JSON reader takes it."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()
