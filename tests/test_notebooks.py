"""The notebooks run, and what is kept of their runs can be shown to anybody."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LEAST = 6  # so that a wrong pattern or folder does not make everything pass
LARGEST = 300_000  # bytes
# Folders of one machine; what TensorFlow's libraries write when they start or warn; Python's warnings.
UNWANTED = re.compile(
    r"/(?:work|home|tmp|root|Users|usr|opt)/|\b[EWI]\d{4} |^20\d\d-\d\d-\d\d .*: [EWI] |WARNING|Warning:|cuda_|oneDNN|Traceback",
    re.MULTILINE,
)

_LOAD = re.compile(r"^WARNING:tensorflow:Callback method `\w+` is slow compared to the batch time[^\n]*\n?$")

# What is exported is reloaded in forks, as in the other tests; no name is left.
FORKED = "__import__('tests.forks').forks.use()"


def named(path: Path) -> str:
    return path.stem


def machinery() -> ModuleType:
    """`notebooks/execute.py`, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("execute", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def texts(notebook: Any) -> list[str]:
    """Everything that a reader sees of the outputs but pictures."""
    found = []
    for output in outputs(notebook):
        found += [output.text] if output.output_type == "stream" else []
        found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return found


def without_complaints_of_load(notebook: Any) -> None:
    """Takes out what Keras says when other work on the machine holds a callback up."""
    for cell in notebook.cells:
        cell["outputs"] = [o for o in cell.get("outputs", []) if not _LOAD.search(o.get("text", ""))]


def assert_presentable(notebook: Any) -> None:
    """No error, nothing on standard error, nothing of this machine in what is shown."""
    assert [o.evalue for o in outputs(notebook) if o.output_type == "error"] == []
    assert [o.text for o in outputs(notebook) if o.output_type == "stream" and o.name == "stderr"] == []
    assert [line for text in texts(notebook) for line in text.splitlines() if UNWANTED.search(line)] == []


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= LEAST
    assert machinery().notebooks() == NOTEBOOKS


@pytest.fixture(scope="module")
def kernel() -> Iterator[Any]:
    """One for all of them, emptied before each: TensorFlow is imported once."""
    made = machinery().new_kernel()
    yield made
    if made.has_kernel:
        made.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_runs(path: Path, kernel: Any) -> None:
    before = path.read_bytes()
    notebook = machinery().executed(path, quick=True, kernel=kernel, before=FORKED)
    without_complaints_of_load(notebook)
    assert_presentable(notebook)
    assert path.read_bytes() == before
    # What is kept was made by the same cells: output from the same ones, which a command that failed has not, and as
    # many pictures.
    kept = nbformat.reads(before.decode(), as_version=4)
    if (
        importlib.util.find_spec("horovod") or "horovod" not in before.decode()
    ):  # without it one cell has nothing to say
        assert [bool(c.get("outputs")) for c in notebook.cells] == [bool(c.get("outputs")) for c in kept.cells]
    assert len(pictures(notebook)) == len(pictures(kept))


def pictures(notebook: Any) -> list[bytes]:
    found = [output.get("data", {}).get("image/png") for output in outputs(notebook)]
    return [base64.b64decode(picture) for picture in found if picture]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_what_is_kept_of_it_is_small_and_presentable(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.reads(path.read_text(), as_version=4)
    nbformat.validate(notebook)
    assert_presentable(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    # Executed from top to bottom, in one go, not in the quick form.
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook)
    for picture in pictures(notebook):
        width, height = struct.unpack(">II", picture[16:24])
        assert 100 < height < 1000
        assert 300 < width < 1400


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_reads_as_a_tutorial(path: Path) -> None:
    cells = nbformat.reads(path.read_text(), as_version=4).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    kinds = [cell.cell_type for cell in cells]
    # Hardly any code goes without a word before it; a file that is written may be run at once.
    bare = [i for i in range(1, len(kinds)) if kinds[i - 1] == kinds[i] == "code" and i > 2]
    assert all(cells[i - 1].source.startswith("%%writefile") for i in bare)
    # It uses the package and builds none of its own: no class, and few, short functions.
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert "import tfp_bprune as bp" in source
    assert not re.search(r"^\s*class ", source, re.MULTILINE)
    assert len(re.findall(r"^\s*def ", source, re.MULTILINE)) <= 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_only_content_can_differ_between_two_executions(path: Path) -> None:
    kept = json.loads(path.read_text())
    assert kept["metadata"]["language_info"] == {"name": "python"}
    assert all(not cell["metadata"] for cell in kept["cells"])
    assert len({cell["id"] for cell in kept["cells"]}) == len(kept["cells"])
    notebook = machinery().stable(nbformat.reads(path.read_text(), as_version=4))
    assert nbformat.writes(notebook) + "\n" == path.read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_its_links_lead_somewhere(path: Path) -> None:
    cells = nbformat.reads(path.read_text(), as_version=4).cells
    links = [
        link for cell in cells for link in re.findall(r"\]\(([^)#]+)", cell.source) if cell.cell_type == "markdown"
    ]
    assert [link for link in links if not link.startswith("http") and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_the_readme_names_it(path: Path) -> None:
    assert f"(notebooks/{path.name})" in (ROOT / "README.md").read_text()


def test_unwanted_lines_are_noticed() -> None:
    for line in (
        "saved to /tmp/tmpabc/served",
        "2026-01-01 10:00:00.123456: W tensorflow/core/x.cc:1] slow",
        "E0000 00:00:1732 cuda_dnn.cc:8310] Unable to register",
        "UserWarning: left as they are",
    ):
        assert UNWANTED.search(line)
    assert not UNWANTED.search("90% removed  accuracy 0.98  served/moments/1/saved_model.pb  E = 3")
