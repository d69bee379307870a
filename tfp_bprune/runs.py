"""The run directory: what every command writes and reads.

    RUN/
      config.json       what was asked for, and the network's architecture
      metrics.jsonl     one JSON object an epoch
      weights/          tensors as safetensors
      manifest.json     versions, seed, data fingerprint, and size and SHA-256 of every file

Each file is written aside and renamed, and the manifest is renamed last: it is the commit point. A process killed
at any moment leaves the previous manifest and every file that it names. Nothing in a run can execute code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import portalocker
from safetensors import SafetensorError
from safetensors.numpy import load as _load_tensors
from safetensors.numpy import save as _save_tensors

from tfp_bprune.types import Json, RunError

FORMAT = 1
CONFIG, METRICS, MANIFEST, WEIGHTS, LOCK = "config.json", "metrics.jsonl", "manifest.json", "weights", ".lock"
_REPORTED = ("tfp-bprune", "tensorflow", "tf-keras", "tensorflow-probability", "numpy")
_TEMPORARY = ".partial-"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises:
      RunError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o666 & ~_umask())
            os.replace(aside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(aside)
            raise
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically; NaN and infinities become null, as JSON has no such numbers."""
    write_atomically(path, (json.dumps(finite(value), indent=2) + "\n").encode())


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


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      RunError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist: expected a run or export directory written by tfp-bprune") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(
            f"{path} cannot be read as JSON ({error}); restore it from a copy or make the run anew"
        ) from error


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


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
          RunError: `path` holds a finished or unfinished run, or other files.
        """
        run = cls(path)
        if run.path.exists() and not run.path.is_dir():
            raise RunError(f"{run.path} is a file: expected a new or empty folder for the run")
        if run.exists:
            raise RunError(f"{run.path} already holds a run: resume it, or choose another folder")
        # A run that was killed before its first manifest leaves its lock and the files that it wrote until then.
        ours = (_TEMPORARY, LOCK, *((CONFIG, WEIGHTS) if (run.path / LOCK).exists() else ()))
        strangers = [p.name for p in run.path.glob("*") if not p.name.startswith(ours)]
        if strangers:
            raise RunError(
                f"{run.path} is not empty (it holds {strangers[0]}): expected a new or empty folder for the run"
            )
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
            lock = open(self.path / LOCK, "a")  # noqa: SIM115 (closed below, after the lock is released)
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
                self._sweep_partial_files()
                yield self
            finally:
                portalocker.unlock(lock)

    def _sweep_partial_files(self) -> None:
        for leftover in list(self.path.rglob(_TEMPORARY + "*")):
            if leftover.is_dir():  # of an export
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    @property
    def manifest(self) -> Json:
        """The committed manifest, or an empty one for a new run."""
        if not self.exists:
            return {"format": FORMAT, "files": {}}
        manifest = read_json(self.path / MANIFEST)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            raise RunError(
                f"{self.path / MANIFEST} is not a manifest: expected an object with `files`; restore it from a copy"
            )
        if manifest.get("format") != FORMAT:
            raise RunError(
                f"{self.path / MANIFEST} has format {manifest.get('format')!r}, this version reads {FORMAT}: "
                "use the version of tfp-bprune that wrote it"
            )
        return manifest

    @property
    def config(self) -> Json:
        """What the run was asked to do, checked against its hash."""
        return json.loads(self.read(CONFIG))

    def commit(self, files: Mapping[str, bytes], drop: tuple[str, ...] = (), **facts: Any) -> None:
        """Writes `files`, then the manifest that names them, then deletes what it no longer names.

        Args:
          files: content by path relative to the run.
          drop: relative paths to leave out from now on.
          **facts: entries to set in the manifest (`seed`, `epoch`, `data`, ...).
        """
        manifest = self.manifest
        for name, content in files.items():
            write_atomically(self.path / name, content)
            manifest["files"][name] = {"bytes": len(content), "sha256": sha256(content)}
        for name in drop:
            manifest["files"].pop(name, None)
        manifest |= {"versions": versions(), **facts}
        write_json(self.path / MANIFEST, manifest)
        for name in drop:
            (self.path / name).unlink(missing_ok=True)

    def record(self, **facts: Any) -> None:
        """Writes a manifest that names every file already in the folder, with the entries `facts`."""
        names = sorted(str(p.relative_to(self.path)) for p in self.path.rglob("*") if p.is_file())
        contents = {name: (self.path / name).read_bytes() for name in names}
        files = {name: {"bytes": len(content), "sha256": sha256(content)} for name, content in contents.items()}
        write_json(self.path / MANIFEST, {"format": FORMAT, "files": files, "versions": versions(), **facts})

    def read(self, name: str) -> bytes:
        """The content of one file that the manifest names, checked against it.

        A `.jsonl` file grows at its end: the bytes that the manifest knows are checked and returned.

        Raises:
          RunError: the file is not in the manifest, is missing, was truncated or was changed.
        """
        entry = self.manifest["files"].get(name)
        if entry is None:
            raise RunError(
                f"{self.path} has no {name}: expected one of {sorted(self.manifest['files']) or 'no files yet'}"
            )
        path = self.path / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RunError(
                f"{path} is named by the manifest but cannot be read ({error.strerror}); restore it from a copy"
            ) from error
        if len(content) < entry["bytes"]:
            raise RunError(
                f"{path} is truncated: expected {entry['bytes']} bytes, found {len(content)}; restore it from a copy"
            )
        known = content[: entry["bytes"]] if name.endswith(".jsonl") else content
        if sha256(known) != entry["sha256"]:
            raise RunError(
                f"{path} does not match its SHA-256 in the manifest: it was changed or damaged; restore it from a copy"
            )
        return known

    def verify(self) -> list[str]:
        """Checks every file that the manifest names and returns their names.

        Raises:
          RunError: the first file that is missing or does not match.
        """
        return [name for name in self.manifest["files"] if self.read(name) is not None]

    def read_tensors(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a safetensors file of this run, checked."""
        try:
            return _load_tensors(self.read(name))
        except SafetensorError as error:
            raise RunError(f"{self.path / name} is not a safetensors file ({error}); restore it from a copy") from error

    def read_rows(self, name: str = METRICS) -> list[Json]:
        """The committed rows of a JSON-lines file of this run; none if there is no such file yet."""
        if name not in self.manifest["files"]:
            return []
        return [json.loads(line) for line in self.read(name).decode().splitlines()]


def tensors_to_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """`tensors` as the content of a safetensors file."""
    return _save_tensors({name: np.array(value, order="C") for name, value in tensors.items()})


def rows_to_bytes(rows: list[Json]) -> bytes:
    """`rows` as JSON lines."""
    return "".join(json.dumps(finite(row)) + "\n" for row in rows).encode()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
