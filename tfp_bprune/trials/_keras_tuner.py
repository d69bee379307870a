"""The one place where Keras Tuner is imported: it asks for `keras`, and must get the Keras that this package uses."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.files.reading import read_below
from tfp_bprune.files.runs import sealed, unsealed, write_atomically
from tfp_bprune.types import BpruneError, RunError

_ALIASED, _NAME = "keras", "keras_tuner"


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
    """The module `keras_tuner`, working on tf_keras models, its files written atomically and checked when read.

    Raises:
      BpruneError: it was imported before, for another Keras.
    """
    if _NAME in sys.modules:
        module = sys.modules[_NAME]
        if module.src.backend.keras.Model is not keras.Model:
            raise BpruneError(
                "keras_tuner was imported for another Keras: replace `import keras_tuner` by "
                "`from tfp_bprune.tuning import keras_tuner; keras_tuner = keras_tuner()`"
            )
        return module
    with _aliased():
        module = importlib.import_module(_NAME)
    module.src.utils.save_json, module.src.utils.load_json = _saving(module.errors.FatalError), _load
    module.src.config.DEBUG = False  # the traceback of a candidate that fails is kept with it, and not printed
    keeps = module.src.engine.tuner_utils.SaveBestEpoch
    keeps._save_model = _ending(keeps._save_model, module.errors.FatalError)
    return module


def _ending(save: Any, fatal: type[Exception]) -> Any:
    """As `save`, but a checkpoint that cannot be written ends the search: it is no fault of the candidate."""

    def saved(callback: Any) -> None:
        try:
            save(callback)
        except (OSError, tf.errors.OpError) as error:
            said = str(error).splitlines() or [type(error).__name__]
            raise fatal(f"cannot write {callback.filepath}: {said[0]}; choose a folder that can be written") from error

    return saved


def _saving(fatal: type[Exception]) -> Any:
    """Writes what Keras Tuner keeps; what cannot be written ends the search, as in `_ending`."""
    kind = type("CannotWrite", (fatal, RunError), {})

    def save(path: str, content: Any) -> str:
        text = sealed(content)
        try:
            write_atomically(Path(path), text)
        except RunError as error:
            raise kind(str(error)) from error
        return text.decode()

    return save


def _load(path: str) -> Any:
    try:
        return unsealed(read_below(Path(path).parent, Path(path).name), path)
    except (OSError, RunError) as error:
        raise RunError(f"{path} cannot be read ({error}): delete the folder to search anew") from error
