"""`make mutate`: puts known bugs in, one at a time, and says which of them the tests that should see them let live.

    python tests/mutate.py                    all of `tests/mutants/`
    python tests/mutate.py layers/ard claims  those whose file or description has one of the words
    python tests/mutate.py --jobs 2 --anew    two at once; what was found before is not taken over
    python tests/mutate.py --minutes 8        begins none after so long; called again it goes on

Works on copies of the package in a temporary folder: the sources stay as they are. Each mutant's tests run in a fork of this
process, which has imported what takes long, but nothing of the package. What was found is kept in runs/mutants.jsonl, and taken
over as long as mutant, source and tests are the same.
"""

from __future__ import annotations

import argparse
import compileall
import hashlib
import json
import os
import py_compile
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "runs" / "mutants.jsonl"
SECONDS = 300.0  # of a mutant's tests, after which it counts as seen: it hangs
IMPORTED = (
    "hypothesis", "jsonschema", "numpy", "pytest", "safetensors.numpy", "scipy.optimize", "scipy.stats", "sklearn.metrics",
    "tensorflow", "tf_keras", "tensorflow_probability.python.distributions", "tensorflow_probability.python.layers",
    "tensorflow_datasets",
)  # fmt: skip
STALE, BROKEN, UNTESTED, LIVES, SEEN = "STALE", "BROKEN", "UNTESTED", "LIVES", "seen"


class Mutant(NamedTuple):
    """A bug: in a file of the package the words `right`, which are there once, become `wrong`; `tests` should see it."""

    file: str
    what: str
    right: str
    wrong: str
    tests: tuple[str, ...]


def read(path: Path) -> Iterator[Mutant]:
    """The mutants of a table: of each a line FILE: WHAT IS WRONG, then lines - RIGHT, + WRONG and ? TESTS (below tests/)."""
    for paragraph in path.read_text().split("\n\n"):
        head, *lines = paragraph.splitlines()
        if not head.startswith("#"):
            file, _, what = head.partition(": ")
            right, wrong, tests = ([line[2:] for line in lines if line[0] == mark] for mark in "-+?")
            yield Mutant(file, what, "\n".join(right), "\n".join(wrong), tuple(f"tests/{name}" for name in tests))


@dataclass
class Slot:
    """A copy of the package, and the process that tries a mutant in it."""

    place: Path
    mutant: Mutant
    source: str
    pid: int
    began: float


def key_of(mutant: Mutant) -> str:
    """Changes with all that decides what is found: the mutant, the file that it is put into, and its tests' files."""
    files = [ROOT / "tfp_bprune" / mutant.file, *(ROOT / name.partition("::")[0] for name in mutant.tests)]
    digest = hashlib.sha256(repr(mutant).encode())
    for file in files:
        digest.update(file.read_bytes() if file.exists() else b"")
    return digest.hexdigest()


def known() -> dict[str, Any]:
    """What was found before, by key."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {row["key"]: row for row in rows}


def copied(folder: Path) -> Path:
    """The package and its tests in `folder`, compiled so that a file's own content says whether that is still right."""
    for name in ("tfp_bprune", "tests", "pyproject.toml", "README.md", "CONTRIBUTING.md", "docs"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "tfp_bprune", quiet=2, invalidation_mode=mode)
    return folder


def warmed() -> None:
    """Imports what takes long. No thread may be left of it: a fork has only the one that forks."""
    os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    sys.dont_write_bytecode = True
    for name in IMPORTED:
        __import__(name)


def forked(place: Path, tests: Sequence[str]) -> int:
    """The process that runs `tests` in `place`; what it says is in `place/log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(place)
        os.environ["PYTHONPATH"] = str(place)
        sys.path[0] = str(place)
        import pytest

        code = pytest.main(["-x", "-q", "--tb=line", "-rfE", "-m", "not slow", "--timeout", "200", *tests])
    finally:
        os._exit(int(code))


def verdict(code: int, said: str) -> tuple[str, str]:
    """What the tests' exit code says, and by which test."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    by = found.group(1) if found else ""
    if code == 0:
        return LIVES, ""
    if code == 1:
        return SEEN, by
    if code < 0:
        return SEEN, "it hangs or crashes"
    return (BROKEN if code in (2, 3, 70) else UNTESTED), by or said.strip().splitlines()[-1]


def begun(mutant: Mutant, place: Path) -> Slot | None:
    """A mutant at work in `place`; None where its words are not there once."""
    file = place / "tfp_bprune" / mutant.file
    source = file.read_text() if file.exists() else ""
    if source.count(mutant.right) != 1:
        return None
    file.write_text(source.replace(mutant.right, mutant.wrong))
    return Slot(place, mutant, source, forked(place, mutant.tests), time.monotonic())


def ended(slots: list[Slot]) -> Iterator[tuple[Slot, str, str, float]]:
    """Those that are done, with what was found and processor seconds; waits for one at least."""
    while True:
        done = False
        for slot in list(slots):
            if time.monotonic() - slot.began > SECONDS:
                os.killpg(slot.pid, signal.SIGKILL)
            pid, status, used = os.wait4(slot.pid, os.WNOHANG)
            if pid:
                slots.remove(slot)
                (slot.place / "tfp_bprune" / slot.mutant.file).write_text(slot.source)
                said = (slot.place / "log").read_text(errors="replace")
                yield slot, *verdict(os.waitstatus_to_exitcode(status), said), used.ru_utime + used.ru_stime
                done = True
        if done:
            return
        time.sleep(0.05)


class Campaign:
    """Tries mutants, says so line by line, and keeps what is found."""

    def __init__(self, mutants: Sequence[Mutant], before: dict[str, Any], minutes: float) -> None:
        self.waiting, self.total = list(mutants), len(mutants)
        self.found: dict[str, list[Mutant]] = {}
        self._before, self._told, self._until = before, 0, time.monotonic() + 60 * minutes

    def run(self, places: list[Path]) -> None:
        """All of them, as many at once as there are places."""
        slots: list[Slot] = []
        while self.waiting or slots:
            while self.waiting and places:
                if time.monotonic() > self._until:
                    self.found["not begun"], self.waiting = self.waiting, []
                    break
                self._begin(self.waiting.pop(0), places, slots)
            for slot, what, by, seconds in ended(slots) if slots else ():
                places.append(slot.place)
                self._tell(slot.mutant, what, by, seconds)

    def _begin(self, mutant: Mutant, places: list[Path], slots: list[Slot]) -> None:
        row = self._before.get(key_of(mutant))
        if row is not None:
            self._tell(mutant, row["found"], row["by"], 0.0)
            return
        slot = begun(mutant, place := places.pop())
        if slot is None:
            places.append(place)
            self._tell(mutant, STALE, f"{mutant.right.strip()!r} is not there once: bring it up to date", 0.0)
        else:
            slots.append(slot)

    def _tell(self, mutant: Mutant, what: str, by: str, seconds: float) -> None:
        self._told += 1
        self.found.setdefault(what, []).append(mutant)
        line = f"[{self._told:3d}/{self.total}] {what:8} {seconds:5.1f} s  {mutant.file}: {mutant.what}"
        print(line + (f"  ({by})" if by else ""), flush=True)
        if seconds:
            RESULTS.parent.mkdir(exist_ok=True)
            with open(RESULTS, "a") as file:
                file.write(json.dumps({"key": key_of(mutant), "found": what, "by": by, "seconds": seconds}) + "\n")


def main() -> int:
    """Tries the mutants that the command line names; 0 where tests see all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of the file or the description; by default all mutants")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which none is begun")
    parser.add_argument("--anew", action="store_true", help="does not take over what was found before")
    parser.add_argument("--list", action="store_true", help="only lists them")
    asked = parser.parse_args()
    known_ones = (mutant for path in sorted((ROOT / "tests" / "mutants").glob("*.txt")) for mutant in read(path))
    chosen = [m for m in known_ones if not asked.words or any(word in f"{m.file}: {m.what}" for word in asked.words)]
    if asked.list:
        print(*(f"{m.file}: {m.what}" for m in chosen), f"{len(chosen)} mutants", sep="\n")
        return 0
    campaign = Campaign(chosen, {} if asked.anew else known(), asked.minutes)
    with tempfile.TemporaryDirectory() as folder:
        warmed()
        campaign.run([copied(Path(folder, str(i))) for i in range(asked.jobs)])
    counts = ", ".join(f"{len(mutants)} {what}" for what, mutants in campaign.found.items())
    survivors = [f"LIVES  {m.file}: {m.what}" for m in campaign.found.get(LIVES, [])]
    print(*survivors, f"{campaign.total} mutants: {counts}", sep="\n")
    return int(set(campaign.found) != {SEEN})


if __name__ == "__main__":
    sys.exit(main())
