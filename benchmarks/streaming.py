"""What examples that stay on disk cost: seconds of an epoch beside the same training on examples in memory.

    python benchmarks/streaming.py --data-dir DIR [--networks mlp convnet vgg16] [--examples N] [--epochs N]

Both train the same network on CIFAR-10, batch 100, to the same bits, and take turns, an epoch each. The mlp has one layer of four units,
so that its epoch is little but reading; vgg16 has a quarter of its width. The first epoch, in which the step is compiled, is not
counted, nor is validation. Writes results/streaming.json. How memory does not grow with the data is a test:

    python -m pytest -m slow -s tests/data/test_streaming.py
"""

from __future__ import annotations

from functools import partial
from typing import Any

import measure
import numpy as np

import tfp_bprune as bp

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"options": {"hidden": (4,)}, "examples": 10000, "epochs": 30},
    "convnet": {"options": {}, "examples": 2000, "epochs": 10},
    "vgg16": {"options": {"width": 0.25}, "examples": 2000, "epochs": 8},
}
WAYS = ("memory", "streaming")
BATCH = 100


def trained(name: str, data_dir: str, way: str, turns: measure.Turns) -> dict[str, Any]:
    """Trains by one of them: seconds of each epoch, and where it came to."""
    data = bp.load("cifar10", data_dir, batch_size=BATCH, validation_fraction=0.0, streaming=way == "streaming")
    data = measure.of_few(data, NETWORKS[name]["examples"])
    model = bp.build(name, data.info, options=NETWORKS[name]["options"])
    rows = bp.fit(model, data, settings=bp.Settings(epochs=NETWORKS[name]["epochs"]), progress=False, callbacks=[turns])
    return {"seconds": turns.seconds, "loss": rows[-1]["loss"]}


def rows_of(name: str, data_dir: str) -> list[dict[str, Any]]:
    """A row for each way.

    Raises:
      ValueError: they did not learn the same.
    """
    found = measure.by_turns(partial(trained, name, data_dir), WAYS)
    if found["memory"]["loss"] != found["streaming"]["loss"]:
        raise ValueError(f"{name}: expected one loss of both ways, got {[one['loss'] for one in found.values()]}")
    options, examples = NETWORKS[name]["options"], NETWORKS[name]["examples"]
    times = {way: np.array(one["seconds"][1:]) for way, one in found.items()}
    return [
        {"network": name, "examples_from": way, "examples": examples, "batch": BATCH, **options, **found[way]}
        | {"images_per_s": examples / float(np.median(times[way])), "ratio": measure.ratio(times, "memory", way)}
        for way in WAYS
    ]


def main() -> None:
    """Measures, writes and shows."""
    parser = measure.parser(__doc__, "streaming")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    for what in ("examples", "epochs"):
        parser.add_argument(f"--{what}", type=int, help=f"{what} of each network (default: those in this file)")
    arguments = parser.parse_args()
    for name in arguments.networks:
        given = {key: getattr(arguments, key) for key in ("examples", "epochs")}
        NETWORKS[name] |= {key: value for key, value in given.items() if value is not None}
    rows = []
    for name in arguments.networks:
        rows += rows_of(name, arguments.data_dir)
        measure.write(rows, arguments.json)
    print(measure.markdown(rows, {"network": "", "examples_from": "", "images_per_s": ",.0f", "ratio": ".2f"}))


if __name__ == "__main__":
    main()
