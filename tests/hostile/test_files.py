"""Hostile files over the loaders and commands: each is refused with exit code 2 in one line, and changes nothing outside."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.hostile.conftest import one_line as refused
from tfp_bprune.cli.main import main
from tfp_bprune.files.reading import parse
from tfp_bprune.files.runs import Run, rows_to_bytes, sealed, sha256
from tfp_bprune.files.schemas import ROW_SCHEMA
from tfp_bprune.prediction import cost
from tfp_bprune.trials._keras_tuner import _load
from tfp_bprune.trials.log import TrialLog, check_same, read_sealed
from tfp_bprune.types import BpruneError, RunError

Json = dict[str, Any]
RAW: dict[str, bytes] = {
    "empty": b"", "space": b" ", "null": b"null", "true": b"true", "number": b"3", "text": b'"x"', "list": b"[]",
    "a hundred thousand lists": b"[" * 100_000, "and their ends": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000, "deep by 300": b"[" * 300 + b"]" * 300,
    "an integer of 5,000 digits": b'{"format": ' + b"9" * 5000 + b"}", "of 25": b'{"epoch": ' + b"9" * 25 + b"}",
    "NaN": b'{"a": NaN}', "Infinity": b'{"a": -Infinity}', "a number beyond": b'{"a": 1e999}',
    "a name twice": b'{"format": 2, "format": 2}', "twice below": b'{"a": {"b": 1, "b": 2}}', "cut": b'{"format": 2, "fi',
    "UTF-16": '{"a": 1}'.encode("utf-16"), "a mark of order": b'\xef\xbb\xbf{"a": 1}', "half of a pair": b'{"a": "\\ud800"}',
    "bytes": bytes(range(256)), "a NUL": b'{"a": 1}\x00', "two values": b"{} {}", "a control character": b'{"a": "\x1b[31m"}',
    "comment": b"// x\n{}", "single quotes": b"{'a': 1}", "a comma": b'{"a": 1,}',
}  # fmt: skip


def rows(path: Path) -> Any:
    return [parse(line, path, ROW_SCHEMA) for line in path.read_bytes().splitlines() or [b""]]


LOADERS: dict[str, Callable[[Path], Any]] = {
    "costs": cost.read,
    "settings": lambda path: check_same(path, {"a": 1}),
    "result of a search": read_sealed,
    "trials": lambda path: check_trials(path),
    "rows": rows,
    "tuner": lambda path: _load(str(path)),
}


def check_trials(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b" ") + b"\n")
    TrialLog(path)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", RAW)
def test_json_that_is_none(loader: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(RAW[kind])
    with pytest.raises(BpruneError) as raised:
        LOADERS[loader](path)
    assert len(str(raised.value)) < 1500


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a run's, without a network."""
    run = Run.create(tmp_path_factory.mktemp("small") / "run")
    with run.locked():
        files = {"config.json": b"{}", "weights/w.safetensors": save({"a": np.ones(3, np.float32)})}
        run.commit(
            files | {"metrics.jsonl": rows_to_bytes([{"epoch": 1}])},
            kind="run",
            checkpoint="weights/w.safetensors",
            epoch=1,
        )
    return run.path


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of `small`, beside a canary that must stay as it is."""
    canary = tmp_path / "outside" / "victim.txt"
    canary.parent.mkdir()
    canary.write_text("mine")
    yield Path(shutil.copytree(small, tmp_path / "run"))
    assert canary.read_text() == "mine"
    assert sorted(p.name for p in canary.parent.iterdir()) == ["victim.txt"]


def change(folder: Path, value: Callable[[Json], Any]) -> None:
    """Changes the manifest and seals it again, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    value(manifest)
    (folder / "manifest.json").write_bytes(sealed(manifest))


def put(folder: Path, name: str, content: bytes) -> None:
    """Exchanges a file and its hash."""
    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": sha256(content)}
    change(folder, lambda manifest: manifest["files"].update({name: entry}))


@pytest.mark.parametrize("kind", RAW)
@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_run_of_json_that_is_none(
    name: str, kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "manifest.json":
        (folder / name).write_bytes(RAW[kind])
        assert str(folder) in refused(capsys, "inspect", folder)
    else:
        put(folder, name, RAW[kind])
        assert str(folder) in refused(capsys, "prune", folder, "--sparsity", 0.5, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()


NAMES = (
    "../outside/victim.txt", "/etc/passwd", "weights/../../outside/victim.txt", "weights/epoch-/../../../outside/victim.txt",
    "", ".", "..", "a//b", "/", "a/", "a\x00b", "a\nb", "a\x1b[31mb", "x" * 2000, "weights", "nowhere", "./config.json",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_out(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, lambda manifest: manifest["files"].update({name: {"bytes": 4, "sha256": sha256(b"mine")}}))
    refused(capsys, "inspect", folder)


FIELDS: dict[str, Any] = {
    "format": ["2", None, 3, 2.5, [], -1, True], "files": [None, [], 3, {"config.json": None}, {"config.json": {}}, {"config.json": []}],
    "kind": [3, [], {}, "x" * 2000], "checkpoint": [3, [], {}], "epoch": [-1, 1.5, "1", 10**16, None], "seed": [-1, "x"],
    "versions": [3, {"python": 3}], "bytes": [-3, "x", 10**17], "nonzeros": [-1, 1.5], "prunable": ["x"], "sparsity": [2, -1, "x", None],
    "layers": [3, {"a": 3}, {"a": {"prunable": 1}}, {"a": {"prunable": -3, "nonzeros": 1, "sparsity": 0}}],
    "scores": [3, []], "before": [3], "latency_ms": [{"1": 0}, {"1": "x"}, 3], "predictive": ["maybe", 3], "input_shape": ["x", [0], [1.5], [-1], 3],
    "inputs": [3, {"a": 3}], "outputs": [[], 3], "request": [3, {"sparsity": 7}, {"validation_fraction": 1}], "costs": [3, {"read": "x"}],
    "samples": [-1, 1e30], "error_rate": [7], "float16": ["yes"], "export_format": [3], "network": [3], "dense_bytes": [-1], "threads": [-2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, vs in FIELDS.items() for v in vs], ids=lambda value: str(value)[:30]
)
def test_fields_of_another_kind(field: str, value: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, lambda manifest: manifest.update({field: value}))
    refused(capsys, "inspect", folder)


ENTRIES: list[Json] = [{"bytes": value} for value in (-1, 1.5, "3", None, 10**17, 10**11)]
ENTRIES += [{"sha256": value} for value in (3, "", "x" * 64, "A" * 64, "0" * 64)]


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_entries_of_files(entry: Json, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, lambda manifest: manifest["files"]["config.json"].update(entry))
    refused(capsys, "inspect", folder)


def linked(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**42)


def holes(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
    change(path.parent, lambda manifest: manifest["files"]["config.json"].update(bytes=size))


PLACES: dict[str, Callable[[Path], None]] = {
    "a link for the config": lambda run: linked(run / "config.json", run.parent / "outside" / "victim.txt"),
    "a link to itself": lambda run: linked(run / "config.json", run / "config.json"),
    "a link for the weights": lambda run: linked(run / "weights", run.parent / "outside"),
    "a link for the manifest": lambda run: (shutil.copy(run / "manifest.json", run / "m"), linked(run / "manifest.json", run / "m"))[1],
    "a pipe": lambda run: fifo(run / "config.json"),
    "a pipe for weights": lambda run: fifo(run / "weights" / "w.safetensors"),
    "a device": lambda run: linked(run / "config.json", Path("/dev/zero")),
    "a folder": lambda run: ((run / "config.json").unlink(), (run / "config.json").mkdir())[1],
    "four terabytes of nothing": lambda run: sparse(run / "config.json"),
    "as many for the manifest": lambda run: sparse(run / "manifest.json"),
    "holes of as many bytes as are stated": lambda run: holes(run / "config.json", 2**35),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_places_that_are_no_files(
    place: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfp_bprune.files.reading.free_memory", lambda: 2.0**34)  # on a larger machine too
    PLACES[place](folder)
    refused(capsys, "inspect", folder)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "outside"])
def test_a_lock_that_is_no_file(target: str, folder: Path, tmp_path: Path) -> None:
    (folder / ".lock").unlink()
    if target == "pipe":
        os.mkfifo(folder / ".lock")
    else:
        (folder / ".lock").symlink_to(tmp_path / "outside" / "new" if target == "outside" else target)
    with pytest.raises(RunError, match="cannot write"), Run(folder).locked():
        pass


def test_what_is_written_follows_no_link(folder: Path) -> None:
    linked(folder / "weights", folder.parent / "outside")
    with pytest.raises(RunError, match="symbolic link"), Run(folder).locked():
        Run(folder).commit({"weights/victim.txt": b"harm"})


@pytest.mark.parametrize("name", ["trials.jsonl", "settings.json", "search.json", "scores.safetensors"])
def test_a_link_in_a_search_is_not_followed(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "search").mkdir()
    path = folder / "search" / name
    path.symlink_to(tmp_path / "outside" / "victim.txt")
    loaders: dict[str, Callable[[Path], Any]] = {"trials.jsonl": TrialLog, "settings.json": lambda p: check_same(p, {})}
    with pytest.raises(RunError, match="symbolic link"):
        loaders.get(name, read_sealed)(path)


@pytest.mark.parametrize("name", ["search", "exports"])
def test_folders_of_a_run_that_are_links(
    name: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (tmp_path / "outside").mkdir()
    (run / name).symlink_to(tmp_path / "outside")
    command = {"search": ["search"], "exports": ["sweep", "--sparsity", "0.5"]}[name]
    assert "is a symbolic link" in refused(capsys, command[0], run, *command[1:])
    assert list((tmp_path / "outside").iterdir()) == []


def raw_tensor(dtype: str, data: bytes, shape: list[int]) -> bytes:
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


TENSORS: dict[str, bytes] = {
    "nothing": b"", "garbage": b"\xff" * 100, "a header without end": (2**40).to_bytes(8, "little") + b"{}",
    "a deep header": (100_000).to_bytes(8, "little") + b"[" * 100_000, "F8": raw_tensor("F8_E4M3", b"\0" * 3, [3]),
    "a mask of 7": raw_tensor("BOOL", b"\x07\0\x01", [3]), "too short": raw_tensor("F32", b"\0" * 3, [3]),
    "an unknown type": raw_tensor("X9", b"\0" * 3, [3]), "sides beyond": raw_tensor("F32", b"", [2**40, 2**40]),
    "a negative side": raw_tensor("F32", b"", [-1]), "float64": save({"a": np.ones(3)}), "int32": save({"a": np.ones(3, np.int32)}),
    "another shape": save({"a": np.ones(4, np.float32)}), "NaN": save({"a": np.full(3, np.nan, np.float32)}),
    "infinite": save({"a": np.full(3, -np.inf, np.float32)}), "another name": save({"b": np.ones(3, np.float32)}),
    "one more": save({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}), "BF16": raw_tensor("BF16", b"\0" * 6, [3]),
}  # fmt: skip


@pytest.mark.parametrize("kind", TENSORS)
def test_weights_that_are_none(kind: str, folder: Path) -> None:
    from tfp_bprune._keras import keras
    from tfp_bprune.storage import compress, store

    put(folder, "weights/w.safetensors", TENSORS[kind])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False, name="d")])

    def read() -> None:
        arrays = compress.decode(Run.open(folder).read_tensors("weights/w.safetensors"))
        store.set_weights(
            model, {"0000/d/kernel" if key == "a" else key: array[:, None] for key, array in arrays.items()}
        )

    with pytest.raises(RunError):
        read()


@pytest.mark.parametrize(
    "history",
    [[], [{"epoch": 1}], [{"epoch": i} for i in range(1, 6)], [{"epoch": 2}, {"epoch": 1}], [{"epoch": 1}, {"e": 2}]],
    ids=["none", "one", "five", "turned", "unnamed"],
)
def test_a_history_of_another_epoch_is_not_gone_on_with(
    history: list[Json], tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    put(run, "metrics.jsonl", rows_to_bytes(history))
    before = {path.name for path in (run / "weights").iterdir()}
    words = [
        "train",
        "--dataset",
        "digits",
        "--hidden",
        "16",
        "--batch-size",
        "200",
        "--epochs",
        "2",
        "--learning-rate",
        "0.01",
        "--resume",
        "--out",
    ]
    assert "expected a row for each epoch" in refused(capsys, *words, run)
    assert {path.name for path in (run / "weights").iterdir()} == before


@pytest.mark.parametrize("name", ["q[/b]", "[b]x", "\x1b[31mred", "a\nb", ":smile:"])
def test_names_are_printed_as_they_are(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(small, tmp_path / name))
    assert main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert name.replace("\x1b", "\\x1b").split("\n")[0] in said


COSTS = {name: 1.0 for name in cost.Costs.__dataclass_fields__}


@pytest.mark.parametrize("value", [0, -1, 1e10, "1", None, [1], True])
def test_costs_that_are_none(value: Any, tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text(json.dumps(COSTS | {"read": value}))
    with pytest.raises(BpruneError, match="holds no costs"):
        cost.read(tmp_path / "costs.json")
