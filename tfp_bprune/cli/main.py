"""The command line `tfp-bprune`: finds the command, runs it, and turns expected errors into one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfp_bprune.cli.stopped import PROGRAM, Signals
from tfp_bprune.files.aside import check_room, own_temporaries
from tfp_bprune.types import BpruneError

if TYPE_CHECKING:
    from tfp_bprune.cli.common import Parser

COMMANDS = (
    "demo", "train", "tune", "prune", "sweep", "search", "export", "evaluate", "predict", "bench", "inspect", "report",
    "study", "completion",
)  # fmt: skip
_DESCRIPTION = (
    "Bayesian Keras networks: train, prune by signal-to-noise ratio, export small models that report their uncertainty."
)
_QUIET = "print nothing but errors and the JSON that --json - asks for"
_WRONG = 2
_TENSORFLOW = "tensorflow.python.framework.errors_impl"
_TRACEBACK = "TFP_BPRUNE_TRACEBACK"


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0; 2 for a wrong argument, an unreadable model or missing data; 130 when interrupted (SIGINT), 143
      when terminated (SIGTERM).
    """
    arguments = None
    with Signals(ends=words is None) as signals:
        try:
            from tfp_bprune._progress import quietly

            arguments = parser_of_all().parse_args(words)
            signals.about(arguments)
            _check_room(arguments)
            with own_temporaries(), quietly(arguments.quiet):
                code = _module(arguments.command).run(arguments)
            sys.stdout.flush()  # which a full disk may refuse
            return code
        except BaseException as error:
            if signals.number is not None or isinstance(error, KeyboardInterrupt):
                return signals.said()
            said = _said(error)
            if arguments is None or said is None:
                raise
            return _refused(arguments.command, said)


def _check_room(arguments: Any) -> None:
    """Refuses, before anything that takes long, to write an answer where nothing can be written."""
    asked = [getattr(arguments, name, None) for name in ("json", "figure")]
    asked += [arguments.costs] if "products" in (getattr(arguments, "calibrate", None) or []) else []
    asked += [arguments.out] if arguments.command in ("predict", "report") else []
    for path in asked:
        if path not in (None, "-"):
            check_room(Path(path))


def _said(error: BaseException) -> str | None:
    """What there is to say of an error; None of what is to be seen whole."""
    if isinstance(error, BpruneError | ImportError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory: expected a smaller network, or a machine with more"
    if isinstance(error, OSError):  # a full disk, a folder without the right to write
        _give_up_output()
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    if type(error).__module__ == _TENSORFLOW:
        return f"TensorFlow failed: {(str(error).splitlines() or [''])[0]}"
    if not isinstance(error, Exception) or os.environ.get(_TRACEBACK):
        return None
    # A fault of the program, or of a file that passed all checks.
    said = next((line for line in str(error).splitlines() if line.strip()), "")
    kind = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"failed in a way that was not foreseen, {kind}; set {_TRACEBACK}=1 to see where, and report it"


def _give_up_output() -> None:
    """Has nothing more be written to a standard output that takes nothing more: Python would try again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refused(command: str, text: str) -> int:
    from tfp_bprune.cli.common import line_of

    print(f"{PROGRAM} {command}: {line_of(text)}", file=sys.stderr)
    return _WRONG


class _Import(argparse.Action):
    """Imports a module as soon as it is named: before the command's arguments are held to what there is."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, **more)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            importlib.import_module(values)
        except (BpruneError, ImportError) as error:
            parser.error(f"{option_string} {values}: {error}")


def parser_of_all() -> Parser:
    """The parser of the program, with all commands."""
    from tfp_bprune.cli.common import Parser

    parser = Parser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog="Start with `tfp-bprune demo`. Each command has its own --help with examples.",
    )
    parser.add_argument(
        "--import",
        action=_Import,
        metavar="MODULE",
        help="import a Python module first, for the datasets and whatever else it registers",
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {metadata.version('tfp-bprune')}")
    parser.add_argument("-q", "--quiet", action="store_true", help=_QUIET)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = _module(name)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, epilog=module.EXAMPLE)
        module.add_arguments(command)
        # Before the command or after it: what is not given here must not undo what was given there.
        command.add_argument("-q", "--quiet", action="store_true", default=argparse.SUPPRESS, help=_QUIET)
    return parser


def _module(command: str) -> Any:
    return importlib.import_module(f"tfp_bprune.cli.{command}")


if __name__ == "__main__":
    sys.exit(main())
