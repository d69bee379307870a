"""How few weights lenet5 needs on mnist for a test error of at most 1.0 %, beside published networks.

    python benchmarks/smallest.py --data-dir DIR --networks DIR [--epochs 30] [--sparsities 0.99 0.995 0.9975]

Bayesian networks are pruned by SNR while they are trained (`prune.GradualPruning`), one to each sparsity; then `search` looks
for the smallest network within what is left of an error of 1.0 % on the validation split. A row tells weights and errors of the
trained network, of what the search was led to, and of what it could prove. Nothing is chosen on the test split. Writes
benchmarks/results/smallest.json.

Published, LeNet-5-Caffe, all weights over those left: sparse variational dropout 280 times (Molchanov et al. 2017, arXiv
1701.05369), Bayesian compression 156 times (Louizos et al. 2017, arXiv 1705.08665).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.evaluate.sweep import machine
from tfp_bprune.prune import prunable_weights
from tfp_bprune.runs import finite
from tfp_bprune.search import Budget, Found, Settings, search
from tfp_bprune.search.session import smallest
from tfp_bprune.search.trial import Evaluator
from tfp_bprune.studies.networks import Spec, train, trained

RESULTS = Path(__file__).parent / "results"
ERROR = 0.01
PUBLISHED = {"sparse variational dropout": 280, "Bayesian compression": 156}


def main() -> None:
    """Trains what the store lacks, searches, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True, help="store of trained networks")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.99, 0.995, 0.9975])
    parser.add_argument("--out", type=Path, default=RESULTS / "smallest.json")
    arguments = parser.parse_args()
    rows = []
    for sparsity in arguments.sparsities:
        spec = Spec("mnist", "lenet5", epochs=arguments.epochs, sparsity=sparsity)
        rows.append(measured(spec, arguments.networks, arguments.data_dir))
        print(rows[-1], file=sys.stderr)
        arguments.out.parent.mkdir(exist_ok=True)
        stored = {"machine": machine(), "error": ERROR, "published": PUBLISHED, "rows": rows}
        arguments.out.write_text(json.dumps(finite(stored), indent=2) + "\n")


def measured(spec: Spec, store: Path, data_dir: Path) -> dict[str, Any]:
    """A network pruned while trained, and searched further where its validation error leaves room."""
    network = trained(spec, store, train(spec, store, data_dir, threads=2))
    data, weights = network.data, prunable_weights(network.model, "snr")
    every = sum(w.mask.size for w in weights.values())
    masks = {name: w.mask for name, w in weights.items()}
    evaluator = Evaluator(network.model, "snr")
    errors = {
        name: float(1 - evaluator.on(data.examples(name)).answers(masks).right.mean()) for name in ("valid", "test")
    }
    left = sum(int(np.count_nonzero(mask)) for mask in masks.values())
    row: dict[str, Any] = {"sparsity": spec.sparsity, "epochs": spec.epochs, "weights": every}
    row |= {"left": left, "times": every / left, "valid_error": errors["valid"], "test_error": errors["test"]}
    room = ERROR - errors["valid"]
    if room <= 0:
        return row
    with tempfile.TemporaryDirectory() as folder:
        found = search(network.model, data, Path(folder), Settings(Budget(room)))
        return row | {"room": room} | figures(found, data, every)


def figures(found: Found, data: Any, every: int) -> dict[str, Any]:
    """What the search was led to, and what it proved, with the test error of each."""
    test, row = found.evaluator.on(data.examples("test")), smallest(found.rows, "nonzeros")
    told: dict[str, Any] = {}
    places = {"shown": (found.layers.ranking, found.layers.counts)}
    if row is not None:
        places["searched"] = (row["ranking"], row["counts"])
    for name, (ranking, counts) in places.items():
        total = sum(counts.values())
        error = float(1 - test.answers(found.masks(ranking, counts)).right.mean())
        told |= {name: total, f"{name}_times": every / total, f"{name}_test_error": error}
    return told | {"holds": found.layers.holds}


if __name__ == "__main__":
    main()
