"""What answers batches: a network in this process, or an export in one of its own; the same numbers of both."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.batches import Inputs
from tfp_bprune.evaluation.fresh import check_export, inputs_in
from tfp_bprune.evaluation.session import Outputs, Session
from tfp_bprune.files.runs import MANIFEST, Run
from tfp_bprune.graphs.convert import adopt
from tfp_bprune.graphs.heads import Head, Said, noted_heads
from tfp_bprune.graphs.names import input_names
from tfp_bprune.graphs.rebuild import check_known
from tfp_bprune.layers import variational_layers
from tfp_bprune.prediction.dropped import drawn_layers
from tfp_bprune.prediction.predict import DEFAULT_SAMPLES, Predictor
from tfp_bprune.storage.saved import SavedModel, load_model
from tfp_bprune.types import DataError, ExportError, Json, Predictive

_KEPT = "_predictors_of_tfp_bprune"
_MOST = 4  # predictors kept of a model


@dataclass(frozen=True)
class Wish:
    """How to predict; None for what the model or export has.

    Attributes:
      predictive, samples, seed, task, from_logits: as in `predict`.
      trust: of an export, as in `reload`.
    """

    predictive: Predictive | None = None
    samples: int | None = None
    seed: int | None = None
    task: Said = None
    from_logits: bool | None = None
    trust: bool = False


@dataclass(frozen=True)
class Runner:
    """Something that answers batches.

    Attributes:
      inputs: what it takes.
      heads: what its outputs mean, by name.
      predictive, samples: how it answers.
    """

    inputs: Inputs
    heads: dict[str, Head]
    predictive: Predictive
    samples: int | None

    def run(self, x: dict[str, Any]) -> Outputs:
        """Named outputs for tensors by the name of the input."""
        raise NotImplementedError


@contextmanager
def runner_for(subject: Any, wish: Wish, who: str) -> Iterator[Runner]:
    """A runner of a Keras model, of a `SavedModel`, or of the folder of a run or of an export.

    Raises:
      BpruneError: it is none of these, or cannot predict as wished.
    """
    if isinstance(subject, SavedModel):
        subject = subject.model
    if isinstance(subject, str | os.PathLike):
        if Run(subject).exists and Run.open(subject).manifest.get("kind") in ("run", "model"):
            subject = load_model(subject).model
        else:
            with _of_export(_export_folder(Path(subject)), wish, who) as runner:
                yield runner
            return
    yield _of_model(subject, wish, who)


def _export_folder(path: Path) -> Path:
    """The folder of an export, also where one of its files was named."""
    inside = path.parent if path.is_file() or path.name.isdigit() else path
    return inside if not (path / MANIFEST).is_file() and (inside / MANIFEST).is_file() else path


@dataclass(frozen=True)
class _OfModel(Runner):
    predictor: Predictor

    def run(self, x: dict[str, Any]) -> Outputs:
        return {name: value.numpy() for name, value in self.predictor.predict(*x.values()).items()}


def _of_model(model: Any, wish: Wish, who: str) -> Runner:
    check_known(model)
    adopted = adopt(model)
    predictive: Predictive = wish.predictive or ("sampled" if _is_uncertain(adopted) else "mean")
    samples = DEFAULT_SAMPLES if wish.samples is None else wish.samples
    if wish.samples is not None and predictive != "sampled":
        raise DataError(f"samples are for predictive='sampled', got samples={samples} for {predictive!r}: leave it out")
    options = (predictive, samples, wish.seed or 0, _hashable(wish.task), wish.from_logits)
    predictor = _predictor(model, options, wish.task)
    specs = dict(zip(input_names(model), predictor.inputs.values(), strict=True))
    inputs = Inputs(who, model.name, specs)
    return _OfModel(inputs, predictor.heads, predictive, samples if predictive == "sampled" else None, predictor)


def _is_uncertain(model: Any) -> bool:
    return any(True for _ in variational_layers(model)) or bool(drawn_layers(model))


def _hashable(task: Said) -> Any:
    return task if task is None or isinstance(task, str) else tuple(sorted(task.items()))


def _predictor(model: Any, options: Any, task: Said) -> Predictor:
    """A predictor of the model as it is now: the one made before, where neither weights nor layers changed since.

    To trace one takes longer than to predict thousands of examples.
    """
    predictive, samples, seed, _, from_logits = options
    kept = vars(model).setdefault(_KEPT, _Kept()).predictors
    state = _state_of(model)
    if options not in kept or kept[options][0] != state:
        made = Predictor(model, predictive, samples, seed, task=task, from_logits=from_logits)
        kept.pop(options, None)
        while len(kept) >= _MOST:
            del kept[next(iter(kept))]
        kept[options] = (state, made)
    return kept[options][1]


class _Kept:
    """The predictors of one model; a copy of it has none of them."""

    def __init__(self) -> None:
        self.predictors: dict[Any, tuple[str, Predictor]] = {}

    def __deepcopy__(self, memo: Any) -> _Kept:
        return _Kept()

    def __reduce__(self) -> Any:
        return (_Kept, ())


def _state_of(model: Any) -> str:
    """A hash of all that a prediction follows from: weights, the layers' configs, and what outputs were said to mean."""
    digest = hashlib.blake2b(repr(noted_heads(model)).encode())
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.Model):
            digest.update(repr((layer.name, getattr(layer, "activation", None), getattr(layer, "rate", None))).encode())
    for weight in model.weights:
        array = np.ascontiguousarray(weight.numpy())
        digest.update(repr((array.shape, array.dtype)).encode())
        digest.update(array.tobytes() if array.dtype == object else array.data)
    return digest.hexdigest()


@dataclass(frozen=True)
class _OfExport(Runner):
    session: Session

    def run(self, x: dict[str, Any]) -> Outputs:
        return self.session.run({name: _plain(tensor) for name, tensor in x.items()})


@contextmanager
def _of_export(path: Path, wish: Wish, who: str) -> Iterator[Runner]:
    manifest = check_export(path)
    _check_wish(path, manifest, wish)
    inputs = inputs_in(manifest)
    specs = {name: tf.TensorSpec([None, *about["shape"]], about["dtype"], name) for name, about in inputs.items()}
    types = {name: about["dtype"] for name, about in inputs.items()}
    with Session(path, manifest, types, wish.trust) as session:
        yield _OfExport(
            Inputs(who, str(path), specs), _heads_of(manifest), manifest["predictive"], manifest.get("samples"), session
        )


def _check_wish(path: Path, manifest: Json, wish: Wish) -> None:
    held = {"predictive": manifest["predictive"], "samples": manifest.get("samples"), "seed": manifest.get("draw_seed")}
    for name, value in held.items():
        asked = getattr(wish, name)
        if asked is not None and asked != value:
            has = f"{name}={value!r}" if value is not None else f"no {name}"
            raise ExportError(f"{path} was exported with {has}, got {name}={asked!r}: leave it out, or export anew")
    for name in ("task", "from_logits"):
        if getattr(wish, name) is not None:
            raise ExportError(f"{path} says itself what its outputs mean: leave {name} out")


def _heads_of(manifest: Json) -> dict[str, Head]:
    """What the outputs of an export mean; those of before it was written into manifests have one, of the data's task."""
    outputs = manifest.get("outputs") or {"outputs": {"task": manifest.get("task", "classification")}}
    try:
        return {name: Head(**about) for name, about in outputs.items()}
    except TypeError as error:
        raise ExportError(f"the manifest describes the outputs in an unknown form: {error}") from error


def _plain(tensor: Any) -> np.ndarray:
    array = tensor.numpy()
    return np.array(array.tolist()) if array.dtype == object else array
