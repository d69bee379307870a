"""The house: modules look only to their left, public names say what they do, and Keras is settled once."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tfp_bprune

PACKAGE = Path(tfp_bprune.__file__).parent
ROOMS = (
    "data",
    "layers",
    "graphs",
    "networks",
    "storage",
    "training",
    "pruning",
    "prediction",
    "exports",
    "evaluation",
    "trials",
    "claims",
    "searching",
    "tuning",
    "plot",
    "reports",
    "studies",
    "cli",
)
SHARED = ("_keras", "_progress", "_registry", "types", "files")
MODULES = sorted(p.relative_to(PACKAGE.parent) for p in PACKAGE.rglob("*.py"))


def parsed(module: Path) -> ast.Module:
    return ast.parse((PACKAGE.parent / module).read_text())


def room_of(module: str) -> str | None:
    """The part of the package that a dotted module name lies in; None for other packages' modules."""
    parts = module.split(".")
    return None if parts[0] != "tfp_bprune" else (parts[1] if len(parts) > 1 else "")


def imports_of(module: Path) -> set[str]:
    """Stations that a module imports anything from, wherever in it."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this check does not follow"
            room = room_of(node.module or "")
            # `from tfp_bprune import x` names rooms directly.
            found |= {alias.name for alias in node.names} if room == "" else {room}
    return {name for name in found if name}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_imports_only_from_its_left(module: Path) -> None:
    here = module.with_suffix("").parts[1]
    if here in ("__init__", "__main__"):
        return  # the contents page names every room, and the program begins with the last
    allowed = set(SHARED) if here in SHARED else {*SHARED, *ROOMS[: ROOMS.index(here) + 1]}
    if here == "pruning":
        allowed.discard("training")  # pruning reaches training as a Keras callback
    if here == "types":
        allowed.discard("files")
    assert imports_of(module) <= allowed


def test_the_order_of_rooms_is_complete() -> None:
    there = {p.stem if p.suffix == ".py" else p.name for p in PACKAGE.iterdir() if not p.name.startswith("__")}
    assert there - {"py.typed", "py"} <= {*ROOMS, *SHARED}


def public_definitions(tree: ast.Module) -> list[ast.AST]:
    """Public functions and classes, and the public methods of public classes."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    top = [node for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")]
    methods = [
        m
        for c in top
        if isinstance(c, ast.ClassDef)
        for m in c.body
        if isinstance(m, kinds) and not m.name.startswith("_")
    ]
    return [*top, *methods]


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_everything_public_has_a_docstring(module: Path) -> None:
    tree = parsed(module)
    assert ast.get_docstring(tree)
    bare = [node.name for node in public_definitions(tree) if not ast.get_docstring(node)]  # type: ignore[arg-type,attr-defined]
    assert bare == []


def test_every_public_name_is_there_and_none_is_a_room() -> None:
    for name in tfp_bprune.__all__:
        assert callable(getattr(tfp_bprune, name)), name
    # Importing a room binds it to the package under its name, where a function of that name would be lost.
    assert not {*ROOMS, *SHARED} & set(tfp_bprune.__all__)


# What a function is about, in this order; all that says how is given by name.
SUBJECTS = {"model", "data", "split", "path", "exports", "x", "y", "out", "name", "info", "network", "train", "test",
            "data_dir", "optimizer", "schedule", "form", "prior", "family", "folder"}  # fmt: skip
VALUES = {
    "BpruneError",
    "BrierScore",
    "Budget",
    "CentredPrior",
    "Evaluation",
    "ExpectedCalibrationError",
    "Form",
    "Info",
    "NegativeLogLikelihood",
    "NormalPrior",
    "Posterior",
    "Prediction",
    "Prior",
    "ScaleMixturePrior",
    "Settings",
}


@pytest.mark.parametrize("name", sorted(set(tfp_bprune.__all__) - VALUES))
def test_after_its_subjects_a_public_function_takes_keywords_alone(name: str) -> None:
    parameters = inspect.signature(getattr(tfp_bprune, name)).parameters.values()
    in_order = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    assert set(in_order) <= SUBJECTS
    assert len(in_order) <= 3


@pytest.mark.parametrize("room", [*ROOMS[:-2], *SHARED])
def test_every_room_is_an_attribute_of_the_package(room: str) -> None:
    assert getattr(tfp_bprune, room).__name__ == f"tfp_bprune.{room}"


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own, without this one's choice of Keras."""
    inherited = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    words = [sys.executable, "-c", script]
    return subprocess.run(words, capture_output=True, text=True, env=inherited | environment, check=False)


def test_importing_the_package_imports_no_tensorflow() -> None:
    result = python("import sys, tfp_bprune; print('tensorflow' in sys.modules, 'tf_keras' in sys.modules)")
    assert (result.stdout, result.stderr) == ("False False\n", "")


def test_the_package_goes_with_a_tensorflow_whose_keras_is_keras_3() -> None:
    script = """
import tensorflow as tf
model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(2, activation="softmax")])
import numpy as np, tfp_bprune as bp
from tfp_bprune._keras import keras
bayesian = bp.bayesianize(model)
bp.fit(bayesian, np.eye(4, dtype="float32"), np.arange(4) % 2, epochs=1, progress=False)
pruned, report = bp.prune(bayesian, sparsity=0.5)
print(tf.keras.__version__[0], keras.__version__[0], report.pruned, len(bp.predict(pruned, np.eye(4), predictive="moments")))
"""
    result = python(script, TF_CPP_MIN_LOG_LEVEL="3")
    assert result.stdout == "3 2 4 4\n", result.stderr
