"""The run directory: what every command writes and reads.

    RUN/
      config.json       what was asked for, and the network's architecture
      metrics.jsonl     one JSON object an epoch
      weights/          tensors as safetensors, compressed as in `storage.compress` once they are final
      manifest.json     versions, seed, data fingerprint, and size and SHA-256 of every file

Each file is written aside and renamed, and the manifest is renamed last: it is the commit point. A process killed
at any moment leaves the previous manifest and every file that it names. The manifest holds a hash of itself, so that
no bit of a run changes unnoticed. What is read may come from a stranger: see `reading`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import portalocker
from safetensors import SafetensorError
from safetensors.numpy import load as _load_tensors
from safetensors.numpy import save as _save_tensors

from tfp_bprune.files.aside import TEMPORARY, check_room, remove_leftovers
from tfp_bprune.files.reading import (
    MOST_BYTES,
    MOST_JSON,
    check,
    folder_below,
    open_below,
    parse,
    parts_of,
    read_below,
    read_json,
)
from tfp_bprune.files.schemas import CONFIG_SCHEMA, MANIFEST_SCHEMA, ROW_SCHEMA
from tfp_bprune.files.signals import uninterrupted
from tfp_bprune.files.writing import (
    finite,
    sealed,
    sha256,
    unsealed,
    write_atomically,
    write_below,
    write_json,
)
from tfp_bprune.types import Json, RunError

__all__ = [
    "Run",
    "finite",
    "json_to_bytes",
    "read_json",
    "rows_to_bytes",
    "sealed",
    "sealed_tensors",
    "sha256",
    "tensors_from",
    "tensors_to_bytes",
    "unsealed",
    "unsealed_tensors",
    "versions",
    "write_atomically",
    "write_json",
]

FORMAT, _WITHOUT_SEAL = 2, 1
CONFIG, METRICS, MANIFEST, WEIGHTS, LOCK = "config.json", "metrics.jsonl", "manifest.json", "weights", ".lock"
_OURS = re.compile(r"(model|epoch-\d{5,9}(-end)?)\.(safetensors|json)")  # in WEIGHTS
_REPORTED = ("tfp-bprune", "tensorflow", "tf-keras", "tensorflow-probability", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Run:
    """One run directory. Create or open it with the class methods; write to it only inside `locked()`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Run:
        """A new, empty run at `path`.

        Raises:
          RunError: `path` holds a finished or unfinished run, or other files, or cannot be written.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file: expected a new or empty folder for the run")
        if run.exists:
            raise RunError(f"{run.path} already holds a run: resume it, or choose another folder")
        # A run that was killed before its first manifest leaves its lock and the files that it wrote until then.
        ours = (TEMPORARY, LOCK, *((CONFIG, WEIGHTS) if (run.path / LOCK).exists() else ()))
        strangers = [p.name for p in run.path.glob("*") if not p.name.startswith(ours)]
        if strangers:
            raise RunError(
                f"{run.path} is not empty (it holds {strangers[0]}): expected a new or empty folder for the run"
            )
        check_room(run.path / LOCK)
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """The run at `path`, whose manifest exists.

        Raises:
          RunError: there is no run at `path`.
        """
        run = cls(path)
        if not run.exists:
            raise RunError(
                f"{run.path} holds no run (no {MANIFEST}): expected a folder written by `tfp-bprune train` or `prune`"
            )
        return run

    @property
    def exists(self) -> bool:
        """Whether a manifest was ever committed here."""
        return (self.path / MANIFEST).is_file()

    @contextlib.contextmanager
    def locked(self) -> Iterator[Run]:
        """Holds the run for writing; the lock goes with the process, however it ends.

        Raises:
          RunError: another process is writing this run.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.fdopen(open_below(self.path, LOCK, os.O_RDWR | os.O_CREAT), "rb")
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}; choose a folder that can be written"
            ) from error
        with lock:
            try:
                portalocker.lock(lock, portalocker.LOCK_EX | portalocker.LOCK_NB)
            except portalocker.exceptions.LockException as error:
                raise RunError(
                    f"{self.path} is being written by another process: wait for it, or choose another folder"
                ) from error
            try:
                remove_leftovers(self.path)
                self._remove_unnamed()
                yield self
            finally:
                portalocker.unlock(lock)

    @contextlib.contextmanager
    def begun(self) -> Iterator[Run]:
        """Holds a run for writing that is to be new, and leaves no part of it where it fails before its first manifest.

        Raises:
          RunError: as `create` and `locked` do; another process may have begun a run here since `create`.
        """
        with self.locked():
            Run.create(self.path)
            try:
                yield self
            except Exception:
                if not self.exists:
                    self._unlink(CONFIG)
                    self._remove_ours({})
                raise

    def _remove_unnamed(self) -> None:
        """Removes weights that a killed process wrote, or was about to remove, which the manifest does not name."""
        if self.exists:
            with contextlib.suppress(RunError):  # a damaged manifest is said where it is read
                self._remove_ours(self.manifest["files"])

    def _remove_ours(self, but: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError), folder_below(self.path, [WEIGHTS]) as place:
            for name in os.listdir(place):
                if _OURS.fullmatch(name) and f"{WEIGHTS}/{name}" not in but:
                    os.unlink(name, dir_fd=place)

    @property
    def manifest(self) -> Json:
        """The committed manifest, checked against its hash, or an empty one for a new run.

        Raises:
          RunError: it is damaged, of another format, or names files outside of the folder.
        """
        if not self.exists:
            return {"format": FORMAT, "files": {}}
        path = self.path / MANIFEST
        content = self._content(MANIFEST, MOST_JSON)
        manifest = parse(content, path)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise RunError(f"{path} is not a manifest: expected an object with `files`; restore it from a copy")
        if manifest.get("format") not in (FORMAT, _WITHOUT_SEAL):
            raise RunError(
                f"{path} has format {manifest.get('format')!r}, this version reads {_WITHOUT_SEAL} and {FORMAT}: "
                "use the version of tfp-bprune that wrote it"
            )
        if manifest["format"] == FORMAT:
            unsealed(content, path)
        check(manifest, path, MANIFEST_SCHEMA)
        for name in manifest["files"]:
            parts_of(name, path)
        return manifest

    def _content(self, name: str, most: int = MOST_BYTES, first: int | None = None) -> bytes:
        try:
            return read_below(self.path, name, most, first)
        except OSError as error:
            raise RunError(f"{self.path / name} cannot be read ({error.strerror}); restore it from a copy") from error

    @property
    def config(self) -> Json:
        """What the run was asked to do, checked against its hash."""
        return parse(self.read(CONFIG), self.path / CONFIG, CONFIG_SCHEMA)

    @uninterrupted()
    def commit(self, files: Mapping[str, bytes], drop: tuple[str, ...] = (), **facts: Any) -> None:
        """Writes `files`, then the manifest that names them, then deletes what it no longer names.

        A file that the manifest names and that is to be another leaves the manifest first: whatever is killed in between,
        no file that is named is other than its hash says. SIGINT and SIGTERM wait until all is done.

        Args:
          files: content by path relative to the run.
          drop: relative paths to leave out from now on.
          **facts: entries to set in the manifest (`seed`, `epoch`, `data`, ...).
        """
        manifest = self.manifest
        changed = [name for name, content in files.items() if _changes(manifest["files"].get(name), name, content)]
        if changed:
            known = {name: entry for name, entry in manifest["files"].items() if name not in changed}
            write_json(self.path / MANIFEST, manifest | {"files": known, "format": FORMAT}, True)
        for name, content in files.items():
            write_below(self.path, name, content)
            manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content)}
        for name in drop:
            manifest["files"].pop(name, None)
        manifest |= {"versions": versions(), **facts, "format": FORMAT}
        write_json(self.path / MANIFEST, manifest, True)
        for name in drop:
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        *parents, last = parts_of(name, self.path)
        with contextlib.suppress(OSError), folder_below(self.path, parents) as place:
            os.unlink(last, dir_fd=place)

    def record(self, **facts: Any) -> None:
        """Writes a manifest that names every file already in the folder, with the entries `facts`."""
        names = sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())
        contents = {name: (self.path / name).read_bytes() for name in names}
        files = {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in contents.items()}
        write_json(self.path / MANIFEST, {"format": FORMAT, "files": files, "versions": versions(), **facts}, True)

    def read(self, name: str) -> bytes:
        """The content of one file that the manifest names, checked against it.

        A `.jsonl` file grows at its end: the bytes that the manifest knows are checked and returned.

        Raises:
          RunError: the file is not in the manifest, is missing, was truncated or was changed.
        """
        files = self.manifest["files"]
        if name not in files:
            raise RunError(f"{self.path} has no {name}: expected one of {sorted(files) or 'no files yet'}")
        return self._checked(name, files[name])

    def _checked(self, name: str, entry: Json) -> bytes:
        path, expected = self.path / name, entry["bytes"]
        try:  # one byte more than expected tells a longer file, whatever its length is
            content = read_below(self.path, name, first=expected if name.endswith(".jsonl") else expected + 1)
        except OSError as error:
            raise RunError(
                f"{path} is named by the manifest but cannot be read ({error.strerror}); restore it from a copy"
            ) from error
        if len(content) < expected:
            raise RunError(
                f"{path} is truncated: expected {expected} bytes, found {len(content)}; restore it from a copy"
            )
        if sha256(content) != entry["sha256"]:
            raise RunError(
                f"{path} does not match its SHA-256 in the manifest: it was changed or damaged; restore it from a copy"
            )
        return content

    def verify(self) -> list[str]:
        """Checks every file that the manifest names and returns their names.

        Raises:
          RunError: the first file that is missing or does not match.
        """
        files = self.manifest["files"]
        for name, entry in files.items():
            self._checked(name, entry)
        return list(files)

    def read_tensors(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a safetensors file of this run, checked."""
        return tensors_from(self.read(name), self.path / name)

    def read_rows(self, name: str = METRICS) -> list[Json]:
        """The committed rows of a JSON-lines file of this run; none if there is no such file yet."""
        if name not in self.manifest["files"]:
            return []
        lines = self.read(name).splitlines()
        return [parse(line, f"line {i} of {self.path / name}", ROW_SCHEMA) for i, line in enumerate(lines, 1)]


def _changes(entry: Json | None, name: str, content: bytes) -> bool:
    """Whether a file that the manifest knows as `entry` would no longer match it; rows may be added."""
    if entry is None:
        return False
    kept = content[: entry["bytes"]] if name.endswith(".jsonl") else content
    return len(kept) != entry["bytes"] or sha256(kept) != entry["sha256"]


def tensors_from(content: bytes, where: object) -> dict[str, np.ndarray]:
    """The arrays in the content of a safetensors file.

    Raises:
      RunError: it is none, or holds numbers of a type that NumPy has not, such as bfloat16.
    """
    try:
        tensors = _load_tensors(content)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise RunError(f"{where} is not a safetensors file ({said[0]}); restore it from a copy") from error
    for name, array in tensors.items():
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise RunError(f"{where}: {name} holds bytes other than 0 and 1, expected booleans; restore it from a copy")
    return tensors


def tensors_to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """`tensors` as the content of a safetensors file.

    Raises:
      RunError: one holds bfloat16, which could not be read back.
    """
    halves = [name for name, value in tensors.items() if value.dtype.name == "bfloat16"]
    if halves:
        raise RunError(
            f"weight {halves[0]} is in bfloat16, which stored weights cannot be: build the model in float32, or under Keras's "
            "policy mixed_bfloat16, whose weights are in float32"
        )
    return _save_tensors({name: np.array(value, order="C") for name, value in tensors.items()})


def sealed_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """As `tensors_to_bytes`, with a hash of all names, types, shapes and numbers."""
    arrays = {name: np.array(value, order="C") for name, value in tensors.items()}
    return _save_tensors(arrays, {"sha256": _digest(arrays)})


def unsealed_tensors(content: bytes, where: object) -> dict[str, np.ndarray]:
    """What `sealed_tensors` wrote, checked against its hash.

    Raises:
      RunError: it was changed.
    """
    tensors = tensors_from(content, where)
    header = parse(content[8 : 8 + int.from_bytes(content[:8], "little")], where)
    if (header.get("__metadata__") or {}).get("sha256") != _digest(tensors):
        raise RunError(f"{where} does not match its own SHA-256: it was changed or damaged; restore it from a copy")
    return tensors


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    parts = [(name, str(a.dtype), a.shape, sha256(a.tobytes())) for name, a in sorted(tensors.items())]
    return sha256(repr(parts).encode())


def json_to_bytes(value: Json) -> bytes:
    """`value` as the content of a JSON file."""
    return (json.dumps(finite(value), indent=2) + "\n").encode()


def rows_to_bytes(rows: list[Json]) -> bytes:
    """`rows` as JSON lines."""
    return "".join(json.dumps(finite(row)) + "\n" for row in rows).encode()
