"""Which Pythons and libraries: what the package says, what the lock holds, and what it imports agree."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tfp_bprune

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = tomllib.loads((ROOT / "uv.lock").read_text())
EXTRAS = PROJECT["optional-dependencies"]


def markers(python: str) -> dict[str, str]:
    """Linux on x86-64 with this Python."""
    return {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}


def admitted(name: str, python: str, lines: list[str]) -> SpecifierSet:
    """The versions of a library that these requirements admit on this Python."""
    asked = [
        r for r in map(Requirement, lines) if r.name == name and (not r.marker or r.marker.evaluate(markers(python)))
    ]
    assert asked, f"nothing asks for {name}"
    return SpecifierSet(",".join(str(r.specifier) for r in asked))


def locked(name: str, python: str) -> set[str]:
    """The versions of a library that the lock installs on this Python."""
    found = [p for p in LOCK["package"] if p["name"] == name]
    split = [p for p in found if _serves(p, python)]
    return {p["version"] for p in split}


def _serves(package: dict[str, Any], python: str) -> bool:
    forks = package.get("resolution-markers")
    return not forks or any(Requirement(f"x; {fork}").marker.evaluate(markers(python)) for fork in forks)  # type: ignore[union-attr]


def test_classifiers_say_what_python_is_admitted() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    window = SpecifierSet(PROJECT["requires-python"])
    assert tuple(named) == tuple(f"3.{minor}" for minor in range(30) if f"3.{minor}.1" in window) == PYTHONS
    assert "3.10.13" not in window
    assert "3.14.0" not in window


@pytest.mark.parametrize(
    ("python", "oldest", "keras"),
    [("3.11", "2.18.1", "2.18.0"), ("3.12", "2.18.1", "2.19.0"), ("3.13", "2.20.0", "2.20.1")],
)
def test_tensorflow_2_18_to_2_21_where_it_runs(python: str, oldest: str, keras: str) -> None:
    tensorflow = admitted("tensorflow", python, PROJECT["dependencies"])
    tf_keras = admitted("tf-keras", python, PROJECT["dependencies"])
    assert ["2.17.1" in tensorflow, oldest in tensorflow, "2.21.0" in tensorflow, "2.22.0" in tensorflow] == [
        0,
        1,
        1,
        0,
    ]
    assert ["2.17.0" in tf_keras, keras in tf_keras, "2.21.0" in tf_keras, "2.22.0" in tf_keras] == [0, 1, 1, 0]
    assert ("2.18.0" in tf_keras) == (python == "3.11")  # it hands a float to randint


def test_horovod_alone_keeps_python_3_11() -> None:
    assert "2.18.1" in admitted("tensorflow", "3.11", EXTRAS["horovod"])
    assert "2.19.0" not in admitted("tensorflow", "3.11", EXTRAS["horovod"])
    assert all(str(Requirement(line).marker) == 'python_version < "3.12"' for line in EXTRAS["horovod"])
    others = [line for name, lines in EXTRAS.items() if name != "horovod" for line in lines]
    assert not [line for line in others if Requirement(line).marker]


@pytest.mark.parametrize(
    ("python", "tensorflow", "keras"),
    [("3.11", "2.18.1", "2.18.0"), ("3.12", "2.21.0", "2.21.0"), ("3.13", "2.21.0", "2.21.0")],
)
def test_the_lock_holds_both_stacks(python: str, tensorflow: str, keras: str) -> None:
    assert (locked("tensorflow", python), locked("tf-keras", python)) == ({tensorflow}, {keras})
    assert locked("numpy", python).pop().startswith("2.0." if python == "3.11" else "2.5.")
    assert locked("tensorflow-metadata", python).pop().startswith("1.17.") == (python == "3.11")


def test_the_lock_names_public_places_alone() -> None:
    hosts = set(re.findall(r"://([^/\"]+)", (ROOT / "uv.lock").read_text()))
    assert len(hosts) == 2  # the index and its files
    for host in hosts:
        assert host.endswith(".org")  # no machine's own mirror, which others could not reach


def test_what_runs_here_is_what_the_lock_says() -> None:
    python = f"3.{sys.version_info.minor}"
    for name in ("tensorflow", "tf-keras", "numpy", "tensorflow-probability"):
        version = SpecifierSet(str(admitted(name, python, PROJECT["dependencies"])))
        assert importlib.metadata.version(name) in version, name


ELSEWHERE = {ROOT / "tests/examples/ask_grpc.py"}  # run by the server's own Python


def imported(path: Path) -> set[str]:
    """The top names that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_all_that_the_package_and_its_tests_import_is_declared() -> None:
    def names(lines: list[str]) -> set[str]:
        return {Requirement(line).name.lower().replace("_", "-") for line in lines}

    providers = importlib.metadata.packages_distributions()
    ours = names(PROJECT["dependencies"]) | names([line for lines in EXTRAS.values() for line in lines])
    modules = {
        m
        for f in ("tfp_bprune", "tests", "notebooks")
        for p in (ROOT / f).rglob("*.py")
        for m in imported(p)
        if p not in ELSEWHERE
    }
    others = modules - {"tfp_bprune", "tests"}
    given = {m: {d.lower().replace("_", "-") for d in providers.get(m, [m])} for m in others}
    given["mlflow"] = {"mlflow-skinny"}
    given["google"] = {"protobuf"}  # many libraries share the name, here it is this one
    assert [module for module, libraries in given.items() if not libraries & ours] == []


def test_each_python_that_is_found_is_one_that_is_admitted() -> None:
    lines = subprocess.run([ROOT / ".ci" / "pythons"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [line.split(" ", 1) for line in lines]
    assert [version for version, _ in found] == [v for v in ("3.11", "3.13", "3.12") if v in dict(found)]
    for version, python in found:
        said = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
        assert said.startswith(f"Python {version}.")


def make(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """What make would do, in a folder that may hold no more than the Makefile."""
    words = ("make", "-n", "-f", str(ROOT / "Makefile"), *words)
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_another_python_gets_an_environment_of_its_own(tmp_path: Path) -> None:
    here = f"3.{sys.version_info.minor}"
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "uv.lock").touch()
    words, path = ("demo", f"PYTHON={sys.executable}"), {"PATH": "/usr/bin:/bin"}
    assert f"{sys.executable} -m venv .venv\n" in make(*words, folder=tmp_path, **path).stdout
    (tmp_path / ".venv" / "lib" / f"python{here}").mkdir(parents=True)
    assert f"{sys.executable} -m venv .venv\n" in make(*words, folder=tmp_path, **path).stdout
    (tmp_path / ".venv" / "lib" / f"python{here}").rename(tmp_path / ".venv" / "lib" / "python3.1")
    assert f"{sys.executable} -m venv .venv-{here}\n" in make(*words, folder=tmp_path, **path).stdout


@pytest.mark.parametrize("python", ["/no/such/python", "/bin/false"])
def test_no_python_is_one_line(tmp_path: Path, python: str) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "uv.lock").touch()
    result = make("demo", f"PYTHON={python}", folder=tmp_path, PATH="/usr/bin:/bin")
    assert result.returncode == 2
    assert f"Python 3.11, 3.12 or 3.13 is needed, got {python}: name one" in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_package_is_the_one_of_this_project() -> None:
    assert Path(tfp_bprune.__file__).parents[1] == ROOT
