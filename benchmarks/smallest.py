"""How few weights lenet5 needs on mnist for a test error of at most 1.0 %, beside published networks.

    python benchmarks/smallest.py --data-dir DIR --networks DIR [--epochs 30] [--sparsities 0.9936 0.9964]

One Bayesian network is pruned by SNR to 98 % while it is trained (15 epochs, defaults). From there one network to each
sparsity goes on: pruned over the first half (`prune.GradualPruning`), at a learning rate of .005 and with the whole KL from
the first step. These settings were chosen on the validation split, a tenth of the training split; each network is trained
besides on the whole training split, as the published ones were. A row tells the errors of the posterior mean and of 30 draws,
on the validation split where there is one, and on the test split, on which nothing is chosen; and of SavedModels of the mean in few
bits the bytes of weights and of all files, with their test error. Writes benchmarks/results/smallest.json.

Published, LeNet-5-Caffe, all weights over those left: sparse variational dropout 280 times (Molchanov et al. 2017, arXiv
1701.05369), Bayesian compression 156 times (Louizos et al. 2017, arXiv 1705.08665).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import tfp_bprune as bp
from tfp_bprune.claims.bounds import proportion
from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.sweep import machine
from tfp_bprune.files.runs import finite
from tfp_bprune.pruning.masks import sparsity_of
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.studies.networks import Spec, train, trained
from tfp_bprune.studies.scoring import outputs
from tfp_bprune.types import Precision, Predictive

RESULTS = Path(__file__).parent / "results"
PUBLISHED = {"sparse variational dropout": 280, "Bayesian compression": 156}
START = Spec("mnist", "lenet5", epochs=15, sparsity=0.98)
DRAWS = 30
PREDICTIVES: tuple[Predictive, ...] = ("mean", "sampled")
PRECISIONS: tuple[Precision, ...] = ("float32", "auto", "int4", "int3")


def main() -> None:
    """Trains what the store lacks, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True, help="store of trained networks")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9936, 0.9964])
    parser.add_argument("--out", type=Path, default=RESULTS / "smallest.json")
    parser.add_argument("--all-examples", action="store_true", help="only networks trained on the whole training split")
    arguments = parser.parse_args()
    rows = []
    parts = (0.0,) if arguments.all_examples else (START.validation_fraction, 0.0)
    for spec in specs(arguments.sparsities, arguments.epochs, parts):
        rows.append(measured(spec, arguments.networks, arguments.data_dir))
        print(rows[-1], file=sys.stderr)
        arguments.out.parent.mkdir(exist_ok=True)
        stored = {"machine": machine(), "published": PUBLISHED, "draws": DRAWS, "rows": rows}
        arguments.out.write_text(json.dumps(finite(stored), indent=2) + "\n")


def specs(
    sparsities: list[float], epochs: int, parts: Sequence[float] = (START.validation_fraction, 0.0)
) -> list[Spec]:
    """The network that all go on from and those that do, with a validation split and without."""
    found = []
    for start in (replace(START, validation_fraction=part) for part in parts):
        further: dict[str, Any] = {
            "parent": start,
            "epochs": epochs,
            "learning_rate": 0.005,
            "kl": "constant",
            "gradual": True,
        }
        found += [start, *(replace(start, sparsity=sparsity, **further) for sparsity in sparsities)]
    return found


def measured(spec: Spec, store: Path, data_dir: Path) -> dict[str, Any]:
    """Weights and errors of one network."""
    network = trained(spec, store, train(spec, store, data_dir, threads=2))
    masks = {name: weights.mask for name, weights in prunable_weights(network.model).items()}
    every, left = (sum(int(count(mask)) for mask in masks.values()) for count in (np.size, np.count_nonzero))
    row: dict[str, Any] = {"sparsity": sparsity_of(masks), "epochs": spec.epochs, "trained_on": network.data.train_size}
    row |= {"weights": every, "left": left, "times": every / left}
    splits = {name: network.data.examples(name) for name in ("valid", "test")}
    for name, split in splits.items():
        if len(split):
            row |= {f"{name}_{key}": value for key, value in errors(network.model, split).items()}
    return row | {"stored": {name: stored(network.model, name, splits["test"]) for name in PRECISIONS}}


def stored(model: Any, precision: Precision, test: Split) -> dict[str, float]:
    """Bytes of the weights and of all files of an export of the mean, how much smaller the weights are than dense ones, the error."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = bp.export(model, Path(folder) / "out", precision=precision, task="classification", from_logits=True)
        wrong = bp.predict(Path(folder) / "out", test.x, progress=False).labels != test.y
    dense = 4 * bp.strip(model).count_params()
    sizes = {key: manifest[key] for key in ("payload_bytes", "bytes")}
    return sizes | {"times": dense / sizes["payload_bytes"], "test_mean": float(np.mean(wrong))}


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
