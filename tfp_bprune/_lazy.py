"""A package whose public names load on first use.

Two public functions, `prune` and `export`, have the names of the stations that they come from. Importing a submodule
makes Python bind it to its parent under that name; the module class below keeps the function there instead.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


class _Public:
    """One public name: looked up in its station, never overwritten by the import system."""

    def __init__(self, station: str, name: str) -> None:
        self._station, self._name = station, name

    def __get__(self, package: Any, owner: type) -> Any:
        return getattr(importlib.import_module(self._station), self._name)

    def __set__(self, package: Any, value: Any) -> None:
        if not isinstance(value, ModuleType):
            raise AttributeError(f"{self._name} is part of the public interface and cannot be replaced")


def attach(package: str, stations: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Makes `package` offer its `stations`, and the names of each, lazily; returns the names, sorted, for `__all__`."""
    names = {name: station for station, several in stations.items() for name in several}
    public = {name: _Public(f"{package}.{station}", name) for name, station in names.items()}

    def station(module: ModuleType, name: str) -> ModuleType:
        if name not in stations:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    sys.modules[package].__class__ = type("Package", (ModuleType,), {**public, "__getattr__": station})
    return sorted(names)
