"""How long networks with fewer units take, from exports of a few of them that are timed once for a search."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import as_served
from tfp_bprune.exports import export
from tfp_bprune.files.aside import scratch
from tfp_bprune.files.runs import write_json
from tfp_bprune.files.schemas import SHAPE, mapping, record
from tfp_bprune.graphs.convert import strip
from tfp_bprune.prediction.cost import TYPICAL
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.trials.log import read_sealed
from tfp_bprune.trials.ranking import Counts, Ranking
from tfp_bprune.types import RunError

TIMES_FILE = "times.json"
_PARTS = (1.0, 0.5, 0.25)  # of the units of every layer
_ALONE = 0.5  # of those of one
_TIME = {"type": "number", "minimum": 0, "maximum": 1e9}
_SCHEMA = record(("call", "kernels", "shapes"), call=_TIME, kernels=mapping(_TIME), shapes=mapping(SHAPE))


@dataclass(frozen=True)
class Times:
    """Microseconds of an exported mean network at a batch of 64: of a call, and of each whole kernel.

    A kernel's share falls as its number of entries: with the units that it makes, and with those that it reads.
    """

    call: float
    kernels: Mapping[str, float]
    shapes: Mapping[str, tuple[int, ...]]

    def of(self, shapes: Mapping[str, tuple[int, ...]]) -> float:
        """Of a network whose kernels have these shapes."""
        return self.call + sum(self.kernels[name] * part for name, part in self._parts(shapes).items())

    def _parts(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        return {name: math.prod(shape) / math.prod(self.shapes[name]) for name, shape in shapes.items()}


def stored_times(out: Path, model: Any, order: Ranking, split: Split) -> Times:
    """Those in the folder of a search, or measured and put there: a search that is resumed must go by the same ones.

    Raises:
      RunError: the file there is damaged, or of another network.
    """
    path, shapes = out / TIMES_FILE, {name: shape for name, (shape, _) in order.kernels(order.left).items()}
    if not os.path.lexists(path):
        found = measured(model, order, split)
        write_json(path, {**vars(found), "shapes": {name: list(shape) for name, shape in shapes.items()}}, seal=True)
    stored = read_sealed(path, _SCHEMA)
    if {name: tuple(shape) for name, shape in stored["shapes"].items()} != shapes:
        raise RunError(f"{path} is not of this network: delete the folder to search anew")
    return Times(stored["call"], stored["kernels"], shapes)


def measured(model: Any, order: Ranking, split: Split) -> Times:
    """Exports the network whole, with parts of the units of every layer and of one after the other, and times them together."""
    designs, plain = list(_designs(order.left)), strip(model)
    with scratch() as folder:
        places = [folder / str(number) for number in range(len(designs))]
        manifests = [
            export(with_masks(plain, order.masks(counts)), place) for counts, place in zip(designs, places, strict=True)
        ]
        examples = as_served(split, manifests[0]).x
        timed = reload(places, examples, batches=(TYPICAL,), trust=True)
    took = np.array([1e3 * one.latency_ms[str(TYPICAL)]["median"] for one in timed])
    return _fitted([{n: shape for n, (shape, _) in order.kernels(counts).items()} for counts in designs], took)


def _designs(left: Counts) -> Iterator[Counts]:
    for part in _PARTS:
        yield {name: max(1, round(part * count)) for name, count in left.items()}
    for name in left:
        yield left | {name: max(1, round(_ALONE * left[name]))}


def _fitted(shapes: list[dict[str, tuple[int, ...]]], took: np.ndarray) -> Times:
    """By least squares of the relative error, with no time below 0."""
    from scipy.optimize import nnls

    names = list(shapes[0])
    parts = np.array([[math.prod(one[n]) / math.prod(shapes[0][n]) for n in names] for one in shapes])
    table = np.column_stack([np.ones(len(took)), parts]) / took[:, None]
    call, *kernels = map(float, nnls(table, np.ones(len(took)))[0])
    return Times(call, dict(zip(names, kernels, strict=True)), shapes[0])
