"""What a training step costs: each network with four kinds of layers, at batch 64.

    python benchmarks/networks.py [NETWORK ...]
    python benchmarks/networks.py vgg16 --layers deterministic reparameterization --prior ard \
      --policies float32 mixed_bfloat16 --rounds 4      # into results/networks_part.json, as whatever is a choice

Parameters are counted, MFLOPs are those of one example's forward pass as TensorFlow's profiler counts them (two a
multiply-add; drawing random numbers is not among them), milliseconds are medians of rounds in which all take turns; the
ratio is to the deterministic one (to the first of the layers), the speedup to the same layers under the first policy.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any, get_args

import measure
import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.networks import NETWORKS, build
from tfp_bprune.types import Policy, PriorName

LAYERS = ("deterministic", "dropout", "reparameterization", "flipout")
BATCH = 64
COLUMNS = {"network": "", "width": "g", "layers": "", "policy": "", "parameters": ",d", "mflops": ",.1f", "ms": ".1f"}
COLUMNS |= {"ratio": ".2f", "speedup": ".2f"}


def network(name: str, layers: str, width: float, **more: Any) -> Any:
    """A network with these layers, for the images it is meant for."""
    options = {"hidden": (500, 500)} if name == "mlp" else {"width": width}
    return build(name, measure.IMAGES[measure.dataset_of(name)], layers=layers, options=options, **more)  # type: ignore[arg-type]


def mflops(model: Any) -> float:
    """Millions of floating-point operations of one example's forward pass, within a batch."""
    function = tf.function(lambda x: model(x, training=False))
    graph = function.get_concrete_function(tf.TensorSpec((BATCH, *model.input_shape[1:]), tf.float32)).graph
    quiet = tf.compat.v1.profiler.ProfileOptionBuilder(tf.compat.v1.profiler.ProfileOptionBuilder.float_operation())
    counted = tf.compat.v1.profiler.profile(graph, options=quiet.with_empty_output().build())
    return counted.total_float_ops / BATCH / 1e6


def rows_of(
    name: str, width: float, rounds: int, kinds: Sequence[str], policies: Sequence[str], prior: str
) -> list[dict[str, Any]]:
    """One network with each kind of layers under each policy."""
    rivals = {f"{layers} {policy}": (layers, policy) for policy in policies for layers in kinds}
    models = {
        rival: network(name, layers, width, policy=policy, prior=prior) for rival, (layers, policy) in rivals.items()
    }
    flops = {rival: mflops(model) for rival, model in models.items()}
    steps = {t: measure.training_step(m, m.input_shape[1:], BATCH) for t, m in models.items()}
    times = measure.interleaved(steps, rounds)
    return [
        {
            "network": name,
            "width": width,
            "layers": layers,
            "policy": policy,
            "prior": prior,
            "parameters": int(sum(np.prod(w.shape) for w in models[rival].trainable_weights)),
            "mflops": flops[rival],
            "batch": BATCH,
            "ms": float(np.median(times[rival])),
            "ratio": measure.ratio(times, rival, f"{kinds[0]} {policy}"),
            "speedup": measure.ratio(times, f"{layers} {policies[0]}", rival),
        }
        for rival, (layers, policy) in rivals.items()
    ]


def main() -> None:
    """Measures and writes."""
    parser = measure.parser(__doc__, "networks")
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], metavar="NETWORK")
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="these alone")
    parser.add_argument("--policies", nargs="+", choices=get_args(Policy), default=("float32",), help="to compute in")
    parser.add_argument("--prior", choices=get_args(PriorName), default="scale_mixture", help="of Bayesian layers")
    parser.set_defaults(json=None)
    arguments = parser.parse_args()
    choice = (tuple(arguments.layers), tuple(arguments.policies), arguments.prior)
    part = "_part" * (choice != (LAYERS, ("float32",), "scale_mixture") or arguments.networks != [*NETWORKS])
    target = arguments.json or str(measure.RESULTS / f"networks{part}.json")
    rows = []
    for name in arguments.networks:
        for width in (1.0, 0.25) if measure.dataset_of(name) == "cifar10" else (1.0,):
            made = rows_of(name, width, arguments.rounds, *choice)
            rows += made
            print(measure.markdown(made, COLUMNS), file=sys.stderr, flush=True)
            keras.backend.clear_session()
            gc.collect()
    measure.write(rows, target)
    if target != "-":
        print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
