"""How long a whole training takes: a Bayesian network that shrinks while it learns, the same that does not, and its plain twin.

    python benchmarks/shrinking.py --data-dir DIR

lenet5 on mnist and vgg16 at half of its width on cifar10, ARD prior, reparameterization, units pruned between a tenth and half of the
training by their evidence until a part of the multiplications is gone. All train at the same time and take turns, an epoch each, so that
what else the machine does meets all alike. Writes results/shrinking.json.
"""

from __future__ import annotations

from typing import Any

import measure

import tfp_bprune as bp
from tfp_bprune.data.splits import Splits
from tfp_bprune.graphs import compact
from tfp_bprune.graphs.products import multiplications

NETWORKS: dict[str, dict[str, Any]] = {
    "lenet5": {"options": {}, "sparsity": 0.933, "epochs": 10, "examples": 20000},
    "vgg16": {"options": {"width": 0.5}, "sparsity": 0.9, "epochs": 8, "examples": 4000},
}
VARIANTS = ("plain", "not shrinking", "shrinking")
KL_WEIGHT = 0.1


def trained(name: str, variant: str, data: Splits, turns: measure.Turns) -> dict[str, Any]:
    """Trains one of them."""
    about = NETWORKS[name]
    bayesian = variant != "plain"
    layers = "reparameterization" if bayesian else "deterministic"
    model = bp.build(name, data.info, layers=layers, options=about["options"], **({"prior": "ard"} if bayesian else {}))
    callbacks: list[Any] = [turns]
    if bayesian:
        given: Any = {"granularity": "unit", "criterion": "evidence", "counts": "multiplications", "over": (0.1, 0.5)}
        callbacks.append(bp.GradualPruning(about["sparsity"], **given))
    if variant == "shrinking":
        callbacks.append(bp.Shrink())
    settings = bp.Settings(epochs=about["epochs"], kl_weight=KL_WEIGHT if bayesian else 1.0)
    bp.fit(model, data, settings=settings, progress=False, callbacks=callbacks)
    left = compact(bp.strip(model)) if bayesian else model
    return {"seconds": turns.seconds, "multiplications": multiplications(left)}


def rows_of(name: str, data_dir: str) -> list[dict[str, Any]]:
    """A row a variant."""
    # None to validate on: what is timed is the training.
    data = measure.of_few(bp.load(measure.dataset_of(name), data_dir, batch_size=64), NETWORKS[name]["examples"], 0)
    found = measure.by_turns(lambda variant, turns: trained(name, variant, data, turns), VARIANTS)
    whole = sum(found["plain"]["seconds"])
    about = {"network": name, "examples": NETWORKS[name]["examples"], "batch": 64, **NETWORKS[name]["options"]}
    return [
        about | {"variant": v, **found[v], "total": sum(found[v]["seconds"]), "ratio": sum(found[v]["seconds"]) / whole}
        for v in VARIANTS
    ]


if __name__ == "__main__":
    parser = measure.parser(__doc__, "shrinking")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--epochs", type=int, help="of each network, fewer for a look")
    arguments = parser.parse_args()
    if arguments.epochs:
        NETWORKS = {name: {**about, "epochs": arguments.epochs} for name, about in NETWORKS.items()}
    rows = [row for name in arguments.networks for row in rows_of(name, arguments.data_dir)]
    columns = {"network": "", "variant": "", "total": ".1f", "ratio": ".2f", "multiplications": ","}
    print(measure.markdown(rows, columns))
    measure.write(rows, arguments.json)
