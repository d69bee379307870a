"""A model and what it was trained on, from and to a run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.data.info import Info
from tfp_bprune.files.reading import parse
from tfp_bprune.files.runs import CONFIG, WEIGHTS, Run, finite, tensors_to_bytes
from tfp_bprune.files.schemas import ARCHITECTURE_SCHEMA
from tfp_bprune.graphs.heads import Head, check_widths, heads_for, note_heads, noted_heads
from tfp_bprune.storage import compress, store
from tfp_bprune.types import Json, RunError

_WEIGHTS_FILE = f"{WEIGHTS}/model.safetensors"


@dataclass(frozen=True)
class SavedModel:
    """What `load_model` reads from a run directory.

    Attributes:
      model: the Keras model.
      config: the run's `config.json`.
      manifest: its `manifest.json`.
    """

    model: Any
    config: Json
    manifest: Json


def load_model(path: str | os.PathLike[str]) -> SavedModel:
    """Reads the model of a run directory written by `fit(..., out=path)` or `save_model`; every file is checked.

    Returns:
      A `SavedModel`: `model`, the Keras model, not compiled; `config`, what the run was asked for; `manifest`.

    Raises:
      RunError: there is no run, it has no finished epoch, or a file is missing, truncated or changed.

    Example:
      model = bp.load_model("runs/mine").model
    """
    _refuse_others(Path(path))
    run = Run.open(path)
    manifest = run.manifest
    if manifest.get("kind") not in ("run", "model"):
        raise RunError(
            f"{run.path} is an {manifest.get('kind')}: expected a run directory written by `tfp-bprune train` or `prune`"
            + ("; `predict`, `evaluate` and `reload` run exports" if manifest.get("kind") == "export" else "")
        )
    name = manifest.get("checkpoint")
    if name is None:
        raise RunError(
            f"{run.path} has no checkpoint yet: expected a run with at least one finished epoch; continue it with --resume"
        )
    config = run.config
    if "architecture" not in config:
        raise RunError(f"{run.path / CONFIG} has no `architecture`: expected what `tfp-bprune train` or `prune` wrote")
    now = present_architecture(run)
    config |= {"architecture": config["architecture"] if now is None else now}
    stored = {key: array for key, array in run.read_tensors(name).items() if store.is_weight(compress.name_of(key))}
    declared = compress.declared(stored)
    model = store.from_architecture(config["architecture"], sum(array.nbytes for array in declared.values()))
    store.check_weights(model, declared)  # before anything is unpacked
    store.set_weights(model, compress.decode(stored))
    heads = _stored_heads(model, config)
    check_widths(model, heads or {})
    note_heads(model, heads)
    return SavedModel(model, config, manifest)


def _refuse_others(path: Path) -> None:
    """Refuses what holds a model in another form, and says what reads it.

    Raises:
      RunError: naming the form.
    """
    if path.is_file() and path.suffix in (".keras", ".h5", ".hdf5"):
        raise RunError(
            f"{path} is a file of Keras, and no run: tf_keras.models.load_model reads it, and `bayesianize` and `prune` take what "
            "that gives; `fit(..., out=FOLDER)` and `save_model` write runs"
        )
    if path.is_dir() and (path / "saved_model.pb").is_file():
        raise RunError(
            f"{path} is a SavedModel, and no run: `predict` takes exports, tf.saved_model.load any SavedModel"
        )


def present_architecture(run: Run) -> Json | None:
    """That of the run's last checkpoint, where it is not the config's: the network shrank while it trained."""
    name = run.manifest.get("architecture")
    return None if name is None else parse(run.read(name), run.path / name, ARCHITECTURE_SCHEMA)


def take_names(model: Any, run: Run) -> None:
    """Gives the layers of `model` their names in `run`, where only numbers tell these apart that Keras puts behind names.

    A network that is built a second time in a process is called otherwise. By the names of its layers it draws its noise, and
    is known again.
    """
    for stored in (run.config.get("architecture"), present_architecture(run)):
        if stored is not None and store.take_names(model, stored):
            return


def heads_config(model: Any) -> Json:
    """The entry of a run's config that says what the outputs of `model` mean; empty where that is not known."""
    known = noted_heads(model)
    return {"heads": {name: head.to_json() for name, head in known.items()}} if known else {}


def _stored_heads(model: Any, config: Json) -> dict[str, Head] | None:
    """What a run's config says of the outputs; of a run from before there was such an entry, what its data says."""
    stored, data = config.get("heads"), config.get("data") or {}
    try:
        if stored is not None:
            return {name: Head(**entry) for name, entry in stored.items()}
        if "task" in data:
            return heads_for(model, Info(data["name"], data["task"], tuple(data["input_shape"]), data["classes"]))
    except (TypeError, AttributeError, KeyError) as error:
        raise RunError(f"the run's config describes the outputs in an unknown form: {error}") from error
    return None


def save_model(model: Any, path: str | os.PathLike[str], *, config: Json | None = None, **facts: Any) -> Run:
    """Writes `model` as a new run directory; pruned weights take a bit each or less, and all are entropy-coded.

    What variables hold under a mask is not stored. `load_model` restores it as pruning does (mean 0, rho at its initial value,
    centre of the prior 0), so a pruned model comes back bit-identical. If an optimizer has changed these hidden values
    since, the change is lost; outputs, masks, scores and gradients do not depend on it. Checkpoints of `fit` hold everything.
    The manifest has `bytes`, the size of the weights as stored, and `dense_bytes`, that of all arrays in full.

    Args:
      model: functional or sequential, of tf_keras.
      path: a folder, new or empty.
      config: entries of `config.json`, such as `request` and `data` of a run, by which commands load the data; nothing by
        default.
      **facts: further entries of the manifest.

    Returns:
      The `Run`.

    Raises:
      RunError: `path` is not new or empty; the model cannot be stored without code; or weights are bfloat16 or not finite, which
        could not be loaded.
      BpruneError: the model is subclassed, not built, or of another Keras.
    """
    content = finite((config or {}) | heads_config(model) | {"architecture": store.architecture(model)})
    arrays = store.rested_weights_of(model)
    _check_finite(arrays)
    stored = tensors_to_bytes(compress.encode(arrays))
    run = Run.create(path)
    sizes: Json = {"bytes": len(stored), "dense_bytes": sum(array.nbytes for array in arrays.values())}
    with run.begun():
        files = {
            CONFIG: (json.dumps(content, indent=2) + "\n").encode(),
            _WEIGHTS_FILE: stored,
        }
        run.commit(files, kind="model", checkpoint=_WEIGHTS_FILE, **sizes, **facts)
    return run


def _check_finite(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if (odd := store.not_finite(array)) is not None:
            raise RunError(
                f"weight {name} holds {odd}, expected finite numbers: nothing was written; train "
                "anew, with a lower learning rate if it diverged"
            )
