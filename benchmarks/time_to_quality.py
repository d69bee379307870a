"""Which estimator learns the most in the least time: validation NLL against seconds of training.

    python benchmarks/time_to_quality.py --data-dir DIR [--networks mlp lenet5 vgg16 resnet18] [--seeds 0 1 2] [--epochs N]

Flipout, reparameterization and local on mlp and lenet5 (mnist), vgg16 and resnet18 at a quarter of their width (20,000 examples of
cifar10, one seed). The
three of a network and seed train at the same time and take turns, an epoch each, so that what else the machine does meets all alike.
Validation is of the posterior mean. Writes results/time_to_quality.json, where rows of other networks and seeds stay, and .png.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import measure
import numpy as np

import tfp_bprune as bp
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.sweep import machine

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"options": {}, "epochs": 10, "examples": None, "seeds": [0, 1, 2], "batch": 100},
    "lenet5": {"options": {}, "epochs": 6, "examples": None, "seeds": [0, 1, 2], "batch": 100},
    "vgg16": {"options": {"width": 0.25}, "epochs": 5, "examples": 20_000, "seeds": [0], "batch": 64},
    "resnet18": {"options": {"width": 0.25}, "epochs": 5, "examples": 20_000, "seeds": [0], "batch": 64},
}
ESTIMATORS = ("flipout", "reparameterization", "local")
COLOURS = {"flipout": "#0072b2", "reparameterization": "#d55e00", "local": "#009e73"}


def trained(name: str, data: Splits, seed: int, layers: Any, turns: measure.Turns) -> dict[str, Any]:
    """Trains one of them: seconds and scores by epoch."""
    about = NETWORKS[name]
    model = bp.build(name, data.info, layers=layers, options=about["options"], seed=seed)
    settings = bp.Settings(epochs=about["epochs"], kl_weight=0.1 if name in ("vgg16", "resnet18") else 1.0)
    rows = bp.fit(model, data, settings=settings, seed=seed, progress=False, callbacks=[turns])
    return {"seconds": turns.seconds, **{key: [row[key] for row in rows] for key in ("val_nll", "val_accuracy")}}


def rows_of(name: str, data_dir: str) -> list[dict[str, Any]]:
    """A row an estimator and seed."""
    about, rows = NETWORKS[name], []
    for seed in about["seeds"]:
        data = bp.load(measure.dataset_of(name), data_dir, batch_size=about["batch"], seed=seed)
        data = data if about["examples"] is None else measure.of_few(data, about["examples"])
        found = measure.by_turns(partial(trained, name, data, seed), ESTIMATORS)
        goal = max(min(one["val_nll"]) for one in found.values())  # which all of them reach
        for layers, one in found.items():
            whole, spent = np.array(one["val_nll"]), np.cumsum(one["seconds"])
            rows.append(
                {"network": name, "estimator": layers, "seed": seed, **about["options"], "epochs": about["epochs"]}
                | {"processor": machine()["processor"]}
                | {"batch": about["batch"], "examples": len(data.examples("train")), **one}
                | {
                    "epoch_s": float(np.median(one["seconds"])),
                    "goal": goal,
                    "to_goal_s": float(spent[whole <= goal][0]),
                }
                | {"last_nll": one["val_nll"][-1], "last_accuracy": one["val_accuracy"][-1]}
            )
    return rows


def figure(rows: list[dict[str, Any]]) -> Any:
    """Validation NLL against seconds, a panel a network."""
    from matplotlib.figure import Figure

    names = [name for name in NETWORKS if name in {row["network"] for row in rows}]
    made = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for axes, name in zip(np.atleast_1d(made.subplots(1, len(names))), names, strict=True):
        mine = [row for row in rows if row["network"] == name]
        for row in mine:
            label = row["estimator"] if row["seed"] == 0 else None
            axes.plot(
                np.cumsum(row["seconds"]), row["val_nll"], color=COLOURS[row["estimator"]], label=label, alpha=0.8
            )
        axes.set(xlabel="seconds of training", ylabel="validation NLL (nats)", title=name)
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return made


def main() -> None:
    """Measures, writes and draws."""
    parser = measure.parser(__doc__, "time_to_quality")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of each network (default: those of the table here)")
    for what in ("epochs", "examples"):
        parser.add_argument(f"--{what}", type=int, help=f"{what} of each network (default: those of the table here)")
    arguments = parser.parse_args()
    for name in arguments.networks:
        given = {key: getattr(arguments, key) for key in ("epochs", "seeds", "examples")}
        NETWORKS[name] |= {key: value for key, value in given.items() if value is not None}
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        rows = measure.merged(rows_of(name, arguments.data_dir), arguments.json, itemgetter("network", "seed"))
        rows.sort(key=lambda row: (list(NETWORKS).index(row["network"]), row["seed"]))
        measure.write(rows, arguments.json)
    columns = {
        "network": "",
        "estimator": "",
        "seed": "d",
        "epochs": "d",
        "epoch_s": ".1f",
        "goal": ".4f",
        "to_goal_s": ".0f",
    }
    print(measure.markdown(rows, columns | {"last_nll": ".4f", "last_accuracy": ".4f"}))
    if arguments.json != "-":
        measure.draw(figure(rows), Path(arguments.json).with_suffix(".png"))


if __name__ == "__main__":
    main()
