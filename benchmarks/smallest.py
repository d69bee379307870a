"""How few weights and bytes lenet5 and lenet300 need on mnist, beside published networks.

    python benchmarks/smallest.py --data-dir DIR --networks DIR [--network lenet300] [--epochs 30] [--sparsities 0.9936 0.9964]
    python benchmarks/smallest.py --data-dir DIR --networks DIR --shrink --epochs 20 --sparsities 0.9964

One Bayesian network (by reparameterization, or `--layers flipout`) is pruned by SNR to 98 % while it is trained (15 epochs, defaults).
With `--shrink` it loses units instead, until 87.7 % of the multiplications are gone (the first 10 of 20 epochs, ARD prior, a tenth of the
KL, shifted images).
From there one network to each sparsity, of all weights of the whole network, goes on: pruned over the first half
(`prune.GradualPruning`), at a learning rate of .005 and with the whole KL from the first step, while units that lost all their weights
leave it. These settings were chosen on the validation split, a tenth of the training split, of Flipout networks without `--shrink`;
each network is trained besides on the whole training split, as the published ones were. A row tells the errors of the posterior mean
and of 30 draws, on the validation split where there is one, and on the test split, on which nothing is chosen; and of SavedModels of
the mean, in float32 and with `auto` at several losses of rounding, the bytes of weights and of all files, with their errors. Writes
benchmarks/results/smallest.json, where rows of other networks stay.

Published, LeNet-5-Caffe, all weights over those left: sparse variational dropout 280 times (Molchanov et al. 2017, arXiv
1701.05369), Bayesian compression 156 times (Louizos et al. 2017, arXiv 1705.08665).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
import numpy as np

import tfp_bprune as bp
from tfp_bprune.claims.bounds import proportion
from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.sweep import machine
from tfp_bprune.exports.manifest import describe
from tfp_bprune.files.runs import finite, write_json
from tfp_bprune.networks import build
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.studies.networks import Network, Spec, train, trained
from tfp_bprune.studies.scoring import outputs
from tfp_bprune.types import Predictive

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {"sparse variational dropout": 280, "Bayesian compression": 156}
START = Spec("mnist", "lenet5", layers="reparameterization", epochs=15, sparsity=0.98)
UNITS_FIRST = Spec(
    "mnist", "lenet5", layers="reparameterization", epochs=20, sparsity=0.877, units="evidence", prior={"kind": "ard"},
    kl_weight=0.1, augmentation="shift", stop_after=10,
)  # fmt: skip
DRAWS = 30
PREDICTIVES: tuple[Predictive, ...] = ("mean", "sampled")
STORED: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32"},
    "auto": {"precision": "auto"},
    "auto, 0.1 nats": {"precision": "auto", "rounding_loss": 0.1},
    "auto, 0.2 nats": {"precision": "auto", "rounding_loss": 0.2},
    "auto, 0.5 nats": {"precision": "auto", "rounding_loss": 0.5},
}


def main() -> None:
    """Trains what the store lacks, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True, help="store of trained networks")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9936, 0.9964])
    parser.add_argument("--network", choices=("lenet5", "lenet300"), default="lenet5")
    parser.add_argument("--layers", choices=("reparameterization", "flipout"), default="reparameterization")
    parser.add_argument("--shrink", action="store_true", help="units leave before weights do")
    parser.add_argument("--held-out", action="store_true", help="only networks with a validation split")
    parser.add_argument("--out", type=Path, default=RESULTS / "smallest.json")
    parser.add_argument("--all-examples", action="store_true", help="only networks trained on the whole training split")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    parts = [part for part, left_out in ((None, arguments.all_examples), (0.0, arguments.held_out)) if not left_out]
    start = replace(UNITS_FIRST if arguments.shrink else START, network=arguments.network, layers=arguments.layers)
    for part in parts:
        for spec in specs(replace(start, validation_fraction=part), arguments):
            rows.append(measured(spec, arguments.networks, arguments.data_dir))
            print(rows[-1], file=sys.stderr)
            write(arguments.out, rows)


def write(out: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows beside those of other networks that the file has."""
    together = measure.merged(list(rows), str(out), name_of)
    out.parent.mkdir(exist_ok=True)
    write_json(out, finite({"machine": machine(), "published": PUBLISHED, "draws": DRAWS, "rows": together}))


def name_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one network of the file from another."""
    started = (
        row.get("network", "lenet5"),
        row.get("layers", "flipout"),
        row.get("units_first", False),
        row.get("shrinks"),
    )
    return (*started, round(row["sparsity"], 4), row["epochs"], row["trained_on"])


def specs(start: Spec, arguments: argparse.Namespace) -> Iterator[Spec]:
    """The network that all go on from and those that do; each is trained before the next is given."""
    yield start
    left = [1 - sparsity for sparsity in arguments.sparsities]
    if start.units is not None:
        network = trained_network(start, arguments.networks, arguments.data_dir)
        here = sum(weights.mask.size for weights in prunable_weights(network.model).values())
        left = [part * size_of(network)[0] / here for part in left]
    for part in left:
        yield replace(
            start, parent=start, sparsity=round(1 - part, 6), epochs=arguments.epochs, learning_rate=0.005, kl="constant",
            kl_weight=1.0, units=None, gradual=True, augmentation="none", stop_after=None, shrink=True,
        )  # fmt: skip


def trained_network(spec: Spec, store: Path, data_dir: Path) -> Network:
    """The network, trained if the store does not have it."""
    return trained(spec, store, train(spec, store, data_dir, threads=2))


def size_of(network: Network) -> tuple[int, int]:
    """Weights of the whole network that may be pruned, and all its parameters."""
    whole = describe(build(network.spec.network, network.data.info, layers="deterministic"))
    return whole["prunable"], whole["parameters"]


def measured(spec: Spec, store: Path, data_dir: Path) -> dict[str, Any]:
    """Weights and errors of one network."""
    network = trained_network(spec, store, data_dir)
    left = sum(int(np.count_nonzero(weights.mask)) for weights in prunable_weights(network.model).values())
    every, parameters = size_of(network)
    row: dict[str, Any] = {
        "network": spec.network,
        "layers": spec.layers,
        "units_first": (spec.parent or spec).units is not None,
        "shrinks": spec.shrink,
    }
    row |= {"sparsity": 1 - left / every, "epochs": spec.epochs, "trained_on": network.data.train_size}
    row |= {"weights": every, "left": left, "times": every / left}
    splits = {name: network.data.examples(name) for name in ("valid", "test")}
    for name, split in splits.items():
        if len(split):
            row |= {f"{name}_{key}": value for key, value in errors(network.model, split).items()}
    return row | {
        "stored": {name: stored(network.model, given, splits, 4 * parameters) for name, given in STORED.items()}
    }


def stored(model: Any, given: Mapping[str, Any], splits: Mapping[str, Split], dense: int) -> dict[str, float]:
    """Bytes of the weights and of all files of an export of the mean, as `given` says, how much smaller the weights are than the
    `dense` bytes of the whole network's, and the errors."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest = bp.export(model, Path(folder) / "out", task="classification", from_logits=True, **given)
        for name, split in splits.items():
            if len(split):
                wrong = bp.predict(Path(folder) / "out", split.x, progress=False).labels != split.y
                found[f"{name}_mean"] = float(np.mean(wrong))
    sizes = {key: manifest[key] for key in ("payload_bytes", "bytes")}
    return sizes | {"times": dense / sizes["payload_bytes"]} | found


def errors(model: Any, split: Split) -> dict[str, float]:
    """The part of the examples that is classified wrongly, with its 95 % interval where the posterior mean answers."""
    found: dict[str, float] = {}
    for predictive in PREDICTIVES:
        answers = outputs(model, predictive, split.x, DRAWS)["probabilities"].argmax(1)
        found[predictive] = float((answers != split.y).mean())
    found["low"], found["high"] = proportion(round(found["mean"] * len(split)), len(split), 0.05)
    return found


if __name__ == "__main__":
    main()
