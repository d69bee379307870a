"""One small job of every command that writes, what it leaves, and what must hold of that whatever happened."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tfp_bprune.files.reading import parse
from tfp_bprune.files.runs import Run, tensors_from, unsealed
from tfp_bprune.trials.log import TrialLog

Words = list[Any]
# What a clock says, and what follows from it; and bytes of graphs, in whose names TensorFlow counts what a process has made.
_TIMES = (
    "seconds",
    "latency_ms",
    "throughput",
    "epoch_seconds",
    "speed",
    "sha256",
    "moments_vs_draws",
    "ms",
    "p95_ms",
    "bytes_gzip",
    "bytes",
)
_PROBE = re.compile("[a-z0-9_]{8}")  # by which Python sees, for a moment, whether a folder takes temporary files
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Job:
    """A command on a small network.

    Attributes:
      words: of it; it writes into the folder `out` of its place alone.
      result: what it found, without what depends on a clock.
      goes_on: begun again, it repeats nothing; what is not so begins anew, or is done once and for all.
      copies: the run that it works on is its place, which it adds to.
      kind: of its process; see `commands.Process`.
    """

    words: Callable[[Path, Path], Words]
    result: Callable[[Path], Any]
    goes_on: bool = False
    copies: bool = False
    kind: str = "command"

    def at(self, run: Path, place: Path) -> Words:
        """The words with which it works on `run`, or on its own copy, in `place`, which is made ready."""
        place.mkdir(exist_ok=True)
        if self.copies and not (place / "out").exists():
            shutil.copytree(run, place / "out")
        return self.words(place / "out" if self.copies else run, place / "out")


def timeless(value: Any, place: Path) -> Any:
    """Without times, and with one name for the place."""
    if isinstance(value, dict):
        return {k: timeless(item, place) for k, item in value.items() if not k.startswith("sampled_latency") and k not in _TIMES
                and k.removeprefix("sampled_") not in _TIMES}  # fmt: skip
    if isinstance(value, list):
        return [timeless(item, place) for item in value]
    return value.replace(str(place), "PLACE") if isinstance(value, str) else value


def _json(path: Path, place: Path) -> Any:
    return timeless(parse(path.read_bytes(), path), place)


def _run(place: Path) -> Any:
    """Of a run: its weights to the bit, its rows, and what its manifest says of it."""
    run = Run.open(place / "out")
    manifest = timeless(run.manifest, place)
    names = {name: entry for name, entry in manifest.pop("files").items() if not name.endswith("png")}
    return sorted(names), run.read(manifest["checkpoint"]), timeless(run.read_rows(), place), manifest


def _export(folder: Path) -> Any:
    """Of an export: what its manifest says; its variables to the bit."""
    run = Run.open(folder)
    run.verify()
    manifest = run.manifest
    [variables] = [name for name in manifest["files"] if "variables.data" in name]
    return sorted(manifest.pop("files")), run.read(variables), timeless(manifest, folder.parent)


def _sweep(place: Path) -> Any:
    out = place / "out"
    result = json.loads(Run.open(out).read("sweep.json"))
    named = [path for row in result["rows"] for path in row["exports"].values()]
    return (
        timeless(result, place),
        [_export(Path(path)) for path in named],
        sorted(p.name for p in (out / "exports").iterdir()),
    )


def _search(place: Path) -> Any:
    out = place / "out"
    result = unsealed((out / "search.json").read_bytes(), out)
    named = [Path(result["export"]), Path(result["global"]["export"])]
    return timeless(result, place), (out / "trials.jsonl").read_bytes(), [_export(path) for path in named]


def _study(place: Path) -> Any:
    out = place / "out"
    found = [unsealed((path / "manifest.json").read_bytes(), path) for path in sorted((out / "networks").glob("*-*"))]
    weights = [
        Run.open(path).read(Run.open(path).manifest["checkpoint"]) for path in sorted((out / "networks").glob("*-*"))
    ]
    return _json(out / "criteria.json", place), timeless(found, place) and weights


JOBS: dict[str, Job] = {
    "train": Job(
        lambda run, out: ["train", "--dataset", "digits", "--hidden", 8, "--batch-size", 200, "--epochs", 4,
                          "--learning-rate", 0.01, "--resume", "--out", out],
        _run, goes_on=True,
    ),
    "prune": Job(lambda run, out: ["prune", run, "--sparsity", 0.5, "--out", out], _run),
    "export": Job(lambda run, out: ["export", run, "--out", out], lambda place: _export(place / "out")),
    "sweep": Job(lambda run, out: ["sweep", run, "--sparsity", 0.5, "--samples", 2], _sweep, copies=True),
    "search": Job(
        lambda run, out: ["search", run, "--trials", 24, "--max-accuracy-drop", 0.2, "--level", 0.8, "--order", "score", "--out", out],
        _search, goes_on=True,
    ),
    "tune": Job(
        lambda run, out: ["tune", "--hidden", 2, "--trials", 2, "--epochs", 2, "--method", "random", "--batch-size", 500, "--out", out],
        lambda place: _json(place / "out" / "tune.json", place), goes_on=True,
    ),
    "study": Job(
        lambda run, out: ["study", "criteria", "--budget", "quick", "--epochs", 1, "--jobs", 0, "--out", out],
        _study, goes_on=True,
    ),
}  # fmt: skip


_NETWORKS = """
import sys
from pathlib import Path
from tfp_bprune.files.aside import own_temporaries
from tfp_bprune.studies.networks import Spec
from tfp_bprune.studies.study import Settings, gather
specs = [Spec("digits", hidden=(4,), layers=layers, epochs=2) for layers in ("deterministic", "flipout")]
with own_temporaries():  # as a study's processes have them
    gather(Settings("criteria", Path(sys.argv[1]), jobs=0), specs, {}, study="")
"""


def _networks(place: Path) -> Any:
    runs = [Run.open(path) for path in sorted((place / "out" / "networks").iterdir())]
    return [(run.path.name, run.read(run.manifest["checkpoint"]), timeless(run.read_rows(), place)) for run in runs]


# The study alone takes as long as all others: networks of one, from Python.
QUICK = JOBS | {"study": Job(lambda run, out: ["-c", _NETWORKS, out], _networks, goes_on=True, kind="script")}


def quick(names: Any, *few: str) -> list[Any]:
    """The names as parameters of a test, all but a few of them of the slow ones."""
    return [pytest.param(name, marks=[] if name in few else pytest.mark.slow) for name in names]


def files_below(place: Path) -> Iterator[Path]:
    """All that has its final name."""
    for path in sorted(place.rglob("*")):
        if path.is_file() and not any(part.startswith(".partial-") for part in path.relative_to(place).parts):
            yield path


def assert_whole(place: Path) -> None:
    """Nothing that has its final name is a part of something, or other than what names it says."""
    for path in files_below(place):
        content = path.read_bytes()
        if path.name == "manifest.json":
            Run.open(path.parent).verify()
        elif path.name == "trials.jsonl":
            TrialLog(path)
        elif path.suffix == ".json":
            parse(content, path)
        elif path.suffix == ".safetensors":
            tensors_from(content, path)
        elif path.suffix == ".png":
            assert content.endswith(_PNG_END), path
        elif path.name == "saved_model.pb":
            assert (path.parents[1] / "manifest.json").exists(), path
    for table in place.rglob("sweep.json"):
        for row in json.loads(table.read_bytes())["rows"]:
            for export in row["exports"].values():
                Run.open(export).verify()
    for result in place.rglob("search.json"):
        Run.open(json.loads(result.read_bytes())["export"]).verify()


def assert_nothing_aside(place: Path, temporary: Path) -> None:
    """No file is there that nobody will read: aside, temporary, or in a run that does not name it."""
    assert [str(path) for path in place.rglob(".partial-*")] == []
    assert [path.name for path in temporary.iterdir() if not _PROBE.fullmatch(path.name)] == []
    for path in files_below(place):
        if path.parent.name == "weights":
            assert f"weights/{path.name}" in Run.open(path.parents[1]).manifest["files"]
        assert "_temp" not in str(path.relative_to(place)), path
