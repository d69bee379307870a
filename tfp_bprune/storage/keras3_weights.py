"""The weights of a Keras 3 model, of the object or of its file, given to the same layers of tf_keras.

A file of Keras is a zip archive with `config.json` and `model.weights.h5`; in the latter each layer has a group by its class and
its place among those of the class, with its own variables by number and a group for each layer that it holds.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.files.reading import MOST_JSON, parse
from tfp_bprune.files.schemas import ARCHITECTURE_SCHEMA
from tfp_bprune.types import BpruneError, Json, RunError

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_MOST = 2**33  # bytes of all weights


class Source:
    """Where the weights of a layer, or of a model, come from."""

    def arrays(self, expected: Sequence[Any]) -> list[np.ndarray]:
        """Its own variables, those of layers that it holds aside, in the shapes of the variables `expected`."""
        raise NotImplementedError

    def held(self, name: str) -> Source:
        """Of the layer that it holds as the attribute `name`."""
        raise NotImplementedError

    def layer(self, name: str, kind: str) -> Source:
        """Of the next layer of a model, in the order of its layers."""
        raise NotImplementedError


def give(layer: Any, source: Source) -> None:
    """Gives a layer of tf_keras its weights, and those within it.

    Raises:
      RunError: there are others than it has.
    """
    if isinstance(layer, keras.Model):
        for one in layer.layers:
            give(one, source.layer(one.name, _file_kind(one)))
        return
    own = _own(layer)
    arrays = source.arrays(own)
    if len(arrays) != len(own):
        raise RunError(f"layer {layer.name!r} has {len(own)} variables: found {len(arrays)}")
    for variable, array in zip(own, arrays, strict=True):
        if tuple(array.shape) != tuple(variable.shape) or not np.isfinite(array).all():
            raise RunError(
                f"layer {layer.name!r} has weights {tuple(array.shape)}: expected finite ones {tuple(variable.shape)}"
            )
        variable.assign(array)
    for name, part in vars(layer).items():
        if isinstance(part, keras.layers.Layer) and part.weights:
            give(part, source.held(name))


def _own(layer: Any) -> list[Any]:
    """The variables that Keras 3 has of the layer, too, in its order."""
    held = {id(w) for part in vars(layer).values() if isinstance(part, keras.layers.Layer) for w in part.weights}
    ordered = [*layer._trainable_weights, *layer._non_trainable_weights]
    return [variable for variable in ordered if id(variable) not in held]


def _file_kind(layer: Any) -> str:
    name = type(layer).__name__
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


@dataclass(frozen=True)
class OfObject(Source):
    """A layer or model of Keras 3 itself."""

    thing: Any

    def arrays(self, expected: Sequence[Any]) -> list[np.ndarray]:
        """As in `Source`."""
        own = [*getattr(self.thing, "_trainable_variables", ()), *getattr(self.thing, "_non_trainable_variables", ())]
        return [np.asarray(variable.numpy()) for variable in own]

    def held(self, name: str) -> Source:
        """As in `Source`."""
        found = vars(self.thing).get(name)
        if found is None:
            raise RunError(f"{self.thing.name!r} of Keras 3 holds no layer {name!r}")
        return OfObject(found)

    def layer(self, name: str, kind: str) -> Source:
        """As in `Source`."""
        found = {one.name: one for one in self.thing._operations} if hasattr(self.thing, "_operations") else {}
        found |= {one.name: one for one in self.thing.layers}
        if name not in found:
            raise RunError(f"model {self.thing.name!r} of Keras 3 has no layer {name!r}")
        return OfObject(found[name])


class OfFile(Source):
    """A group of a file of weights."""

    def __init__(self, group: Any, layers: dict[str, str] | None = None) -> None:
        self._group, self._counts = group, Counter[str]()
        self._places = layers or {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str | os.PathLike[str]) -> Iterator[tuple[Json, OfFile, int]]:
        """The configuration, the weights, and the bytes of these, of a `.keras` file.

        Raises:
          RunError: it is none, is damaged or too large, or holds what is no array.
        """
        import h5py

        try:
            with zipfile.ZipFile(path) as archive:
                sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
                if not {_CONFIG, _WEIGHTS} <= set(sizes):
                    raise RunError(
                        f"{path} holds no {_CONFIG} and {_WEIGHTS}: expected what model.save('NAME.keras') writes"
                    )
                if any(
                    entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                    for entry in archive.infolist()
                ):
                    raise RunError(f"{path} is compressed in a way that Keras does not write: save it anew")
                whole = os.stat(path).st_size
                # Keras stores weights as they are; what says that it unpacks to more is no file of Keras.
                if sizes[_CONFIG] > MOST_JSON or sizes[_WEIGHTS] > min(_MOST, 2 * whole + 2**20):
                    raise RunError(f"{path} unpacks to {sum(sizes.values()):,} bytes: expected a file of Keras")
                config = parse(archive.read(_CONFIG), f"{path}/{_CONFIG}", ARCHITECTURE_SCHEMA)
                content = archive.read(_WEIGHTS)
            with h5py.File(io.BytesIO(content), "r") as file:
                yield config, cls(file), len(content)
        except BpruneError:
            raise
        except Exception as error:  # whatever zipfile, h5py and Keras make of a file that Keras never wrote
            said = str(error).splitlines() or [type(error).__name__]
            raise RunError(f"{path} cannot be read as a file of Keras: {said[0]}") from error

    def arrays(self, expected: Sequence[Any]) -> list[np.ndarray]:
        """As in `Source`."""
        group = _child(self._group, "vars") if "vars" in self._group else {}
        names = sorted(group, key=lambda name: (len(name), name))
        if len(names) != len(expected):
            raise RunError(f"{self._group.name} has {len(names)} variables: expected {len(expected)}")
        return [_array(group, name, tuple(variable.shape)) for name, variable in zip(names, expected, strict=True)]

    def held(self, name: str) -> Source:
        """As in `Source`."""
        # Keras goes by a property of the same name where there is one.
        return OfFile(_child(self._group, name if name in self._group else name.lstrip("_")))

    def layer(self, name: str, kind: str) -> Source:
        """As in `Source`."""
        number = self._counts[kind]
        self._counts[kind] += 1
        layers = _child(self._group, "layers")
        place = f"{kind}_{number}" if number else kind
        return OfFile(_child(layers, place) if place in layers else {"vars": {}})


def _child(group: Any, name: str) -> Any:
    """A group within a group, which no link leads out of.

    Raises:
      RunError: there is none, or it is a link.
    """
    import h5py

    if isinstance(group, dict):
        return group.get(name, {})
    if name not in group or not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise RunError(f"{group.name} has no group {name!r} of its own")
    found = group[name]
    if not isinstance(found, h5py.Group):
        raise RunError(f"{found.name} is no group: expected one of a layer")
    return found


def _array(group: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A variable, read once it is known to be numbers in the file itself, of the shape expected."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise RunError(f"{group.name} has {name!r} as a link, which is not followed")
    found = group[name]
    plain = isinstance(found, h5py.Dataset) and not found.external and not found.is_virtual
    if not plain or found.id.get_create_plist().get_nfilters() or found.dtype.kind not in "fiub":
        raise RunError(f"{group.name}/{name} is no plain array of numbers")
    if tuple(found.shape) != shape:
        raise RunError(f"{group.name}/{name} has the shape {tuple(found.shape)}: expected {shape}")
    return np.asarray(found)
