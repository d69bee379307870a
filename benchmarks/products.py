"""A pruned dense layer as a SavedModel in its three forms, beside what the cost model chooses by shipped and by measured costs.

    python benchmarks/products.py --rounds 30

Layers of random weights, at most one in twenty left; all exports of a layer take turns in one fresh process. Writes
results/products.json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.prediction import cost

SHAPES = ((784, 500), (1200, 1200), (300, 100))
SPARSITIES = (0.95, 0.98)
BATCHES = (1, 32, 256)
COLUMNS = {
    "kernel": "", "sparsity": ".2f", "batch": "d", **dict.fromkeys(cost.FORMS, ".3f"), "form": "", "auto": ".3f",
    "over_best": ".2f", "shipped_form": "", "shipped": ".3f", "shipped_over_best": ".2f",
}  # fmt: skip


def layer(shape: tuple[int, int], sparsity: float) -> Any:
    """A network of one layer with so many of its weights at 0."""
    random = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((shape[0],)), keras.layers.Dense(shape[1], name="layer")])
    left = random.random(shape) >= sparsity
    model.set_weights([random.normal(size=shape) * left, np.zeros(shape[1])])
    return model


def rows_of(shape: tuple[int, int], sparsity: float, costs: cost.Costs, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of one layer in all forms, by batch."""
    random, forms = np.random.default_rng(1), {}
    with tempfile.TemporaryDirectory() as place:
        for name in (*cost.FORMS, "auto", "shipped"):
            kernels = name if name in cost.FORMS else "auto"
            options = {"kernels": kernels, "costs": costs if name == "auto" else None, "task": "regression"}
            made = bp.export(layer(shape, sparsity), Path(place) / name, **options)  # type: ignore[arg-type]
            forms[name] = made["layers"]["layer"]["form"]
        x = random.normal(size=(max(BATCHES), shape[0])).astype(np.float32)
        found = reload([Path(place) / name for name in forms], x, batches=BATCHES, rounds=rounds)
    rows = []
    for batch in BATCHES:
        ms = {name: one.latency_ms[str(batch)]["median"] for name, one in zip(forms, found, strict=True)}
        best = min(ms[form] for form in cost.FORMS)
        over = {"over_best": ms["auto"] / best, "shipped_over_best": ms["shipped"] / best}
        about = {"kernel": "{} x {}".format(*shape), "sparsity": sparsity, "batch": batch}
        rows.append(about | ms | over | {"form": forms["auto"], "shipped_form": forms["shipped"]})
    return rows


def main() -> None:
    """Measures and writes."""
    arguments = measure.parser(__doc__, "products").parse_args()
    costs = cost.measure()
    print(costs, file=sys.stderr, flush=True)
    rows = [row for shape in SHAPES for part in SPARSITIES for row in rows_of(shape, part, costs, arguments.rounds)]
    measure.write(rows, arguments.json)
    print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
