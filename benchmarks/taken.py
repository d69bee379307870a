"""A dense layer that reads some of its inputs, in LiteRT and ONNX Runtime: taking these out of the others beside reading all.

    python benchmarks/taken.py --rounds 10 [litert onnx]

Layers of random weights of which whole rows are at 0, in float32 and int8; the files of one shape take turns in this process.
Writes results/taken.json, and prints the costs that fit what was measured, by precision, in the terms of
`prediction.cost`: those that are shipped come from here.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.exports.converting import hushed
from tfp_bprune.exports.forms import FORMS
from tfp_bprune.prediction import Predictor, cost
from tfp_bprune.prediction.kernels import FOR_CONVERTERS
from tfp_bprune.types import Storage

INPUTS, UNITS, PARTS = (256, 784, 3072), (50, 150, 500), (0.1, 0.3, 0.5, 0.7, 0.9)
BATCHES = (1, 32, 256)
PRECISIONS: tuple[Storage, ...] = ("float32", "int8")
WAYS = {"all": 1e9, "taken": -1e9}  # microseconds of a call that takes: by which one way alone is open
COLUMNS = {
    "format": "", "precision": "", "inputs": "d", "units": "d", "part": ".1f", "batch": "d", "all": ".1f", "taken": ".1f",
    "chosen": "", "over_best": ".2f",
}  # fmt: skip


def layer(inputs: int, units: int, part: float) -> Any:
    """A layer that reads a part of its inputs, spread at random, and one unit that reads the layer."""
    random = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((inputs,)), keras.layers.Dense(units, "relu", name="layer"), keras.layers.Dense(1, name="unit")]
    )
    left = np.isin(np.arange(inputs), random.permutation(inputs)[: round(part * inputs)])
    kernel, rest = model.layers[0].get_weights()[0], model.get_weights()[1:]
    model.set_weights([kernel * left[:, None], *rest])
    return model


def rows_of(name: str, precision: Storage, inputs: int, units: int, rounds: int) -> list[dict[str, Any]]:
    """Microseconds of the layers of one shape, by the part that they read and by batch."""
    form, runs, chosen = FORMS[name], {}, {}
    with tempfile.TemporaryDirectory() as place:
        for part in PARTS:
            model = layer(inputs, units, part)

            def made(call: float | None, model: Any = model) -> Predictor:
                costs = cost.CONVERTED if call is None else replace(cost.CONVERTED, take_call=call)
                lowering = replace(FOR_CONVERTERS, costs=costs, storage=precision)
                return Predictor(model, "mean", lowering=lowering, task="regression")

            taken = made(None).products()["layer"]["taken"]
            chosen[part] = "all" if taken is None else "taken"
            for way, call in WAYS.items():
                path = Path(place) / f"{part}-{way}-{form.file}"
                with hushed():
                    form.convert(
                        made(call),
                        path,
                        precision={"layer": precision, "unit": precision},
                        representative=None,
                        batch=None,
                    )
                    runs[part, way] = form.runner(path, threads=2)
        rows = []
        for batch in BATCHES:
            x = {"inputs": np.random.default_rng(1).random((batch, inputs)).astype(np.float32)}
            steps = {f"{part}-{way}": partial(run, x) for (part, way), run in runs.items()}
            for step in steps.values():
                step()
            took = measure.interleaved(steps, rounds, least_ms=1.0, rest_ms=2.0)
            for part in PARTS:
                us = {way: 1e3 * float(np.median(took[f"{part}-{way}"])) for way in WAYS}
                about = {"format": name, "precision": precision, "inputs": inputs, "units": units, "part": part}
                told = {"batch": batch, "chosen": chosen[part], "over_best": us[chosen[part]] / min(us.values())}
                rows.append(about | us | told)
    return rows


def fitted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """What the rows of one precision say of the costs, for all runtimes; what both ways share in a runtime is left out."""
    table, formats = [], sorted({row["format"] for row in rows})
    for row in rows:
        batch, inputs, read = row["batch"], row["inputs"], round(row["part"] * row["inputs"])
        shared = [
            term * (row["format"] == name) for name in formats for term in (1.0, batch * inputs, batch * row["units"])
        ]
        for way, kernel_inputs, takes in (("all", inputs, 0), ("taken", read, 1)):
            size = kernel_inputs * row["units"]
            table.append((size, size * batch, takes, batch * read * takes, batch * inputs * takes, *shared, row[way]))
    return dict(zip(("read", "multiply", "take_call", "take", "skip"), cost._fitted(table), strict=False))


def main() -> None:
    """Measures and writes."""
    parser = measure.parser(__doc__, "taken")
    parser.add_argument("formats", nargs="*", default=["litert", "onnx"], help="of files (default: both)")
    arguments = parser.parse_args()
    shapes = [(inputs, units) for inputs in INPUTS for units in UNITS]
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        found = [
            row
            for name in arguments.formats
            for shape in shapes
            for row in rows_of(name, precision, *shape, arguments.rounds)
        ]
        print(precision, fitted(found), file=sys.stderr, flush=True)
        rows += found
    measure.write(rows, arguments.json)
    print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
