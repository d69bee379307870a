"""Settles which Keras is used: tf_keras, the Keras 2 API that TensorFlow Probability's layers are written in.

Importing this module is cheap: it sets the environment and looks at what is loaded already. TensorFlow itself
loads at the first access of `tf`, `tfp` or `keras`, so that a command's `--help` need not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_probability as tfp
    import tf_keras as keras

__all__ = ["errors_alone", "keras", "library_of", "quietly", "settle", "tf", "tfp"]

_sifting = threading.Lock()
_NOTICES = (
    "absl::InitializeLog",
    "Could not find cuda drivers",
    "Unable to register cu",
    "computation_placer",
    "oneDNN custom operations",
    "TF-TRT",
    "XLA service",
    "StreamExecutor device",
    "Compiled cluster using XLA",
)
_MODULES = {"tf": "tensorflow", "tfp": "tensorflow_probability", "keras": "tf_keras"}
_LIBRARIES = ("tf_keras", "keras", "tensorflow", "tfp_bprune")


def settle() -> None:
    """Chooses Keras 2 for TensorFlow, where it is not loaded yet.

    Where it is, `tf.keras` may be Keras 3, and stays so: this package and TensorFlow Probability take tf_keras by its own name.
    """
    if "tensorflow" not in sys.modules:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        # Start-up notices of the runtime drown what the user asked for; an explicit choice of theirs stays.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settle()
    module = importlib.import_module(_MODULES[name])
    if name == "tf":
        _trace_as_written()
    globals()[name] = module
    return module


def _trace_as_written() -> None:
    """Has AutoGraph leave this package's functions as they are, and rewrite those of the layers that they call.

    Ours branch on Python's values alone, and to rewrite them took most of the time of a trace.
    """
    from tensorflow.python.autograph.core import config

    config.CONVERSION_RULES = (config.DoNotConvert(__package__), *config.CONVERSION_RULES)


def library_of(function: Any) -> str | None:
    """The package that a function belongs to: `tf_keras`, `keras` (Keras 3), `tensorflow`, or this one; None of all others.

    A name does not tell: anyone may call a function `relu`, also one that says to be of the module of another
    (`functools.wraps`). It is the package's own where its module holds this very function under its name.
    """
    module, name = str(getattr(function, "__module__", "")), getattr(function, "__name__", "")
    library = module.partition(".")[0]
    held = getattr(sys.modules.get(module), name, None) if library in _LIBRARIES else None
    return library if held is not None and held is function else None


@contextlib.contextmanager
def errors_alone(*loggers: logging.Logger) -> Iterator[None]:
    """Without what loggers say below errors, as converters do while they work, and TensorFlow Datasets of folders."""
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Drops the lines that TensorFlow's libraries print when they start, which heed no log level.

    The others pass at once through a process of their own, so that nothing is lost where a library ends this one.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3" or not _sifting.acquire(blocking=False):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.callback(_sifting.release)
        with contextlib.suppress(OSError):  # no standard error to keep quiet, or nothing to sift it with
            stack.enter_context(_sifted())
        yield


@contextlib.contextmanager
def _sifted() -> Iterator[None]:
    """Standard error without the notices."""
    if sys.stderr is not None:
        sys.stderr.flush()
    kept = os.dup(2)
    try:
        words = ["grep", "-avF", "--line-buffered", *(f"-e{notice}" for notice in _NOTICES)]
        # A session of its own: an interrupt from the keyboard is for us.
        sieve = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=kept, start_new_session=True)
        assert sieve.stdin is not None
        with sieve.stdin:
            os.dup2(sieve.stdin.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a child of ours still has the other end
                sieve.wait(timeout=5)
    finally:
        os.close(kept)


class _QuietImport:
    """Finds TensorFlow where the other finders do, and has it start quietly, whoever imports it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The specification of `tensorflow` with a quiet loader; None for all others."""
        if name != "tensorflow":
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec and hasattr(spec.loader, "exec_module"):
            spec.loader.exec_module = quietly()(spec.loader.exec_module)  # type: ignore[method-assign,union-attr]
        return spec


settle()
if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, _QuietImport())
