"""How many weights a search for every layer removes beside the best single threshold, under the same budget.

    python benchmarks/search.py --runs RUN [RUN ...] [--orders refined score] [--drop 0.005]

Each run is searched with the refined order, and with the plain one if asked. A row tells what was shown on validation examples
kept aside (`nonzeros`, `global_nonzeros`), the size that the search itself found (`searched`, `global_searched`), the drop of
accuracy on the test split with its 95 % interval, trials and seconds. Besides, `frontier` and `global_frontier`: the smallest
multiples of the size found that lose no more than the budget on the test split's 10,000 examples, which no
search has seen; they compare the two orders without the randomness of the proof. Writes benchmarks/results/search.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.claims.budget import Pair
from tfp_bprune.cli.common import data_of, facts_of
from tfp_bprune.data.splits import Split
from tfp_bprune.evaluation.sweep import machine
from tfp_bprune.files.runs import finite
from tfp_bprune.searching import Budget, Found, Settings, search
from tfp_bprune.searching.session import smallest
from tfp_bprune.searching.threshold import scaled
from tfp_bprune.storage import load_model

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Parses, searches, prints and writes; rows that a former call wrote for other runs stay."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="trained classifiers")
    parser.add_argument("--orders", nargs="+", default=["refined"], choices=["refined", "score"])
    parser.add_argument("--drop", type=float, default=0.005)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "search.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    for run in arguments.runs:
        for order in arguments.orders:
            row = measured(run, order, arguments.drop, arguments.data_dir)
            same = ("network", "dataset", "seed", "order", "max_accuracy_drop")
            rows = [old for old in rows if any(old.get(key) != row[key] for key in same)] + [row]
            print(
                {key: row[key] for key in ("dataset", "seed", "order", "nonzeros", "global_nonzeros", "fewer")},
                file=sys.stderr,
            )
            arguments.out.parent.mkdir(exist_ok=True)
            arguments.out.write_text(json.dumps(finite({"machine": machine(), "rows": rows}), indent=2) + "\n")


def measured(run: Path, order: Any, drop: float, data_dir: Path | None) -> dict[str, Any]:
    """One search."""
    saved = load_model(run)
    data = data_of(saved.config, data_dir)
    with tempfile.TemporaryDirectory() as folder:
        begin, cpu = time.perf_counter(), time.process_time()
        found = search(saved.model, data, Path(folder), settings=Settings(Budget(drop), order=order))
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
        frontiers = on_the_frontier(found, data.examples("test"), drop)
    return (
        facts_of(saved.config)
        | {"order": order, "max_accuracy_drop": drop}
        | figures(found)
        | frontiers
        | {"seconds": seconds, "cpu_seconds": cpu_seconds}
    )


def on_the_frontier(found: Found, test: Split, drop: float) -> dict[str, Any]:
    """Where the drop on the test split passes the budget, for the sparsity of every layer and for one threshold."""
    examples, order = found.evaluator.on(test), found.rankings["score"]
    whole = examples.answers(order.masks(order.left))

    def smallest_of(row: dict[str, Any]) -> int:
        ranking, last = found.rankings[row["ranking"]], sum(order.left.values())
        for factor in np.geomspace(3, 0.3, 116):  # steps of 2 %
            counts = scaled(row["counts"], factor, ranking.left)
            if Pair(whole, examples.answers(ranking.masks(counts)), None).drop > drop:
                break
            last = sum(counts.values())
        return last

    score = [row for row in found.rows if row["phase"] == "global" and row["ranking"] == "score"]
    best, one = smallest(found.rows, "nonzeros"), smallest(score, "nonzeros")
    if best is None or one is None:
        return {}
    layers, single = smallest_of(best), smallest_of(one)
    return {"frontier": layers, "global_frontier": single, "fewer_on_frontier": 1 - layers / single}


def figures(found: Found) -> dict[str, Any]:
    """What is told of a search."""
    every, single = sum(found.layers.counts.values()), sum(found.single.counts.values())
    best = smallest(found.rows, "nonzeros")
    one = smallest([row for row in found.rows if row["phase"] == "global" and row["ranking"] == "score"], "nonzeros")
    threshold = smallest(
        [row for row in found.rows if row["phase"] == "global" and row["ranking"] == "refined"], "nonzeros"
    )
    return {
        "nonzeros": every,
        "global_nonzeros": single,
        "fewer": 1 - every / single,
        "holds": found.layers.holds and found.single.holds,
        "searched": best and best["nonzeros"],
        "global_searched": one and one["nonzeros"],
        "global_refined_searched": threshold and threshold["nonzeros"],
        "fewer_searched": 1 - best["nonzeros"] / one["nonzeros"] if best and one else None,
        "bound": found.layers.evidence["conditions"]["accuracy_drop"]["bound"],
        "test": found.test,
        "global_test": found.single_test,
        **found.speed,
    }


if __name__ == "__main__":
    main()
