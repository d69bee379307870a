"""Whole commands in processes of their own, begun in no time: forks of one that has imported everything and done nothing.

Importing TensorFlow takes seconds of a processor, and what a kill, a signal or a full disk leaves wants many commands. Of an
import no thread is left, nor is anything computed by it: a fork of it is what a new process is after the same imports. What
a command reloads is a fork of the same process, and ends with the command, as it does outside of the tests.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
_SECONDS = 300.0


def serve(address: str) -> None:
    """Forks a process for each order that comes, and ends when standard input does."""
    import selectors

    _import_all()
    orders = socket.socket(socket.AF_UNIX)
    orders.bind(address)
    orders.listen(64)
    selector, children = selectors.DefaultSelector(), {}
    selector.register(orders, selectors.EVENT_READ, "order")
    selector.register(0, selectors.EVENT_READ, "end")
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            if key.data == "end":
                os._exit(0)
            elif key.data == "order":
                connection, _ = orders.accept()
                order = json.loads(connection.makefile().readline())
                child = os.fork()
                if child == 0:
                    _perform(order)
                pidfd = os.pidfd_open(child)
                children[child] = (pidfd, connection)
                selector.register(pidfd, selectors.EVENT_READ, child)
                selector.register(connection, selectors.EVENT_READ, (child,))
                _tell(connection, child)
            elif isinstance(key.data, tuple):  # who asked is gone, and so must be what it asked for
                os.kill(key.data[0], signal.SIGKILL)
                selector.unregister(key.fileobj)
            else:
                pidfd, connection = children.pop(key.data)
                _tell(connection, os.waitstatus_to_exitcode(os.waitpid(key.data, 0)[1]))
                selector.unregister(pidfd)
                os.close(pidfd)
                if connection in {one.fileobj for one in selector.get_map().values()}:
                    selector.unregister(connection)
                connection.close()


def _tell(connection: socket.socket, number: int) -> None:
    try:
        connection.sendall(f"{number}\n".encode())
    except OSError:  # nobody waits for it
        return


def _import_all() -> None:
    import importlib

    import tfp_bprune

    for path in sorted(Path(tfp_bprune.__file__).parent.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not {"loaders", "__init__", "reload"} & set(parts):
            importlib.import_module(".".join(parts))
    for name in ("tfp_bprune._keras", "matplotlib.pyplot"):
        importlib.import_module(name)
    from tfp_bprune._keras import keras, tf, tfp
    from tfp_bprune.trials._keras_tuner import keras_tuner

    for module in (tf, tfp, keras, keras_tuner()):
        assert module.__name__


def _perform(order: dict[str, Any]) -> None:
    """Does what is ordered, as a new process would, and ends."""
    code = 1
    try:
        os.setsid()
        for number, path in enumerate([os.devnull, *order["streams"]]):
            os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
        os.chdir(order["folder"])
        os.environ.update(order["environment"])
        tempfile.tempdir = None
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _run(order)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if not isinstance(ended.code, int | None):
            print(ended.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = 120  # as Python has it
        os._exit(code)


def _run(order: dict[str, Any]) -> int:
    import runpy

    exec(order["first"], {"__name__": "first"})
    sys.argv = order["words"]
    if order["kind"] == "script":
        if sys.argv[0] == "-c":
            exec(compile(sys.argv.pop(1), "<string>", "exec"), {"__name__": "__main__"})
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    from tfp_bprune.cli.main import main
    from tfp_bprune.evaluation import fresh

    fresh.subprocess = SimpleNamespace(run=_reloaded)  # type: ignore[attr-defined, assignment]
    return main()


def _reloaded(words: Sequence[str], env: Mapping[str, str] | None = None, **_: Any) -> Any:
    """As `subprocess.run(words, capture_output=True, text=True)` of this Python with -I, within a command."""
    with Process(words[2:], kind="script", address=os.environ["TESTS_COMMANDS"]) as process:
        code, out, err = process.wait()
        return subprocess.CompletedProcess(words, code, out, err)


@cache
def _address() -> str:
    place = tempfile.mkdtemp(prefix="orders-")
    address = os.path.join(place, "socket")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    environment |= {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TESTS_COMMANDS": address,
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
    }
    words = [sys.executable, "-c", f"from tests import commands; commands.serve({address!r})"]
    server = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    atexit.register(lambda: (server.communicate(), shutil.rmtree(place, ignore_errors=True)))
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return address


class Process:
    """A command, or a script of Python, at work.

    Args:
      words: of the command, without the program's name; or of the script.
      first: Python that is run in the process before.
      temporary: folder for what it writes aside of its results.
    """

    def __init__(
        self,
        words: Sequence[Any],
        first: str = "",
        temporary: Path | None = None,
        kind: str = "command",
        address: str | None = None,
    ) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="command-"))
        self._streams = [self._place / "out", self._place / "err"]
        for stream in self._streams:
            stream.touch()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(_SECONDS)
        self._connection.connect(address or _address())
        program = ["tfp-bprune"] if kind == "command" else []
        order = {
            "kind": kind,
            "words": [*program, *map(str, words)],
            "first": first,
            "streams": [*map(str, self._streams)],
            "folder": os.getcwd(),
            "environment": {} if temporary is None else {"TMPDIR": str(temporary)},
        }
        self._connection.sendall((json.dumps(order) + "\n").encode())
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: Any) -> None:
        self._connection.close()
        self._answers.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, unless it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self) -> tuple[int, str, str]:
        """Its exit code, negative where a signal ended it, and what it said on standard output and error."""
        code = int(self._answers.readline())
        return code, *(stream.read_text(errors="replace") for stream in self._streams)

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return bool(select.select([self._connection], [], [], 0)[0])

    @property
    def printed(self) -> str:
        """On standard output until now."""
        return self._streams[0].read_text(errors="replace")

    @property
    def said(self) -> str:
        """On standard error until now."""
        return self._streams[1].read_text(errors="replace")


def command(*words: Any, first: str = "", temporary: Path | None = None, kind: str = "command") -> tuple[int, str, str]:
    """Runs a command to its end."""
    with Process(words, first, temporary, kind) as process:
        return process.wait()
