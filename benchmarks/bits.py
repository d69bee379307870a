"""What few bits cost in uncertainty, and what they gain in time on a network of full size.

    python benchmarks/bits.py --data-dir DIR --runs runs/inference [mlp lenet5 vgg16]

mlp and lenet5 are those of inference.py, trained on mnist if they are not yet in --runs: exports of `moments` in float32 and in few bits
answer the test splits of mnist and fashion_mnist; scores, the rank correlation of the epistemic uncertainty with that in float32, and the
AUROC by which it tells the two datasets apart. vgg16 is of width 1 with weights at random, whole and without half of its units:
milliseconds of its mean at batches of 32 in LiteRT. Writes results/bits.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import inference
import measure

import tfp_bprune as bp
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.evaluation.uncertainty import ood_auroc
from tfp_bprune.prediction.distance import rank_correlation
from tfp_bprune.types import Precision

FORMS: tuple[tuple[str, Precision], ...] = (
    ("savedmodel", "float32"), ("savedmodel", "auto"), ("savedmodel", "int8"), ("savedmodel", "int4"), ("litert", "int8"),
)  # fmt: skip
PRECISIONS: tuple[Precision, ...] = ("float32", "int8")


def uncertain(name: str, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each form of the moments of one network."""
    data = bp.load("mnist", data_dir=arguments.data_dir, batch_size=100 if name == "mlp" else 64)
    test, strange = (bp.load(n, data_dir=arguments.data_dir).examples("test") for n in ("mnist", "fashion_mnist"))
    model, few = inference.trained(name, data, arguments.runs), data.examples("valid").rows(slice(0, 500))
    rows, first = list[dict[str, Any]](), dict[str, Any]()
    for form, precision in FORMS:
        place = folder / f"{name}-{form}-{precision}"
        try:
            made = bp.export(model, place, format=form, predictive="moments", precision=precision, validation=few)
        except bp.BpruneError as error:
            print(f"{name}, {form}: {error}")
            continue
        [own] = reload([place], test.x, trust=True)
        [other] = reload([place], strange.x, trust=True)
        first = first or own.outputs
        scores = {
            key: value for key, value in of_outputs(own.outputs, test.y).items() if key in ("accuracy", "nll", "ece")
        }
        rows.append(
            {
                "network": name,
                "format": form,
                "precision": precision,
                "bits": {n: v["precision"] for n, v in made["layers"].items()},
            }
            | scores
            | {"rank_correlation": rank_correlation(first["epistemic"], own.outputs["epistemic"])}
            | {
                "ood_auroc": ood_auroc(own.outputs["entropy"], other.outputs["entropy"]),
                "payload_bytes": made["payload_bytes"],
            }
        )
    return rows


def full_size(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Milliseconds of vgg16 at width 1, untrained, in LiteRT; in float32 and int8, whole and without half of its units."""
    info = measure.IMAGES["cifar10"]
    whole = bp.strip(bp.build("vgg16", info, layers="reparameterization"))
    # Half of the units of every layer take three quarters of the weights with them: those that made them and those that read them.
    half = bp.prune(whole, sparsity=0.75, granularity="unit", scope="layer", criterion="magnitude")[0]
    images = bp.load("cifar10", data_dir=arguments.data_dir).examples("test").x[:32]
    places, facts = [], []
    for left, network in (("all", whole), ("half", half)):
        for precision in PRECISIONS:
            places.append(folder / f"vgg16-{left}-{precision}")
            bp.export(
                network, places[-1], format="litert", precision=precision, task="classification", from_logits=True
            )
            facts.append(
                {"network": "vgg16, width 1, random weights", "units": left, "format": "litert", "precision": precision}
            )
    timed = [
        one.latency_ms["32"]["median"]
        for one in reload(places, images, batches=(32,), rounds=arguments.rounds, trust=True)
    ]
    return [fact | {"batch": 32, "ms": ms, "speedup": timed[0] / ms} for fact, ms in zip(facts, timed, strict=True)]


def main() -> None:
    """Measures and writes."""
    parser = measure.parser(__doc__, "bits")
    parser.add_argument("what", nargs="*", default=["mlp", "lenet5", "vgg16"])
    parser.add_argument("--data-dir", help="TensorFlow Datasets' folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/inference"), help="where trained networks are kept")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.what:
            rows += full_size(arguments, Path(folder)) if name == "vgg16" else uncertain(name, arguments, Path(folder))
    measure.write(rows, arguments.json)
    columns = {"network": "", "format": "", "precision": "", "accuracy": ".4f", "ece": ".4f", "rank_correlation": ".4f"}
    print(measure.markdown([row for row in rows if "ece" in row], columns | {"ood_auroc": ".4f", "payload_bytes": ","}))
    columns = {"network": "", "units": "", "precision": "", "batch": "d", "ms": ".2f", "speedup": ".1f"}
    print(measure.markdown([row for row in rows if "ms" in row], columns))


if __name__ == "__main__":
    main()
