"""Damage by chance: every flipped bit and every cut of a run, an export or a search is noticed before a number is used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfp_bprune.exports import export
from tfp_bprune.files.runs import LOCK, Run, rows_to_bytes, sealed, tensors_to_bytes, unsealed, write_atomically
from tfp_bprune.types import RunError

Copy = Callable[[Path], Path]
FLIPS = 1000


@pytest.fixture(scope="module")
def exported(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the tiny network."""
    out = tmp_path_factory.mktemp("exports") / "mean"
    export(tiny_model, out)
    return out


def noticed(folder: Path) -> bool:
    """Whether reading all that the folder holds is refused."""
    try:
        Run.open(folder).verify()
    except RunError:
        return True
    return False


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["run", "export"])
def test_a_thousand_flips_of_a_thousand_are_noticed(kind: str, tiny_run: Path, exported: Path, copied: Copy) -> None:
    folder = copied(tiny_run if kind == "run" else exported)
    assert not noticed(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != LOCK)
    random = np.random.default_rng(0)
    missed = []
    for i in range(FLIPS):  # every file in its turn, so that small ones such as the manifest get as many as large ones
        file = files[i % len(files)]
        content = file.read_bytes()
        bit = int(random.integers(8 * len(content)))
        file.write_bytes(flipped(content, bit))
        if not noticed(folder):
            missed.append((file.name, bit))
        file.write_bytes(content)
    assert missed == []
    assert not noticed(folder)


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with run.locked():
        run.commit({"config.json": b'{"x": 1}'}, kind="model", seed=3, note="naïve ✓", dense_bytes=12)
    file = run.path / "manifest.json"
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        with pytest.raises(RunError):  # its hash
            unsealed(flipped(content, bit), file)
        if bit % 11 == 0:  # and whatever else a run looks at first
            file.write_bytes(flipped(content, bit))
            assert noticed(run.path), (bit, flipped(content, bit))


@given(data=st.data())
def test_every_cut_of_a_run_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    run = Run.create(tmp_path_factory.mktemp("cut") / "run")
    tensors = tensors_to_bytes({"a": np.arange(6, dtype=np.float32)})
    with run.locked():
        run.commit({"weights/w.safetensors": tensors, "metrics.jsonl": rows_to_bytes([{"epoch": 1}])}, kind="run")
    name = data.draw(st.sampled_from(["weights/w.safetensors", "metrics.jsonl", "manifest.json"]))
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert noticed(run.path)


@given(
    value=st.dictionaries(st.text(max_size=5), st.integers() | st.floats(allow_nan=False) | st.text()), data=st.data()
)
def test_what_is_sealed_is_as_it_was_written_or_refused(value: dict[str, Any], data: st.DataObject) -> None:
    value = {key: item for key, item in value.items() if not isinstance(item, int) or abs(item) < 10**19}
    value = {k.encode(errors="ignore").decode(): v for k, v in value.items() if k != "sha256"}
    value = {k: v.encode(errors="ignore").decode() if isinstance(v, str) else v for k, v in value.items()}
    content = sealed(value)
    found = unsealed(content, "here")
    assert {key: item for key, item in found.items() if key != "sha256"} == value | {
        k: None for k, v in value.items() if isinstance(v, float) and not np.isfinite(v)
    }
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    with pytest.raises(RunError):
        unsealed(flipped(content, bit), "here")


def test_a_run_of_the_format_before_is_read_and_sealed_when_written(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run")
    with run.locked():
        run.commit({"config.json": b'{"x": 1}'}, kind="model")
    text = (run.path / "manifest.json").read_text().replace('"format": 2', '"format": 1')
    lines = [line for line in text.splitlines() if not line.startswith('  "sha256"')]
    write_atomically(run.path / "manifest.json", "\n".join(lines).encode())
    assert run.config == {"x": 1}
    assert "sha256" not in run.manifest
    with run.locked():
        run.commit({}, seed=1)
    assert (run.manifest["format"], len(run.manifest["sha256"])) == (2, 64)
