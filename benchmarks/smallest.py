"""How few weights lenet5 needs on mnist for a test error of at most 1.0 %, beside published networks.

    python benchmarks/smallest.py --data-dir DIR --networks DIR [--epochs 40] [--sparsities 0.99 0.9936 0.995 0.9964]

Bayesian networks are pruned by SNR while they are trained (`prune.GradualPruning`), one to each sparsity, at a learning
rate of .005 with the whole KL from the first step: of the settings tried at 200 times (.001 to .01, KL warmed up, whole and a
tenth, magnitude for SNR, shifted images; 10 epochs from one network at 50 times) the one with the lowest error on the
validation split, 1.18 % beside 1.73 % with the defaults. Then `search` looks
for the smallest network within what is left of an error of 1.0 % on the third of the validation split that leads it. A row tells
weights and errors of the trained network and of the smallest one found: on the third, on the rest of the validation split with
its 95 % upper bound, and on the test split, on which nothing is chosen. Writes benchmarks/results/smallest.json.

Published, LeNet-5-Caffe, all weights over those left: sparse variational dropout 280 times (Molchanov et al. 2017, arXiv
1701.05369), Bayesian compression 156 times (Louizos et al. 2017, arXiv 1705.08665).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.evaluate.masked import Masks
from tfp_bprune.evaluate.sweep import machine
from tfp_bprune.runs import finite
from tfp_bprune.search import Budget, Settings, search
from tfp_bprune.search.bounds import proportion
from tfp_bprune.search.ranking import by_score
from tfp_bprune.search.session import smallest
from tfp_bprune.search.trial import Evaluator
from tfp_bprune.search.within import parted
from tfp_bprune.studies.networks import Spec, train, trained

RESULTS = Path(__file__).parent / "results"
ERROR = 0.01
START = Spec("mnist", "lenet5", epochs=15, sparsity=0.98)
PUBLISHED = {"sparse variational dropout": 280, "Bayesian compression": 156}


def main() -> None:
    """Trains what the store lacks, searches, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--networks", type=Path, required=True, help="store of trained networks")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.99, 0.9936, 0.995, 0.9964])
    parser.add_argument("--out", type=Path, default=RESULTS / "smallest.json")
    arguments = parser.parse_args()
    rows = []
    for sparsity in arguments.sparsities:
        again = {"epochs": arguments.epochs, "learning_rate": 0.005, "kl": "constant", "gradual": True}
        spec = replace(START, parent=START, sparsity=sparsity, **again)
        rows.append(measured(spec, arguments.networks, arguments.data_dir))
        print(rows[-1], file=sys.stderr)
        arguments.out.parent.mkdir(exist_ok=True)
        stored = {"machine": machine(), "error": ERROR, "published": PUBLISHED, "rows": rows}
        arguments.out.write_text(json.dumps(finite(stored), indent=2) + "\n")


def measured(spec: Spec, store: Path, data_dir: Path) -> dict[str, Any]:
    """A network pruned while trained, and searched further where its validation error leaves room."""
    network = trained(spec, store, train(spec, store, data_dir, threads=2))
    data, model = network.data, network.model
    order, evaluator = by_score(model, "snr"), Evaluator(model, "snr")
    every = sum(score.size for score in order.scores.values())
    lead, aside = parted(data.examples("valid"), Settings().seed)
    splits = {"lead": lead, "aside": aside, "test": data.examples("test")}

    def told(prefix: str, masks: Masks) -> dict[str, Any]:
        left = sum(int(np.count_nonzero(mask)) for mask in masks.values())
        wrong = {name: int((~evaluator.on(split).answers(masks).right).sum()) for name, split in splits.items()}
        errors = {f"{prefix}_{name}_error": count / len(splits[name]) for name, count in wrong.items()}
        bound = proportion(wrong["aside"], len(aside), 0.1)[1]
        return {f"{prefix}_left": left, f"{prefix}_times": every / left, f"{prefix}_bound": bound, **errors}

    row: dict[str, Any] = {"sparsity": spec.sparsity, "epochs": spec.epochs, "weights": every}
    row |= told("trained", order.masks(order.left))
    room = ERROR - row["trained_lead_error"]
    if room <= 0:
        return row
    with tempfile.TemporaryDirectory() as folder:
        found = search(model, data, Path(folder), Settings(Budget(room)))
    best = smallest(found.rows, "nonzeros")
    return row | {"room": room} | (told("found", found.masks(best["ranking"], best["counts"])) if best else {})


if __name__ == "__main__":
    main()
