"""What a training step costs: each network with four kinds of layers, at batch 64.

    python benchmarks/networks.py [NETWORK ...]

Parameters are counted, MFLOPs are those of one example's forward pass as TensorFlow's profiler counts them (two a
multiply-add; drawing random numbers is not among them), milliseconds are medians of rounds in which the four
take turns; the ratio is to the deterministic one.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import measure
import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.networks import NETWORKS, build

LAYERS = ("deterministic", "dropout", "reparameterization", "flipout")
BATCH = 64
COLUMNS = {"network": "", "width": "g", "layers": "", "parameters": ",d", "mflops": ",.1f", "ms": ".1f", "ratio": ".2f"}


def network(name: str, layers: str, width: float) -> Any:
    """A network with these layers, for the images it is meant for."""
    options = {"hidden": (500, 500)} if name == "mlp" else {"width": width}
    return build(name, measure.IMAGES[measure.dataset_of(name)], layers=layers, options=options)  # type: ignore[arg-type]


def mflops(model: Any) -> float:
    """Millions of floating-point operations of one example's forward pass, within a batch."""
    function = tf.function(lambda x: model(x, training=False))
    graph = function.get_concrete_function(tf.TensorSpec((BATCH, *model.input_shape[1:]), tf.float32)).graph
    quiet = tf.compat.v1.profiler.ProfileOptionBuilder(tf.compat.v1.profiler.ProfileOptionBuilder.float_operation())
    counted = tf.compat.v1.profiler.profile(graph, options=quiet.with_empty_output().build())
    return counted.total_float_ops / BATCH / 1e6


def rows_of(name: str, width: float, rounds: int) -> list[dict[str, Any]]:
    """One network with each kind of layers."""
    models = {layers: network(name, layers, width) for layers in LAYERS}
    flops = {layers: mflops(model) for layers, model in models.items()}
    steps = {t: measure.training_step(m, m.input_shape[1:], BATCH) for t, m in models.items()}
    times = measure.interleaved(steps, rounds)
    return [
        {
            "network": name,
            "width": width,
            "layers": layers,
            "parameters": int(sum(np.prod(w.shape) for w in models[layers].trainable_weights)),
            "mflops": flops[layers],
            "batch": BATCH,
            "ms": float(np.median(times[layers])),
            "ratio": measure.ratio(times, layers, "deterministic"),
        }
        for layers in LAYERS
    ]


def main() -> None:
    """Measures and writes."""
    parser = measure.parser(__doc__, "networks")
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], metavar="NETWORK")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.networks:
        for width in (1.0, 0.25) if measure.dataset_of(name) == "cifar10" else (1.0,):
            rows += rows_of(name, width, arguments.rounds)
            print(measure.markdown(rows[-len(LAYERS) :], COLUMNS), file=sys.stderr, flush=True)
            keras.backend.clear_session()
            gc.collect()
    measure.write(rows, arguments.json)
    if arguments.json != "-":
        print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
