"""The command line `tfp-bprune`: finds the command, runs it, and turns expected errors into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from tfp_bprune.cli.common import PROGRAM, Parser
from tfp_bprune.types import BpruneError

COMMANDS = ("demo", "train", "tune", "prune", "sweep", "search", "export", "evaluate", "bench", "inspect", "study")
_DESCRIPTION = (
    "Bayesian Keras networks: train, prune by signal-to-noise ratio, export small models that say how sure they are."
)
_INTERRUPTED, _WRONG = 130, 2


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0; 2 for a wrong argument, an unreadable model or missing data; 130 when interrupted.
    """
    arguments = _parser().parse_args(words)
    try:
        return _module(arguments.command).run(arguments)
    except (BpruneError, ImportError) as error:
        print(f"{PROGRAM} {arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return _WRONG
    except KeyboardInterrupt:
        print(f"{PROGRAM} {arguments.command}: interrupted; a run continues with --resume", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=_DESCRIPTION, epilog="Each command has its own --help with an example.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {metadata.version('tfp-bprune')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        module.add_arguments(
            commands.add_parser(name, help=module.HELP, description=module.HELP, epilog=module.EXAMPLE)
        )
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"tfp_bprune.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
