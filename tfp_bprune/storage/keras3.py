"""Models of Keras 3 as models of tf_keras: objects, and `.keras` files, of which configuration and weights are read.

The configuration is rewritten as Keras 2 has it and goes through the checks of a stored architecture (`harmless`), so that a
file names no class and no function that is not on a list; weights are arrays. Nothing of Keras 3 is imported or run.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

from tfp_bprune.graphs import bayesianize as _graphs_bayesianize
from tfp_bprune.graphs.copying import finalize, unnamed_function
from tfp_bprune.storage import store
from tfp_bprune.storage.keras3_config import converted
from tfp_bprune.storage.keras3_weights import OfFile, OfObject, Source, give
from tfp_bprune.types import BpruneError, Json, RunError


def taken(model: Any) -> Any:
    """A model of tf_keras from one of Keras 3 or from a `.keras` file of Keras 2 or 3; others as they are.

    Raises:
      BpruneError: naming the layer or argument that has no counterpart.
      RunError: the file is damaged, is none, or names something that could run code.
    """
    if isinstance(model, str | os.PathLike):
        return _of_file(model)
    return _of_object(model) if is_keras3(model) else model


def is_keras3(model: Any) -> bool:
    """Whether it is a model of Keras 3, which need not be imported to tell."""
    names = {f"{owner.__module__}.{owner.__name__}" for owner in type(model).__mro__}
    return "keras.src.models.model.Model" in names


def _of_object(model: Any) -> Any:
    if not model.built:
        raise BpruneError(f"model {model.name!r} of Keras 3 has no weights yet: build it or call it on a batch first")
    if type(model).__name__ not in ("Functional", "Sequential", "Model"):
        raise BpruneError(
            f"{type(model).__name__} is a subclassed model of Keras 3: expected a functional or sequential one, whose graph is known"
        )
    for layer in model._flatten_layers():
        argument = unnamed_function(layer, "keras")
        if argument is not None:
            raise BpruneError(
                f"layer {layer.name!r} of Keras 3 has a function of its own as {argument}, which tf_keras may not run: expected one of "
                "Keras's"
            )
    try:
        config = json.loads(model.to_json())
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BpruneError(
            f"model {model.name!r} of Keras 3 cannot be described: {str(error).splitlines()[0]}"
        ) from error
    return _made(config, OfObject(model), None)


def _of_file(path: str | os.PathLike[str]) -> Any:
    with OfFile.opened(path) as (config, source, size):
        return _made(config, source, size)


def _made(config: Json, source: Source, size: int | None) -> Any:
    """The model of a configuration, with the weights of a source."""
    model = store.from_architecture(converted(config), size)
    if not model.built:
        raise RunError(f"model {model.name!r} does not say the shape of its inputs: expected one that was built")
    give(model, source)
    finalize(model)
    return model


@functools.wraps(_graphs_bayesianize)
def bayesianize(model: Any, **options: Any) -> Any:
    """As `graphs.bayesianize`, of models of Keras 3 and of `.keras` files too; help shows all of it."""
    return _graphs_bayesianize(taken(model), **options)


bayesianize.__doc__ = str(_graphs_bayesianize.__doc__).replace(
    "model: functional or sequential,",
    "model: of tf_keras or Keras 3, or the path of a `.keras` file; functional or sequential,",
)
