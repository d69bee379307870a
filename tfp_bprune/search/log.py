"""Trials and settings on disk. Of trials: one line each with its checksum, so that a killed search repeats none and a damaged file is noticed.

A line is a JSON object with `sha256`, over the line before and the object without it. A last line without its end is
what a kill leaves: it is dropped. Anything else that does not fit is damage, and said to be.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tfp_bprune.runs import finite, read_json, sha256, write_json
from tfp_bprune.types import Json, RunError


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
        self._chain = ""
        if path.exists():
            self._read()

    def append(self, row: Json) -> None:
        """Adds a trial, on disk when this returns."""
        row = json.loads(json.dumps(finite(row)))
        line = self._line(row)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror}; choose a folder that can be written"
            ) from error
        self.rows.append(row)

    def _line(self, row: Json) -> bytes:
        self._chain = sha256((self._chain + json.dumps(row)).encode())
        return (json.dumps(row | {"sha256": self._chain}) + "\n").encode()

    def _read(self) -> None:
        whole, _, part = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = json.loads(line)
                stated = row.pop("sha256")
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise self._damaged(number) from error
            if self._line(row) != line + b"\n" or self._chain != stated:
                raise self._damaged(number)
            self.rows.append(row)
        if part:
            os.truncate(self.path, len(whole) + 1 if whole else 0)

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
    if not path.exists():
        write_json(path, wanted)
        return
    stored = read_json(path)
    differing = sorted(key for key in wanted if not isinstance(stored, dict) or stored.get(key) != wanted[key])
    if differing:
        raise RunError(
            f"{path.parent} holds a search with another {', '.join(differing)}: repeat that one to go on with it, or choose another folder with --out"
        )
