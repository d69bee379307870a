"""The one place where Keras Tuner is imported: it asks for `keras`, and must get the Keras that this package uses."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from tfp_bprune._keras import keras

_ALIASED = "keras"


@contextlib.contextmanager
def _aliased() -> Iterator[None]:
    """`keras` means tf_keras within; every entry of `sys.modules` is back in its place afterwards."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == _ALIASED}
    for name in kept:
        del sys.modules[name]
    sys.modules[_ALIASED] = keras
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == _ALIASED]:
            del sys.modules[name]
        sys.modules.update(kept)


def keras_tuner() -> Any:
    """The module `keras_tuner`, working on tf_keras models."""
    if "keras_tuner" in sys.modules:
        return sys.modules["keras_tuner"]
    with _aliased():
        return importlib.import_module("keras_tuner")
