"""Settles which Keras is used: tf_keras, the Keras 2 API that TensorFlow Probability's layers are written in.

Importing this module is cheap: it sets the environment and looks at what is loaded already. TensorFlow itself
loads at the first access of `tf`, `tfp` or `keras`, so that a command's `--help` need not wait for it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_probability as tfp
    import tf_keras as keras

__all__ = ["keras", "quietly", "settle", "tf", "tfp"]

_NOTICES = (
    b"absl::InitializeLog",
    b"Could not find cuda drivers",
    b"Unable to register cu",
    b"computation_placer",
    b"oneDNN custom operations",
    b"TF-TRT",
    b"XLA service",
    b"StreamExecutor device",
    b"Compiled cluster using XLA",
)
_MODULES = {"tf": "tensorflow", "tfp": "tensorflow_probability", "keras": "tf_keras"}


def settle() -> None:
    """Chooses Keras 2 for TensorFlow, or says why it is too late.

    Raises:
      ImportError: TensorFlow was imported before with Keras 3 as its `tf.keras`.
    """
    if "tensorflow" not in sys.modules:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        # Start-up notices of the runtime drown what the user asked for; an explicit choice of theirs stays.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        return
    version = _loaded_keras_version()
    if version and not version.startswith("2."):
        raise ImportError(
            f"tfp_bprune needs tf.keras to be Keras 2 (tf_keras), but TensorFlow is already imported with Keras {version}: "
            "import tfp_bprune before tensorflow, or set TF_USE_LEGACY_KERAS=1 before Python starts"
        )


def _loaded_keras_version() -> str:
    keras_module = getattr(sys.modules["tensorflow"], "keras", None)
    version = getattr(keras_module, "__version__", "")
    return version() if callable(version) else str(version or "")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    settle()
    with quietly():
        importlib.import_module("tensorflow")  # first: the others would load it later, out of reach
        module = importlib.import_module(_MODULES[name])
    globals()[name] = module
    return module


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Drops the lines that TensorFlow's libraries print when they start, which heed no log level."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notices, contextlib.ExitStack() as stack:
        try:
            kept = os.dup(2)
        except OSError:  # no standard error to keep quiet
            yield
            return
        stack.callback(os.close, kept)
        os.dup2(notices.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            notices.seek(0)
            rest = [line for line in notices if not any(known in line for known in _NOTICES)]
            os.write(2, b"".join(rest))


settle()
