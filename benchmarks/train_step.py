"""A Bayesian training step beside a plain one, and beside the same network made of tfp.layers.

    python benchmarks/train_step.py

`plain` is the Keras network with Keras's Adam, as most people write it; `plain_legacy_adam` the same with the older
Adam that `compile_model` uses here because it takes less than half the time. Ratios are to each of the two. The
networks of tfp.layers use Keras's Adam; `mixture` is the scale mixture as `MixtureSameFamily`, one draw for the KL,
`mixture_fused` the same with this package's log density. `peak_mib` is the resident memory of a process that does
nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import measure
import networks
import numpy as np
import peak_memory

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers import ScaleMixturePrior

TRAIN_SIZE = 60000
OURS = ("local", "flipout", "reparameterization")
COLUMNS = {
    "network": "",
    "width": "g",
    "batch": "d",
    "variant": "",
    "ms": ".1f",
    "ratio": ".2f",
    "ratio_legacy_adam": ".2f",
    "peak_mib": ",.0f",
}
CASES = (("mlp", 1, 100), ("mlp", 1, 1000), ("lenet5", 1, 64), ("vgg16", 0.25, 64), ("vgg16", 1, 64))


def of_tfp(layer: type, divergence: Callable[..., Any]) -> Any:
    """784-500-500-10 of a raw tfp.layers class."""
    given: dict[str, Any] = {"kernel_divergence_fn": divergence}
    layers = [layer(units, activation=name, **given) for units, name in ((500, "relu"), (500, "relu"), (10, None))]
    return keras.Sequential(
        [keras.Input((28, 28, 1)), keras.layers.Rescaling(1 / 126), keras.layers.Flatten(), *layers]
    )


def normal_kl(q: Any, p: Any, _: Any) -> Any:
    """TFP's own, in closed form."""
    return tfp.distributions.kl_divergence(q, p) / TRAIN_SIZE


def sampled_kl(log_prob: Callable[[Any], Any]) -> Callable[..., Any]:
    """One draw of log q - log p."""

    def divergence(q: Any, p: Any, _: Any) -> Any:
        w = q.sample()
        return (q.log_prob(w) - tf.reduce_sum(log_prob(w))) / TRAIN_SIZE

    return divergence


def tfp_networks() -> dict[str, Any]:
    """The variants that need nothing of this package's layers."""
    d, ours = tfp.distributions, ScaleMixturePrior()
    mixture = d.MixtureSameFamily(
        d.Categorical(probs=[ours.pi, 1 - ours.pi]), d.Normal([0.0, 0.0], [ours.scale1, ours.scale2])
    )
    flipout, shared = tfp.layers.DenseFlipout, tfp.layers.DenseReparameterization
    return {
        "tfp_reparameterization_normal": of_tfp(shared, normal_kl),
        "tfp_flipout_normal": of_tfp(flipout, normal_kl),
        "tfp_flipout_mixture": of_tfp(flipout, sampled_kl(mixture.log_prob)),
        "tfp_flipout_mixture_fused": of_tfp(flipout, sampled_kl(ours.log_prob)),
    }


def rows_of(network: str, width: float, batch: int, rounds: int) -> list[dict[str, Any]]:
    """All variants of one network at one batch size."""
    models = {"plain": networks.network(network, "deterministic", width)}
    models["plain_legacy_adam"] = networks.network(network, "deterministic", width)
    models |= tfp_networks() if network == "mlp" else {}
    theirs = set(models) - {"plain_legacy_adam"}
    models |= {layers: networks.network(network, layers, width) for layers in OURS}
    steps = {
        name: measure.training_step(
            model, model.input_shape[1:], batch, TRAIN_SIZE, keras.optimizers.Adam(1e-4) if name in theirs else None
        )
        for name, model in models.items()
    }
    times = measure.interleaved(steps, rounds)
    return [
        {
            "network": network,
            "width": width,
            "batch": batch,
            "variant": name,
            "ms": float(np.median(times[name])),
            "ratio": measure.ratio(times, name, "plain"),
            "ratio_legacy_adam": measure.ratio(times, name, "plain_legacy_adam"),
        }
        | _memory(network, name.replace("plain_legacy_adam", "deterministic"), width, batch)
        for name in steps
    ]


def _memory(network: str, layers: str, width: float, batch: int) -> dict[str, float]:
    """Of the one case where weights and activations outweigh TensorFlow itself."""
    if (network, width) != ("vgg16", 1):
        return {}
    return {"peak_mib": peak_memory.of_process(network, layers, width, batch)}


def main() -> None:
    """Measures and writes."""
    arguments = measure.parser(__doc__, "train_step").parse_args()
    rows = []
    for network, width, batch in CASES:
        rows += rows_of(network, width, batch, arguments.rounds)
        print(f"{network}, batch {batch}: done", file=sys.stderr)
        keras.backend.clear_session()
    measure.write(rows, arguments.json)
    if arguments.json != "-":
        print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
