"""What the arguments of commands may be: the values of Python's types, and the names in registries. Nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator
from typing import TYPE_CHECKING, Any, get_args

from tfp_bprune.types import Criterion, Format

if TYPE_CHECKING:
    from tfp_bprune.cli.common import Parser


class Named(Container[str]):
    """The names of a registry, which is looked into once a module that registers more has imported it.

    Args:
      known: those that come with the package, for which nothing is imported.
      registry: its module and its name in it.
    """

    def __init__(self, known: Any, registry: tuple[str, str]) -> None:
        self._known, (self._module, self._name) = get_args(known), registry

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._known, *getattr(sys.modules.get(self._module), self._name, ())]))


CRITERIA = Named(Criterion, ("tfp_bprune.pruning.scores", "CRITERIA"))
FORMATS = Named(Format, ("tfp_bprune.exports.forms", "FORMS"))


def add_choice(parser: Parser, flag: str, kind: Any, default: str | None = None, help: str = "") -> None:
    """An argument whose values are those of `kind`, a `Literal` or a `Named`."""
    values = kind if isinstance(kind, Named) else get_args(kind)
    parser.add_argument(flag, default=default, choices=values, help=help)
