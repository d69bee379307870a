"""How close one pass of means and variances comes to 1,000 draws: 784-500-500-10, pruned and not.

    python benchmarks/moments.py --data-dir DIR --runs runs/moments

Trains a network on mnist and one on fashion_mnist where --runs has none (20 epochs, minutes). On the first test examples:
the mean absolute difference of the class probabilities from 1,000 draws, the rank correlation of the epistemic
uncertainties and the ratio of their means; the same for another 1,000 draws and for 30, which tells what chance alone
does; and the AUROC with which epistemic uncertainty tells the other dataset's images. Writes results/moments.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import measure
import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import tfp_bprune as bp
from tfp_bprune._keras import tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.files.runs import Run
from tfp_bprune.prediction import Predictor

DATASETS = ("mnist", "fashion_mnist")
SPARSITIES = (0.0, 0.9, 0.95, 0.98)
EXAMPLES, EPOCHS, CHUNK = 2000, 20, 500
WAYS = {
    "moments": {"predictive": "moments"},
    "another 1,000 draws": {"predictive": "sampled", "samples": 1000, "seed": 1},
    "30 draws": {"predictive": "sampled", "samples": 30},
    "30 draws, settled": {"predictive": "sampled", "samples": 30, "error_rate": 0.01},
}
COLUMNS = {
    "dataset": "", "sparsity": ".2f", "predictive": "", "difference": ".5f", "rank_correlation": ".4f", "size": ".3f",
    "agreement": ".4f", "ood_auroc": ".4f", "reference_ood_auroc": ".4f",
}  # fmt: skip


def trained(dataset: str, data: Splits, runs: Path) -> Any:
    """The network of a run, trained first if it is not there or not all of its epochs are."""
    path = runs / dataset
    if not Run(path).exists or Run.open(path).manifest["epoch"] < EPOCHS:
        model = bp.build("mlp", data.info, layers="flipout", options={"hidden": (500, 500)})
        bp.fit(model, data, settings=bp.Settings(EPOCHS), out=path, resume=True)
    return bp.load_model(path).model


def outputs(model: Any, x: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """All named outputs of an exported network for `x`."""
    predict = Predictor(model, **options).predict
    parts = [predict(tf.constant(x[i : i + CHUNK], tf.float32)) for i in range(0, len(x), CHUNK)]
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def rows_of(dataset: str, model: Any, sparsity: float, inside: np.ndarray, outside: np.ndarray) -> list[dict[str, Any]]:
    """One network at one sparsity: each way beside 1,000 draws."""
    network, both = bp.prune(model, sparsity=sparsity)[0] if sparsity else model, np.concatenate([inside, outside])
    foreign = np.repeat([0, 1], [len(inside), len(outside)])
    reference, rows = outputs(network, both, predictive="sampled", samples=1000), []
    for name, options in WAYS.items():
        found = outputs(network, both, **options)
        here, there = ({k: v[: len(inside)] for k, v in o.items()} for o in (found, reference))
        rows.append(
            {
                "dataset": dataset,
                "sparsity": sparsity,
                "predictive": name,
                "difference": float(np.abs(here["probabilities"] - there["probabilities"]).mean()),
                "rank_correlation": float(spearmanr(here["epistemic"], there["epistemic"])[0]),
                "size": float(here["epistemic"].mean() / there["epistemic"].mean()),
                "agreement": float((here["probabilities"].argmax(1) == there["probabilities"].argmax(1)).mean()),
                "ood_auroc": float(roc_auc_score(foreign, found["epistemic"])),
                "reference_ood_auroc": float(roc_auc_score(foreign, reference["epistemic"])),
                "draws": float(found["draws"][: len(inside)].mean()) if "draws" in found else None,
            }
        )
    return rows


def main() -> None:
    """Measures and writes."""
    parser = measure.parser(__doc__, "moments")
    parser.add_argument("--data-dir", help="TensorFlow Datasets' folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/moments"), help="where trained networks are kept")
    arguments = parser.parse_args()
    data = {name: bp.load(name, data_dir=arguments.data_dir, batch_size=100) for name in DATASETS}
    images = {name: splits.examples("test").x[:EXAMPLES] for name, splits in data.items()}
    rows: list[dict[str, Any]] = []
    for name, other in zip(DATASETS, reversed(DATASETS), strict=True):
        model = trained(name, data[name], arguments.runs)
        for sparsity in SPARSITIES:
            rows += rows_of(name, model, sparsity, images[name], images[other])
    measure.write(rows, arguments.json)
    if arguments.json != "-":
        print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
