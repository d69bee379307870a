"""Datasets by name: anyone registers one, and a name that nobody knows is refused."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._registry import Registry, extensions
from tfp_bprune.cli.common import data_of
from tfp_bprune.cli.main import main
from tfp_bprune.data.datasets import DATASETS, dataset
from tfp_bprune.files.runs import Run
from tfp_bprune.types import BpruneError, DataError

X = np.random.default_rng(0).normal(3.0, 2.0, (60, 3)).astype(np.float32)
Y = np.arange(60) % 3
PAIRS = ((X[:40], Y[:40]), (X[40:], Y[40:]))
MODULE = """
import numpy as np
import tfp_bprune as bp

@bp.dataset("outside")
def outside(data_dir, n=60):
    x = np.random.default_rng(n).normal(size=(n, 3)).astype("float32")
    y = x.argmax(1)
    return (x[10:], y[10:]), (x[:10], y[:10])
"""


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = set(DATASETS)
    yield
    for name in set(DATASETS) - before:
        DATASETS.remove(name)


def registered(given: Any) -> bp.data.splits.Splits:
    dataset("mine")(lambda: given)
    return bp.load("mine")


def test_what_is_registered_is_loaded_by_its_own_function(tmp_path: Path) -> None:
    seen: list[Path] = []

    @bp.dataset("third")
    def third(data_dir: Path) -> Any:
        seen.append(data_dir)
        return PAIRS

    data = bp.load("third", tmp_path, validation_fraction=0.25, seed=3)
    assert seen == [tmp_path]
    assert third(tmp_path) is PAIRS  # the function itself stays as it was
    assert (data.info.name, data.info.task, data.info.classes, data.train_size) == ("third", "classification", 3, 30)
    assert data.request == {"dataset": "third", "data_dir": str(tmp_path), "validation_fraction": 0.25}
    np.testing.assert_array_equal(data.examples("test").x, X[40:])
    assert bp.load("diabetes").info.task == "regression"


def test_the_description_may_be_given() -> None:
    info = bp.info_of(X, Y % 2, name="another name", task="binary")
    assert registered((*((x, y % 2) for x, y in PAIRS), info)).info.task == "binary"
    assert bp.load("mine").info.name == "mine"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "dataset 'mine' gives a NoneType: expected (train, test)"),
        ((PAIRS[0],), "gives a tuple of 1: expected (train, test)"),
        ((*PAIRS, *PAIRS), "gives a tuple of 4"),
        ((X, X), "train of dataset 'mine' is a ndarray: expected a pair"),
        ((PAIRS[0], (X, Y, Y)), "test of dataset 'mine' is a tuple of 3: expected a pair"),
        ((*PAIRS, {"task": "binary"}), "gives a dict as info: expected an Info"),
        ((PAIRS[0], (X, Y[:5])), "mine has examples"),
        (((X[:0], Y[:0]), PAIRS[1]), "mine has no examples"),
    ],
)
def test_what_is_no_dataset_is_refused_by_name(given: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        registered(given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody", "no-body", "NoBody", "no.body", "nobody/config", "digit", "digits2"])
def test_a_name_that_nobody_knows_is_refused_with_what_there_is(name: str, tmp_path: Path) -> None:
    dataset("mine")(lambda: PAIRS)
    with pytest.raises(DataError, match=r"digits, diabetes.* mine") as caught:
        bp.load(name, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_is_taken_once_but_a_cell_may_run_again() -> None:
    with pytest.raises(BpruneError, match=r"there is a dataset 'digits' already, of tfp_bprune\.data"):
        dataset("digits")(lambda: PAIRS)
    for shift in (1, 2):
        scope: dict[str, Any] = {"__name__": "cell", "dataset": dataset, "x": X + shift, "y": Y}
        exec('@dataset("mine")\ndef mine():\n    return (x, y), (x, y)', scope)
        np.testing.assert_array_equal(bp.load("mine").examples("test").x, X + shift)


@pytest.mark.parametrize("name", ["", "two words", "a/b", "../x", "-x", 3, None, "é"])
def test_what_cannot_be_typed_is_no_name(name: Any) -> None:
    with pytest.raises(BpruneError, match="cannot name a dataset"):
        dataset(name)(lambda: PAIRS)


def test_a_function_that_needs_more_is_refused() -> None:
    with pytest.raises(DataError, match="dataset 'mine' needs n: expected no argument, or data_dir"):
        dataset("mine")(lambda n: PAIRS)


def test_a_registry_says_what_there_is() -> None:
    things: Registry[int] = Registry("thing")
    things.add("one", 1, test_a_registry_says_what_there_is)
    assert (dict(things), things.named("one"), len(things)) == ({"one": 1}, 1, 1)
    assert __name__ in extensions()
    with pytest.raises(BpruneError, match="unknown thing 'two': expected one of one"):
        things.named("two")
    things.remove("one")
    assert __name__ not in extensions()


def test_the_commands_take_a_dataset_of_a_module_that_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    words = ["train", "--dataset", "outside", "--hidden", "4", "--epochs", "1", "--batch-size", "50", "--out", str(run)]
    assert main(["--import", "outside_module", *words]) == 0
    assert Run.open(run).config["request"]["dataset"] == "outside"
    assert "outside_module" in extensions()
    DATASETS.remove("outside")
    sys.modules.pop("outside_module")
    capsys.readouterr()
    with pytest.raises(DataError, match="no dataset 'outside'"):  # without the module
        data_of(Run.open(run).config, Namespace(data=None, data_dir=tmp_path))
    with pytest.raises(SystemExit):
        main(["--import", "no_such_module", "inspect", str(run)])
    assert capsys.readouterr().err.splitlines()[-1] == (
        "tfp-bprune: --import no_such_module: No module named 'no_such_module'; see `tfp-bprune --help`"
    )
