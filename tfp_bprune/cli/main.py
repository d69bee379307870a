"""The command line `tfp-bprune`: finds the command, runs it, and turns expected errors into one line."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from tfp_bprune.cli.common import PROGRAM, Parser, line_of
from tfp_bprune.types import BpruneError

COMMANDS = ("demo", "train", "tune", "prune", "sweep", "search", "export", "evaluate", "bench", "inspect", "study")
_DESCRIPTION = (
    "Bayesian Keras networks: train, prune by signal-to-noise ratio, export small models that say how sure they are."
)
_WRONG, _SIGNALLED = 2, 128
_GOES_ON = {
    "train": "continue with --resume from the last finished epoch",
    "search": "the same command goes on from the last trial",
    "tune": "the same command goes on from the last trial",
    "study": "the same command goes on from the last finished network",
}
_TENSORFLOW = "tensorflow.python.framework.errors_impl"


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      The exit code: 0; 2 for a wrong argument, an unreadable model or missing data; 130 when interrupted (SIGINT), 143
      when terminated (SIGTERM).
    """
    arguments = _parser().parse_args(words)
    try:
        with _terminable():
            return _module(arguments.command).run(arguments)
    except (BpruneError, ImportError) as error:
        return _refused(arguments.command, str(error))
    except MemoryError:
        return _refused(arguments.command, "out of memory: expected a smaller network, or a machine with more")
    except OSError as error:  # a full disk, a folder without the right to write
        place = f"{error.filename}: " if error.filename else ""
        return _refused(arguments.command, f"{place}{error.strerror or error}")
    except _Ended as ended:
        return _stopped(arguments, "terminated", ended.number)
    except KeyboardInterrupt:
        return _stopped(arguments, "interrupted", signal.SIGINT)
    except Exception as error:
        if type(error).__module__ != _TENSORFLOW:
            raise
        return _refused(arguments.command, f"TensorFlow failed: {(str(error).splitlines() or [''])[0]}")


class _Ended(BaseException):
    """SIGTERM, as SIGINT is KeyboardInterrupt: what is being written is cleared away."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what is done as SIGINT does; elsewhere than in the main thread signals are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: Any) -> None:
        raise _Ended(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refused(command: str, text: str) -> int:
    print(f"{PROGRAM} {command}: {line_of(text)}", file=sys.stderr)
    return _WRONG


def _stopped(arguments: Any, how: str, number: int) -> int:
    """Says what is there, and how it goes on."""
    then = _GOES_ON.get(arguments.command)
    if arguments.command == "train" and not (arguments.out / "manifest.json").exists():
        then = None
    print(f"{PROGRAM} {arguments.command}: {how}; {then or 'nothing was written, run it again'}", file=sys.stderr)
    return _SIGNALLED + number


class _Import(argparse.Action):
    """Imports a module as soon as it is named: before the command's arguments are held to what there is."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, **more)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            importlib.import_module(values)
        except (BpruneError, ImportError) as error:
            parser.error(f"{option_string} {values}: {error}")


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=_DESCRIPTION, epilog="Each command has its own --help with an example.")
    parser.add_argument(
        "--import",
        action=_Import,
        metavar="MODULE",
        help="import a Python module first, for the datasets and whatever else it registers",
    )
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
