"""Processes that have a runtime and nothing of this package, begun in no time: forks of one that has imported TensorFlow.

Importing it takes seconds of a processor, and many tests ask what an export does where there is nothing but that. Of an import
no thread is left, nor is anything computed by it: a fork of it is what a new process is after the same import.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_SERVER = """
import json, os, runpy, sys, traceback
import tensorflow

def work(order):
    for number, path in enumerate([order.get("input", os.devnull), *order["streams"]]):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.chdir(order["folder"])
    os.environ.update(order["environment"])
    if "-c" in order["words"]:
        sys.argv = order["words"]
        exec(compile(order["words"].pop(1), "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = order["words"]
        runpy.run_path(sys.argv[0], run_name="__main__")

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(json.loads(line))
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            if not isinstance(ended.code, int | None):
                print(ended.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TF_"))}
    server = subprocess.Popen(
        [sys.executable, "-I", "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    atexit.register(server.communicate)  # which closes its input, and so ends it
    return server


def use() -> None:
    """Has this process reload exports in forks from now on."""
    from tfp_bprune.evaluation import fresh, session

    fresh.subprocess = SimpleNamespace(run=run)  # type: ignore[attr-defined, assignment]
    session.subprocess = SimpleNamespace(Popen=Popen, PIPE=subprocess.PIPE)  # type: ignore[attr-defined, assignment]


class Popen:
    """As `subprocess.Popen` of this Python with -I and a script, with pipes for input and output and a file for errors."""

    def __init__(
        self, words: Sequence[str], stderr: Any = None, env: Mapping[str, str] | None = None, **_: Any
    ) -> None:
        interpreter, isolated, *rest = map(str, words)
        assert (interpreter, isolated) == (sys.executable, "-I")
        self._server = _server()
        self._folder = tempfile.TemporaryDirectory()
        pipes = [str(Path(self._folder.name, name)) for name in ("stdin", "stdout")]
        for pipe in pipes:
            os.mkfifo(pipe)
        order = {"words": rest, "input": pipes[0], "streams": [pipes[1], stderr.name], "folder": os.getcwd()}
        print(json.dumps(order | {"environment": dict(env or {})}), file=self._server.stdin, flush=True)
        self.stdin = os.fdopen(os.open(pipes[0], os.O_RDWR), "wb")
        self.stdout = open(pipes[1], "rb")  # noqa: SIM115
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, once `wait` has learned it."""
        return self._code

    def terminate(self) -> None:
        """Sends the empty batch that a session ends with: what ends a fork is known to the server alone."""
        self.stdin.write(bytes(8))
        self.stdin.flush()

    def wait(self) -> int:
        """The exit code."""
        if self._code is None:
            assert self._server.stdout is not None
            self._code = int(self._server.stdout.readline())
            self._folder.cleanup()
        return self._code


def run(words: Sequence[str], env: Mapping[str, str] | None = None, cwd: str | None = None, **_: Any) -> Any:
    """As `subprocess.run(words, capture_output=True, text=True)` of this Python with -I, and a script or -c."""
    interpreter, isolated, *rest = map(str, words)
    assert (interpreter, isolated) == (sys.executable, "-I")
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        for stream in streams:
            stream.touch()
        order = {
            "words": rest,
            "streams": [*map(str, streams)],
            "folder": cwd or os.getcwd(),
            "environment": dict(env or {}),
        }
        print(json.dumps(order), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, *(stream.read_text() for stream in streams))
