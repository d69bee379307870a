"""Trials and settings on disk. Of trials: one line each with its checksum, so that a killed search repeats none and a damaged file is noticed.

A line is a JSON object with `sha256`, over the line before and the object without it. A last line without its end is
what a kill leaves: it is dropped. Anything else that does not fit is damage, and said to be.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tfp_bprune.files.reading import check, open_below, parse, read_below
from tfp_bprune.files.runs import finite, sha256, unsealed, write_json
from tfp_bprune.files.schemas import TRIAL_SCHEMA
from tfp_bprune.files.words import renewed
from tfp_bprune.types import Json, RunError

_MOST = 2**28  # bytes


class TrialLog:
    """The trials of one search, in their order.

    Args:
      path: a `.jsonl` file, there or not.

    Raises:
      RunError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Json] = []
        self._chain, self._length = "", 0
        if os.path.lexists(path):
            self._read()

    def append(self, row: Json) -> None:
        """Adds a trial, on disk when this returns."""
        row = json.loads(json.dumps(finite(row)))
        line = self._line(row)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = open_below(self.path.parent, self.path.name, os.O_RDWR | os.O_CREAT)
            with open(handle, "r+b", buffering=0) as file:
                file.truncate(self._length)  # what a kill left of a line; only who writes removes it
                file.seek(self._length)
                try:
                    rest = memoryview(line)
                    while rest:  # of a line that does not fit whole, the next try says why
                        rest = rest[file.write(rest) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(self._length)
                    raise
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}; choose a folder that can be written"
            ) from error
        self._add(row)
        self._length += len(line)

    def trial(self, number: int) -> Json:
        """A trial that an earlier process made.

        Raises:
          RunError: it lacks what a trial of a search holds.
        """
        check(self.rows[number], f"line {number + 1} of {self.path}", TRIAL_SCHEMA)
        return self.rows[number]

    def _line(self, row: Json) -> bytes:
        return (json.dumps(row | {"sha256": self._next(row)}) + "\n").encode()

    def _next(self, row: Json) -> str:
        return sha256((self._chain + json.dumps(row)).encode())

    def _read(self) -> None:
        try:
            content = read_below(self.path.parent, self.path.name, _MOST)
        except OSError as error:
            raise RunError(f"{self.path} cannot be read ({error.strerror}): delete it to search anew") from error
        *whole, part = content.split(b"\n")
        for number, line in enumerate(whole, 1):
            row = self._row(line)
            if row is None:
                raise self._damaged(number)
            self._add(row)
        if self._row(part[:-1]) is not None:  # the whole line is there, but its end is another byte
            raise self._damaged(len(whole) + 1)
        self._length = len(content) - len(part)

    def _row(self, line: bytes) -> Json | None:
        """The trial of a line without its end; None where it is not as it was written."""
        try:
            row: Any = parse(line, self.path)
            stated = row.pop("sha256")
            return row if stated == self._next(row) and self._line(row) == line + b"\n" else None
        except (RunError, KeyError, AttributeError, TypeError):
            return None

    def _add(self, row: Json) -> None:
        self._chain = self._next(row)
        self.rows.append(row)

    def _damaged(self, number: int) -> RunError:
        return RunError(
            f"line {number} of {self.path} is not as it was written: expected one trial with its SHA-256; "
            "delete the file to search anew"
        )


def check_same(path: Path, settings: Json) -> None:
    """Writes to `path` what is searched for; if it is there already, compares.

    Raises:
      RunError: the file tells of another search.
    """
    wanted = json.loads(json.dumps(finite(settings)))
    if not os.path.lexists(path):
        write_json(path, wanted, True)
        return
    stored = renewed(read_sealed(path))
    differing = sorted(key for key in {*wanted, *stored} - {"sha256"} if stored.get(key) != wanted.get(key))
    if differing:
        raise RunError(
            f"{path.parent} holds a search that differs in {', '.join(differing)}: repeat its command to go on with it, or choose "
            "another folder with --out"
        )


def read_sealed(path: Path, schema: Json | None = None) -> Json:
    """A JSON file of a search, which holds its own hash.

    Raises:
      RunError: it is missing or damaged.
    """
    try:
        return unsealed(read_below(path.parent, path.name), path, schema)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}): repeat the search to write it anew") from error
