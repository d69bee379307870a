"""How much of a convolutional network can go on CIFAR-10, by weight and by unit, Bayesian and plain.

    python benchmarks/cifar10.py --data-dir DIR --runs runs/cifar10 [vgg16 resnet18]

Trains what is not yet in --runs (about an hour on two cores for each network), prunes each network at several
sparsities, and scores the posterior mean on the test split: as it is, after `recalibrate`, and, where units were
removed, after retraining. Nothing was chosen on the test split. Writes results/cifar10.json and results/cifar10.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import measure
import numpy as np
from matplotlib.figure import Figure

import tfp_bprune as bp
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.files.runs import Run
from tfp_bprune.graphs import compact
from tfp_bprune.pruning import KeepPruned

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95)
EPOCHS, BATCH, WIDTH = 15, 64, 0.25
# Layers by name, with the weight of the KL: 1 is the evidence lower bound, 0.1 a cold posterior.
LAYERS = {"cold": ("flipout", 0.1), "deterministic": ("deterministic", 1.0)}
COLUMNS = {
    "network": "",
    "method": "",
    "granularity": "",
    "sparsity": ".3f",
    "accuracy": ".4f",
    "nll": ".3f",
    "ece": ".3f",
    "parameters": ",d",
}


def trained(network: str, label: str, data: Splits, runs: Path) -> Any:
    """The network of a run; it is trained first if it is not there, or not all of its epochs are."""
    layers, weight = LAYERS[label]
    path = runs / f"{network}-{label}"
    if not Run(path).exists or Run.open(path).manifest["epoch"] < EPOCHS:
        model = bp.build(network, data.info, layers=layers, options={"width": WIDTH})  # type: ignore[arg-type]
        bp.fit(model, data, settings=bp.Settings(EPOCHS, kl_weight=weight), out=path, resume=True)
    return bp.load_model(path).model


def retrained(model: Any, data: Splits, weight: float, epochs: int) -> Any:
    """The model after a short training in which what is pruned stays pruned."""
    settings = bp.Settings(epochs, 5e-4, kl="constant", kl_weight=weight)
    bp.fit(model, data, settings=settings, callbacks=[KeepPruned()])
    return model


def scores(model: Any, data: Splits, smaller: bool) -> dict[str, Any]:
    """Scores of the posterior mean on the test split, and the parameters of the network that would be served."""
    plain = bp.strip(model)
    served = compact(plain) if smaller else plain
    test = data.examples("test")
    logits = served.predict(test.x.astype(np.float32), batch_size=500, verbose=0)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    outputs = {"probabilities": probabilities / probabilities.sum(1, keepdims=True)}
    return of_outputs(outputs, test.y) | {"parameters": int(served.count_params())}


def rows_of(network: str, label: str, data: Splits, runs: Path, retraining: int) -> list[dict[str, Any]]:
    """All rows of one trained network."""
    model, rows = trained(network, label, data, runs), []
    calibration = data.examples("train").batches(100)

    def add(candidate: Any, how: str, report: Any) -> None:
        about = {"network": network, "layers": LAYERS[label][0], "kl_weight": LAYERS[label][1], "width": WIDTH}
        about |= {"dataset": "cifar10", "method": f"{label}{how}", "granularity": report.granularity, "seed": 0}
        about |= {"requested": report.requested["sparsity"], "sparsity": report.sparsity}
        rows.append(about | scores(candidate, data, report.granularity == "unit"))
        print(measure.markdown(rows[-1:], COLUMNS).splitlines()[-1], file=sys.stderr, flush=True)

    for sparsity in SPARSITIES:
        pruned, report = bp.prune(model, sparsity=sparsity)
        add(pruned, "", report)
        add(bp.recalibrate(pruned, calibration), ", recalibrated", report)
    for sparsity in SPARSITIES[1:3]:
        pruned, report = bp.prune(model, sparsity=sparsity, granularity="unit")
        recalibrated = bp.recalibrate(pruned, calibration)
        add(recalibrated, ", recalibrated", report)
        if retraining:
            retrained(recalibrated, data, LAYERS[label][1], retraining)
            add(bp.recalibrate(recalibrated, calibration), ", retrained", report)
    return rows


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against sparsity: a panel for each network and granularity."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure = Figure(figsize=(11, 4.2 * len(networks)), dpi=110, layout="constrained")
    panels = figure.subplots(len(networks), 2, squeeze=False, sharey=True)
    colours = {"cold": "#1f5f99", "deterministic": "#d9772b"}
    styles = {"": "o-", ", recalibrated": "s--", ", retrained": "^:"}
    for line, network in zip(panels, networks, strict=True):
        for axes, granularity in zip(line, ("weight", "unit"), strict=True):
            chosen = [r for r in rows if r["network"] == network and r["granularity"] == granularity]
            for method in dict.fromkeys(row["method"] for row in chosen):
                label, _, how = method.partition(",")
                mine = [row for row in chosen if row["method"] == method]
                axes.plot(
                    [100 * row["requested"] for row in mine],
                    [row["accuracy"] for row in mine],
                    styles[f",{how}" if how else ""],
                    color=colours[label],
                    label=method.replace("cold", "Bayesian").replace("deterministic", "plain"),
                )
            axes.set(xlabel="weights removed (%)", ylabel="test accuracy", title=f"{network}, by {granularity}")
            axes.set_xlim(-3, 100)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=8, loc="lower left")
    measure.draw(figure, path)


def main() -> None:
    """Trains what is missing, measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["vgg16", "resnet18"], metavar="NETWORK")
    parser.add_argument("--data-dir", help="TensorFlow Datasets' folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/cifar10"), help="where trained networks are kept")
    parser.add_argument("--retraining-epochs", type=int, default=2, help="after units were removed (default: 2)")
    parser.add_argument("--json", default=str(measure.RESULTS / "cifar10.json"))
    arguments = parser.parse_args()
    data = bp.load("cifar10", arguments.data_dir, batch_size=BATCH, augmentation="shift_flip")
    rows: list[dict[str, Any]] = []
    for network in arguments.networks:
        for label in LAYERS:
            rows += rows_of(network, label, data, arguments.runs, arguments.retraining_epochs)
            measure.write(rows, arguments.json)
    picture(rows, Path(arguments.json).with_suffix(".png"))
    print(measure.markdown(rows, COLUMNS))


if __name__ == "__main__":
    main()
