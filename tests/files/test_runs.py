"""Run directories: atomic, checked, locked."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfp_bprune.files import runs
from tfp_bprune.files.runs import (
    MANIFEST,
    METRICS,
    Run,
    finite,
    rows_to_bytes,
    sha256,
    tensors_to_bytes,
    write_atomically,
)
from tfp_bprune.types import RunError

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "mask": np.array([True, False])}
NAME = "weights/w.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a config, weights and two rows."""
    made = Run.create(tmp_path / "run")
    with made.locked():
        made.commit({"config.json": b'{"x": 1}', NAME: tensors_to_bytes(TENSORS)}, seed=3)
        made.commit({METRICS: rows_to_bytes([{"epoch": 1}, {"epoch": 2}])}, epoch=2)
    return made


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert files_below(tmp_path) == {"deep/file"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RunError, match="No space left on device"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert files_below(tmp_path) == {"file"}


def test_a_written_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    # mkstemp makes private files; a run is read by other users and by servers.
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", b"x")
    with pytest.raises(RunError, match="cannot write"), Run(tmp_path / "file" / "run").locked():
        pass


def test_the_manifest_names_size_and_hash_of_every_file(run: Run) -> None:
    manifest = run.manifest
    for name, entry in manifest["files"].items():
        content = (run.path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": sha256(content)}
    assert set(manifest["files"]) == {"config.json", NAME, METRICS}
    assert (manifest["seed"], manifest["epoch"]) == (3, 2)
    assert {"python", "tensorflow", "numpy"} <= set(manifest["versions"])
    assert run.verify() == list(manifest["files"])


def test_content_comes_back(run: Run) -> None:
    assert run.config == {"x": 1}
    assert run.read_rows() == [{"epoch": 1}, {"epoch": 2}]
    for name, array in run.read_tensors(NAME).items():
        np.testing.assert_array_equal(array, TENSORS[name])


def test_dropped_files_leave_the_manifest_before_the_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    real = runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda *a: (seen.append((run.path / NAME).exists()), real(*a)))
    run.commit({}, drop=(NAME,))
    assert seen == [True]
    assert not (run.path / NAME).exists()
    assert NAME not in run.manifest["files"]


def test_a_commit_that_dies_before_the_manifest_leaves_the_old_run_readable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_json", die)
        rows = [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
        with pytest.raises(KeyboardInterrupt):
            run.commit({METRICS: rows_to_bytes(rows), "weights/next": b"1"}, drop=(NAME,), epoch=3)
    run.verify()
    assert run.read_rows() == [{"epoch": 1}, {"epoch": 2}]
    assert run.manifest["epoch"] == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "truncated: expected"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "does not match its SHA-256"),
        (lambda content: content + b"x", "does not match its SHA-256"),
        (lambda content: None, r"named by the manifest but cannot be read \(No such file"),
    ],
    ids=["truncated", "changed", "longer", "missing"],
)
def test_each_kind_of_damage_has_its_own_message(run: Run, damage: object, message: str) -> None:
    path = run.path / NAME
    content = damage(path.read_bytes())  # type: ignore[operator]
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RunError, match=message) as caught:
        run.verify()
    assert str(path) in str(caught.value)
    with pytest.raises(RunError, match=message):
        run.read_tensors(NAME)


def test_a_file_that_the_manifest_does_not_know_is_not_read(run: Run) -> None:
    (run.path / "stranger").write_bytes(b"x")
    with pytest.raises(RunError, match="has no stranger"):
        run.read("stranger")


def test_a_committed_file_that_is_not_safetensors_is_said_to_be_so(run: Run) -> None:
    run.commit({NAME: b"not tensors"})
    with pytest.raises(RunError, match="is not a safetensors file"):
        run.read_tensors(NAME)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[]", "is not a manifest"),
        (b'{"format": 1}', "is not a manifest"),
        (b'{"format": 99, "files": {}}', "has format 99, this version reads 1"),
    ],
)
def test_a_damaged_manifest_is_a_clear_error(run: Run, content: bytes, message: str) -> None:
    (run.path / MANIFEST).write_bytes(content)
    with pytest.raises(RunError, match=message):
        run.verify()


def test_a_jsonl_file_may_have_grown_but_not_changed(run: Run) -> None:
    path = run.path / METRICS
    grown = path.read_bytes() + b'{"epoch": 3}\n'
    path.write_bytes(grown)
    assert run.read_rows() == [{"epoch": 1}, {"epoch": 2}]  # what was never committed is not read
    path.write_bytes(b"#" + grown[1:])
    with pytest.raises(RunError, match="does not match its SHA-256"):
        run.read_rows()


def test_a_run_without_rows_has_none(tmp_path: Path) -> None:
    assert Run.create(tmp_path / "new").read_rows() == []


def test_create_refuses_what_is_there_already(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="already holds a run: resume it"):
        Run.create(run.path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"is not empty \(it holds notes.txt\)"):
        Run.create(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert not Run.create(tmp_path / "empty").exists


def test_a_run_killed_before_its_first_manifest_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    unfinished = Run.create(tmp_path / "run")
    with monkeypatch.context() as patched, unfinished.locked():
        patched.setattr(runs, "write_json", die)
        with pytest.raises(KeyboardInterrupt):
            unfinished.commit({"config.json": b"{}", NAME: tensors_to_bytes(TENSORS)})
    again = Run.create(tmp_path / "run")
    with again.locked():
        again.commit({"config.json": b"{}"})
    assert again.verify() == ["config.json"]


def test_open_wants_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no run \(no manifest.json\)"):
        Run.open(tmp_path)


def test_the_lock_is_held_against_another_process_and_goes_with_it(run: Run) -> None:
    script = (
        "import sys; from tfp_bprune.files.runs import Run\n"
        "with Run(sys.argv[1]).locked(): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="being written by another process"), run.locked():
            pass
        run.verify()  # readers need no lock
    finally:
        holder.kill()
        holder.communicate()
    with run.locked():
        run.commit({"config.json": b"{}"})
    assert run.config == {}


def test_the_lock_is_released_after_an_error(run: Run) -> None:
    with pytest.raises(ZeroDivisionError), run.locked():
        raise ZeroDivisionError
    with run.locked():
        pass


def test_locking_sweeps_what_a_killed_process_left_half_written(run: Run) -> None:
    (run.path / ".partial-abc").write_bytes(b"half a file")
    half_an_export = run.path / "exports" / ".partial-def" / "1"
    half_an_export.mkdir(parents=True)
    (half_an_export / "saved_model.pb").write_bytes(b"half")
    with run.locked():
        pass
    assert not [p for p in run.path.rglob("*") if p.name.startswith(".partial-")]
    run.verify()


def test_record_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "1" / "variables").mkdir(parents=True)
    (tmp_path / "1" / "variables" / "data").write_bytes(b"123")
    run = Run(tmp_path)
    run.record(kind="export")
    assert run.verify() == ["1/variables/data"]
    assert run.manifest["kind"] == "export"


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_any_json_reader_takes_what_finite_leaves(value: object) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    written = json.dumps(finite(value))
    assert json.loads(written, parse_constant=refuse) == finite(value)


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    value = {"nan": math.nan, "rows": [(math.inf, np.float32("nan"))], 3: np.int64(7), "flag": np.True_}
    runs.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "nan": None,
        "rows": [[None, None]],
        "3": 7,
        "flag": True,
    }
    assert rows_to_bytes([{"loss": -math.inf}]) == b'{"loss": null}\n'


@given(st.binary())
def test_tensors_of_any_order_survive(content: bytes) -> None:
    # A transposed array is not contiguous; safetensors would write its memory as it lies.
    array = np.frombuffer(content * 2, np.uint8).reshape(2, -1).T
    with_name = runs._load_tensors(tensors_to_bytes({"x": array}))
    np.testing.assert_array_equal(with_name["x"], array)
