"""Convolutions of few channels in LiteRT: several columns of pixels read as the channels of one, beside as they are.

    python benchmarks/columns.py [--rounds 15]

Layers of random weights with a max pooling behind them, in float32 and int8, for batches of 256; the files of one layer take turns in
one fresh process. `products` is what `prediction.columns` expects of the time: the products with the zeros that fill up blocks, of
the fastest grouping as a part of those without; where that is above .75, or no grouping fits, the layer stays as it is and is not
timed. Writes results/columns.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.prediction import columns
from tfp_bprune.types import Precision

L = keras.layers
BATCH = 256
LAYERS = {  # width and height, channels, filters, kernel, strides, padding
    "LeNet-5, first": (28, 1, 20, 5, 1, "valid"),
    "LeNet-5, second": (12, 20, 50, 5, 1, "valid"),
    "LeNet-5 of 4 and 21 filters, first": (28, 1, 4, 5, 1, "valid"),
    "LeNet-5 of 4 and 21 filters, second": (12, 4, 21, 5, 1, "valid"),
    "8 of 8 channels": (28, 8, 8, 3, 1, "valid"),
    "8 of 8 channels, padded": (28, 8, 8, 3, 1, "same"),
    "every other position": (65, 3, 16, 3, 2, "valid"),
    "VGG-16, first": (32, 3, 64, 3, 1, "same"),
}
COLUMNS = {
    "layer": "", "precision": "", "columns": "", "products": ".2f", "ms": ".3f", "ms_by_columns": ".3f", "faster": ".2f",
}  # fmt: skip


def network(size: int, channels: int, filters: int, kernel: int, strides: int, padding: str) -> Any:
    """The layer, with as little behind it as an answer takes."""
    x = keras.Input((size, size, channels))
    y = L.Conv2D(filters, kernel, strides=strides, padding=padding, activation="relu", name="layer")(x)
    return keras.Model(x, L.Dense(10, name="logits")(L.GlobalAveragePooling2D()(L.MaxPooling2D(2)(y))))


def row_of(name: str, precision: Precision, rounds: int, place: Path) -> dict[str, Any]:
    """One layer in one precision, both ways."""
    model, few = network(*LAYERS[name]), precision == "int8"
    layer = model.get_layer("layer")
    shape = (None, *model.input_shape[1:])
    found = columns.columns_of(layer, [shape], few)
    row: dict[str, Any] = {"layer": name, "precision": precision, "columns": None if found is None else found.count}
    if found is None:
        return row
    as_it_is = columns._columns(layer, shape[1:-1], 1)
    inputs, outputs = layer.kernel.shape[-2:]
    all_of = columns._products(found, inputs, outputs, few) + columns._moved(found, shape[1:-1], inputs, few)
    row["products"] = all_of / columns._products(as_it_is, inputs, outputs, few)
    usual = columns._LESS
    for way, less in (("as it is", 0.0), ("by columns", usual)):
        columns._LESS = less
        bp.export(model, place / way, format="litert", precision=precision, task="classification", from_logits=True)
    columns._LESS = usual
    x = np.random.default_rng(0).uniform(size=(BATCH, *shape[1:])).astype(np.float32)
    timed = reload([place / "as it is", place / "by columns"], x, batches=(BATCH,), rounds=rounds, trust=True)
    row["ms"], row["ms_by_columns"] = (one.latency_ms[str(BATCH)]["median"] for one in timed)
    return row | {"faster": row["ms"] / row["ms_by_columns"]}


def main() -> None:
    """Measures and writes."""
    arguments = measure.parser(__doc__, "columns").parse_args()
    rows = []
    for name in LAYERS:
        for precision in ("float32", "int8"):
            with tempfile.TemporaryDirectory() as place:
                rows.append(row_of(name, precision, arguments.rounds, Path(place)))  # type: ignore[arg-type]
    measure.write(rows, arguments.json)
    print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
