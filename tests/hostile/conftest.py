"""What hostile tests share: a small run whose parts are exchanged and sealed again, and commands that must say one line."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import rows_to_bytes, sealed, sha256

SECONDS, BYTES = 20.0, 2**31  # that a hostile file may take
Json = dict[str, Any]


class Hostile:
    """A run that a stranger wrote, beside a folder that nothing may touch."""

    def __init__(self, run: Path, outside: Path) -> None:
        self.run, self.outside = run, outside
        self.outside.mkdir()
        (self.outside / "victim.txt").write_text("mine")

    def seal(self, value: Callable[[Json], Any]) -> None:
        """Changes the manifest and seals it again, as an attacker would."""
        manifest = json.loads((self.run / "manifest.json").read_text())
        value(manifest)
        (self.run / "manifest.json").write_bytes(sealed(manifest))

    def put(self, name: str, content: bytes) -> None:
        """Exchanges a file and its hash."""
        (self.run / name).parent.mkdir(exist_ok=True, parents=True)
        (self.run / name).write_bytes(content)
        entry = {"bytes": len(content), "sha256": sha256(content)}
        self.seal(lambda manifest: manifest["files"].update({name: entry}))

    def config(self, change: Callable[[Json], Any]) -> None:
        """Changes the config; what `change` gives, if anything, takes its place."""
        config = json.loads((self.run / "config.json").read_text())
        changed = change(config)
        self.put("config.json", json.dumps(config if changed is None else changed).encode())

    def untouched(self) -> bool:
        """Whether the folder outside is as it was."""
        names = [path.name for path in self.outside.iterdir()]
        return names == ["victim.txt"] and (self.outside / "victim.txt").read_text() == "mine"


@pytest.fixture(scope="session")
def stranger(digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network for digits, small, and never trained."""
    layers = [
        keras.layers.Flatten(),
        keras.layers.Dense(3, activation="relu", name="a"),
        keras.layers.Dense(10, name="b"),
    ]
    model = bp.bayesianize(keras.Sequential([keras.Input((8, 8, 1)), *layers]), prior="ard", train_size=1)
    data = digits.info.to_json() | {"batch_size": 200, "seed": 0, "train_size": digits.train_size}
    config = {"request": digits.request, "data": data, "heads": {"b": {"task": "classification", "logits": True}}}
    run = bp.save_model(model, tmp_path_factory.mktemp("stranger") / "run", config=config)
    with run.locked():
        run.commit({"metrics.jsonl": rows_to_bytes([{"epoch": 1, "val_nll": 2.0}])}, kind="run", epoch=1)
    return run.path


@pytest.fixture
def hostile(stranger: Path, tmp_path: Path) -> Iterator[Hostile]:
    """A copy of `stranger`."""
    made = Hostile(Path(shutil.copytree(stranger, tmp_path / "run")), tmp_path / "outside")
    yield made
    assert made.untouched()


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line of a command that must be refused, within time and memory."""

    return lambda *words: one_line(capsys, *words)


def one_line(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """As `refused`."""
    capsys.readouterr()
    began, most = time.process_time(), _peak()  # other processes may keep this one from a processor
    assert main([str(word) for word in words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert said.err[:-1].isprintable()
    assert time.process_time() - began < SECONDS
    assert _peak() - most < BYTES
    return said.err


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
