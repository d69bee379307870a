"""Export forms that are registered: what is not as `Form` says is refused in one line, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tfp_bprune as bp
from tests.exports.networks import NETWORKS
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.types import BpruneError, ExportError

WRONG = """
def load(path, threads):
    return lambda inputs: {"probabilities": inputs["inputs"][:, 0, :4, 0], "entropy": inputs["inputs"][:, 0, 0, 0]}
"""
FAILS = """
def load(path, threads):
    raise KeyError("no weights")
"""


def write(predictor: Any, path: Path) -> None:
    path.write_bytes(b"x")


@pytest.fixture
def form(tmp_path: Path) -> Iterator[bp.Form]:
    """One that is registered, whose loader gives something else than TensorFlow."""
    (tmp_path / "loader.py").write_text(WRONG)
    yield bp.register_form(bp.Form("mine", "mine.bin", "numpy", write, tmp_path / "loader.py"))
    FORMS.remove("mine")


@pytest.fixture
def refused(form: bp.Form, tmp_path: Path) -> Any:
    """The one line by which an export in a variant of it is refused."""

    def attempt(**changes: Any) -> str:
        FORMS.remove("mine")
        bp.register_form(replace(form, **changes))
        with pytest.raises(ExportError) as caught:
            bp.export(NETWORKS["mlp"](), tmp_path / "out", format="mine")
        assert [path.name for path in tmp_path.iterdir()] == ["loader.py"]
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return attempt


def test_wrong_answers_are_refused(refused: Any) -> None:
    assert "of the mine file differs from TensorFlow's by" in refused()
    assert "of the My own file differs" in refused(title="My own")


def test_a_loader_that_fails_is_refused(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text(FAILS)
    assert refused() == "numpy failed: 'no weights'; use the format 'savedmodel'"


def test_a_conversion_that_writes_nothing_is_refused(refused: Any) -> None:
    assert "wrote no mine.bin: expected what its form says" in refused(convert=lambda predictor, path: None)


def test_a_runtime_that_is_not_there_is_named(refused: Any) -> None:
    assert refused(runtime="no_such_runtime.of_mine", extra="mine[all]") == (
        "the format 'mine' needs no_such_runtime, not installed here: pip install 'mine[all]'"
    )
    assert refused(runtime="no_such_runtime").endswith("not installed here")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a b"}, "'a b' cannot name a format"),
        ({"name": "onnx"}, "there is a format 'onnx' already, of tfp_bprune.exports.onnx"),
        ({"file": "../out"}, "writes '../out': expected the name of a file or folder"),
        ({"file": "manifest.json"}, "writes 'manifest.json'"),
        ({"file": ""}, "writes ''"),
        ({"runtime": "import sys"}, "has the runtime 'import sys': expected the name of a module"),
        ({"runtime": ""}, "has the runtime ''"),
        ({"load": "no_such_file.py"}, "no_such_file.py, is no file"),
    ],
)
def test_what_is_no_form_is_not_registered(form: bp.Form, changes: dict[str, Any], said: str) -> None:
    before = dict(FORMS)
    with pytest.raises(BpruneError, match=said.replace(".", r"\.")):
        bp.register_form(replace(form, **changes))
    assert dict(FORMS) == before


def test_anything_else_is_no_form() -> None:
    with pytest.raises(BpruneError, match="got a dict: expected a Form"):
        bp.register_form({"name": "mine"})  # type: ignore[arg-type]
