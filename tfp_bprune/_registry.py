"""Things of one kind by name, to which any module adds its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from tfp_bprune.types import BpruneError, suggestion

Thing = TypeVar("Thing")
_ALL: list[Registry[Any]] = []
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """A mapping that grows: what is registered first stays first, and what is asked for must be there.

    Args:
      what: is registered, as errors call it.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self._things: dict[str, tuple[Thing, tuple[str, str]]] = {}
        _ALL.append(self)

    def add(self, name: str, thing: Thing, source: Any) -> Thing:
        """Registers `thing` and returns it.

        Args:
          source: the function or class that the thing was made of; one of the same module and name takes its place, as
            when a notebook's cell is run again.

        Raises:
          BpruneError: the name is none, or another thing has it.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise BpruneError(f"{name!r} cannot name a {self.what}: expected letters, digits and _ . + -")
        place = (source.__module__, getattr(source, "__qualname__", type(source).__qualname__))
        if name in self._things and self._things[name][1] != place:
            taken = ".".join(self._things[name][1])
            raise BpruneError(f"there is a {self.what} {name!r} already, of {taken}: choose another name")
        self._things[name] = (thing, place)
        return thing

    def remove(self, name: str) -> None:
        """Forgets the thing of this name."""
        del self._things[name]

    @property
    def modules(self) -> set[str]:
        """The modules from which things came."""
        return {place[0] for _, place in self._things.values()}

    def __getitem__(self, name: str) -> Thing:
        return self._things[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def named(self, name: str) -> Thing:
        """The thing of this name.

        Raises:
          BpruneError: there is none.
        """
        if name not in self._things:
            near = suggestion(name, self)
            raise BpruneError(f"unknown {self.what} {name!r}{near}: expected one of {', '.join(self)}")
        return self[name]


def extensions() -> list[str]:
    """The modules outside the package that registered anything; a new process imports them to know the same names."""
    ours = __name__.split(".")[0]
    found = set().union(*(registry.modules for registry in _ALL)) - {"__main__"}
    return sorted(module for module in found if module.split(".")[0] != ours)
