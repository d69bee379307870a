"""One task of a study.

A task is a network: it is trained if the store does not hold it, then measured for a study. Both results stay in the
store, so that a study that was killed repeats nothing.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfp_bprune.evaluation import masked, metrics, uncertainty
from tfp_bprune.files.aside import own_temporaries
from tfp_bprune.files.runs import finite, read_json, sha256, write_json
from tfp_bprune.prediction import predict
from tfp_bprune.pruning import masks, scores
from tfp_bprune.studies import STUDIES
from tfp_bprune.studies.networks import Spec, is_trained, train, trained
from tfp_bprune.types import BpruneError, Json

_ALWAYS = (metrics, uncertainty, masked, masks, scores, predict)  # what any study's figures come from


@dataclass(frozen=True)
class Task:
    """A network to train and to measure.

    Attributes:
      spec: the network.
      study: whose `measure(network, options)` is called; an empty name trains only.
      options: what the study wants to have measured.
      store: folder of networks and measurements.
      data_dir: TensorFlow Datasets' folder.
      threads: of TensorFlow, for training and measuring.
      result: where the measurement is kept; see `result_of`. Of the study that set the task, whatever its code is by then.
    """

    spec: Spec
    study: str
    options: Json
    store: Path
    data_dir: Path | None
    threads: int
    result: Path

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return is_trained(self.spec, self.store) and (not self.study or self.result.exists())

    def measured(self) -> Json:
        """What was measured, checked against the digest that was written with it.

        Raises:
          BpruneError: the file was changed or damaged.
        """
        if not self.study:
            return {}
        stored = read_json(self.result)
        found = stored.get("found") if isinstance(stored, dict) else None
        if not isinstance(found, dict) or stored.get("sha256") != _digest(found):
            raise BpruneError(f"{self.result} was changed or damaged: delete it, and the study measures again")
        return found


def result_of(spec: Spec, study: str, options: Json, store: Path) -> Path:
    """A file in the store, named by the network, the options and the code that measures."""
    parts = (_study(study).measure, *_study(study).MEASURED_BY) if study else ()
    code = [inspect.getsource(part) for part in (*_ALWAYS, *parts)] if study else []
    digest = sha256(json.dumps([*code, options], sort_keys=True).encode())[:12]
    return store / "measured" / f"{spec.key}-{study}-{digest}.json"


def perform(task: Task, parent_process: int | None = None) -> None:
    """Does what is left of a task."""
    data = train(task.spec, task.store, task.data_dir, task.threads, parent_process)
    if task.study and not task.result.exists():
        network = trained(task.spec, task.store, data, task.data_dir)
        measured = _study(task.study).measure(network, task.options)
        found = json.loads(json.dumps(finite(measured)))
        write_json(task.result, {"found": found, "sha256": _digest(found)})


def _study(name: str) -> Any:
    """The module of a study: its `measure`, and by `MEASURED_BY` what else decides what that finds."""
    if name not in STUDIES:
        raise BpruneError(f"unknown study {name!r}: expected one of {', '.join(STUDIES)}")
    return importlib.import_module(f"tfp_bprune.studies.{name}")


def _digest(found: Any) -> str:
    return sha256(json.dumps(found, sort_keys=True).encode())


def alone(task: Task, extensions: Sequence[str] = ()) -> str:
    """Performs a task in this process, which was started for it; what went wrong, in one line.

    Args:
      extensions: modules to import first: what they register, the study knows.
    """
    from tfp_bprune._keras import tf

    tf.config.threading.set_intra_op_parallelism_threads(task.threads)
    tf.config.threading.set_inter_op_parallelism_threads(task.threads)
    try:
        for module in extensions:
            importlib.import_module(module)
        with own_temporaries():
            perform(task, os.getppid())
    except BpruneError as error:
        return " ".join(str(error).split())
    except Exception as error:  # of a fault too one line goes to the study, and the others go on
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""
