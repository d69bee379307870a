"""An export at work in a process of its own, which answers batch after batch in bounded memory."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.evaluation.fresh import ENVIRONMENT, SCRIPT, TOO_LONG, check_outputs, complaint, limits_of, served_by
from tfp_bprune.files.aside import scratch
from tfp_bprune.types import ExportError, Json

_LENGTH = 8
Outputs = dict[str, np.ndarray]


class Session:
    """The process of one export, loaded once; a context manager.

    Args:
      path: a folder written by `export`, whose files were checked.
      manifest: of it.
      types: of each input, by name, as the manifest has them.
      trust, threads: as in `reload`.

    Raises:
      ExportError: the export is harmful or fails to load or run, or its runtime is not installed.
    """

    def __init__(
        self, path: Path, manifest: Json, types: dict[str, str], trust: bool = False, threads: int | None = None
    ) -> None:
        self._path = path
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            served = served_by(path, manifest, None if trust else folder / "model")
            request: Json = {
                "serve": True,
                "models": [served | {"inputs": {name: [name, kind] for name, kind in types.items()}}],
                "limits": None if trust else limits_of([manifest]),
                "threads": threads or len(os.sched_getaffinity(0)),
            }
            (folder / "request.json").write_text(json.dumps(request))
            self._complaints = stack.enter_context(open(folder / "complaints", "w+"))
            self._process: Any = subprocess.Popen(
                [sys.executable, "-I", str(SCRIPT), str(folder / "request.json")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=os.environ | ENVIRONMENT,
            )
            self._stack = stack.pop_all()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            with contextlib.suppress(BrokenPipeError):
                if kind is None:
                    self._send(b"")
                else:
                    self._process.terminate()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            self._process.wait()

    def run(self, inputs: Outputs) -> Outputs:
        """Named outputs for a batch of inputs by name.

        Raises:
          ExportError: the process ended, or gives something else than numbers for each example.
        """
        content = io.BytesIO()
        np.savez(content, **inputs)
        try:
            self._send(content.getvalue())
        except BrokenPipeError:
            raise self._failure() from None
        size = int.from_bytes(self._process.stdout.read(_LENGTH), "little")
        answer = self._process.stdout.read(size)
        if not size or len(answer) < size:
            raise self._failure()
        outputs = dict(np.load(io.BytesIO(answer)))
        check_outputs(self._path, outputs, len(next(iter(inputs.values()))))
        return outputs

    def _send(self, content: bytes) -> None:
        self._process.stdin.write(len(content).to_bytes(_LENGTH, "little") + content)
        self._process.stdin.flush()

    def _failure(self) -> ExportError:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return ExportError(TOO_LONG)
        self._complaints.seek(0)
        return ExportError(f"{self._path} failed in a process of its own: {complaint(self._complaints.read(), code)}")
