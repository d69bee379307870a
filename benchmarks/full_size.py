"""VGG-16 and ResNet-18 at the width they were published with, on CIFAR-10: what pruning gives where there is much to prune.

    python benchmarks/full_size.py --data-dir DIR --runs runs/full [--networks vgg16 resnet18] [--only VARIANT ...]

`VARIANTS` says how each network is trained: batches of 64, shifted and mirrored images, Adam whose rate falls to 0 by a cosine, seed 0.
`plain` is an ordinary network, and `plain-on` what becomes of it in further epochs from a smaller rate. `bayesian` is `plain` made Bayesian
(reparameterization, ARD prior) and trained for just as many further epochs: its twin is `plain-on`. `halved` is `bayesian` cut to half of
the units of every layer, by their evidence, and trained on. `shrinking` is a Bayesian network trained from the beginning as long as
`plain`, whose units leave by their evidence for each multiplication until .83 of the multiplications are gone. ResNet-18 has fewer epochs,
and no `shrinking`. What is not yet in --runs is trained, or goes on where it was stopped: hours on two cores (two --only may run side by
side, with TF_NUM_INTRAOP_THREADS=1). Training computes in bfloat16 unless --policy says otherwise, exports in float32. Nothing was chosen
on the test split. Writes results/full_size.json, where rows of another network stay.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import measure
import numpy as np

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.evaluation.uncertainty import ood_auroc
from tfp_bprune.files.runs import Run
from tfp_bprune.graphs import compact
from tfp_bprune.graphs.compact import kept_of
from tfp_bprune.graphs.products import multiplications
from tfp_bprune.graphs.shrink import shrink
from tfp_bprune.types import Policy

BATCH, SPARSITY, OVER = 64, 0.83, (1 / 6, 0.55)  # the sparsity is of the multiplications
HALF = 0.75  # of the weights: half of the units of every layer
BAYESIAN: dict[str, Any] = {"layers": "reparameterization", "prior": "ard"}


@dataclass(frozen=True)
class Variant:
    """How a network is trained.

    Attributes:
      start: the variant whose trained network it starts from; None for a new network.
      rate: Adam's, at the start.
      bayesian: whether its weights have distributions, of which rho starts at `rho` and the KL counts `kl_weight`.
      leaves: units that leave: "half", at the start, or "gradual", while it is trained.
    """

    epochs: int
    rate: float
    start: str | None = None
    bayesian: bool = False
    rho: float = -6.0
    kl_weight: float = 0.01
    leaves: str | None = None


VGG16 = {
    "plain": Variant(6, 1e-3),
    "plain-on": Variant(4, 5e-4, start="plain"),
    "bayesian": Variant(4, 5e-4, start="plain", bayesian=True),
    "halved": Variant(10, 5e-4, start="bayesian", bayesian=True, leaves="half"),
    "shrinking": Variant(6, 1e-3, bayesian=True, rho=-7.0, kl_weight=0.03, leaves="gradual"),
}
SHORTER = {"plain": 3, "plain-on": 2, "bayesian": 2, "halved": 3}  # epochs of a network that takes twice as long
VARIANTS = {
    "vgg16": VGG16,
    "resnet18": {name: replace(VGG16[name], epochs=epochs) for name, epochs in SHORTER.items()},
}
SPARSITIES = (0.0, 0.8)
DRAWS, DRAWN = 10, 1000
STRANGE = 2000  # images that are not of the data
BATCHES = (1, 32)
FORMS: dict[str, dict[str, Any]] = {
    "SavedModel": {},
    "LiteRT": {"format": "litert"},
    "LiteRT, int8": {"format": "litert", "precision": "int8"},
    "LiteRT, int8 throughout": {"format": "litert", "precision": "int8"},
}


class Spent(keras.callbacks.Callback):
    """Notes what an epoch took of the processors, `cpu_seconds` in the run's rows, which pauses and other jobs leave alone."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to count."""
        self.began = time.process_time()

    def figures(self) -> dict[str, float]:
        """What goes into the row of an epoch, validation included."""
        return {"cpu_seconds": time.process_time() - self.began}


def begun(network: str, variant: Variant, data: Splits, runs: Path, width: float, policy: Policy) -> Any:
    """The network that is to be trained."""
    kind = BAYESIAN | {"rho_init": variant.rho} if variant.bayesian else {"layers": "deterministic"}
    if variant.start is None:
        return bp.build(network, data.info, policy=policy, options={"width": width}, **kind)  # type: ignore[arg-type]
    model = bp.load_model(runs / f"{network}-{variant.start}").model
    if variant.bayesian and not VARIANTS[network][variant.start].bayesian:
        model = bp.bayesianize(model, **kind)
    if variant.leaves == "half":
        model, _ = bp.prune(model, sparsity=HALF, granularity="unit", scope="layer", criterion="evidence")
        shrink(model, kept_of(model))
    return model


def train(network: str, name: str, data: Splits, runs: Path, width: float, policy: Policy) -> Path:
    """Trains what is missing of a network, and of those it starts from; its run."""
    path, variant = runs / f"{network}-{name}", VARIANTS[network][name]
    if Run(path).exists and Run.open(path).manifest["epoch"] >= variant.epochs:
        return path
    if variant.start is not None:
        train(network, variant.start, data, runs, width, policy)
    callbacks: list[Any] = [Spent()]
    if variant.leaves == "gradual":
        by: Any = {"granularity": "unit", "criterion": "evidence", "counts": "multiplications"}
        callbacks += [bp.GradualPruning(SPARSITY, over=OVER, **by), bp.Shrink()]
    settings = bp.Settings(variant.epochs, variant.rate, kl_weight=variant.kl_weight)
    model = begun(network, variant, data, runs, width, policy)
    bp.fit(model, data, settings=settings, callbacks=callbacks, out=path, resume=True)
    return path


def images_of(data: Splits, data_dir: str) -> dict[str, np.ndarray]:
    """Test images, and some that are not of the data: of clothes, as wide and in colour, and test images turned by 90 degrees."""
    test = data.examples("test").x
    clothes = bp.load("fashion_mnist", data_dir).examples("test").x[:STRANGE]
    clothes = np.repeat(np.pad(clothes, ((0, 0), (2, 2), (2, 2), (0, 0))), 3, axis=-1)
    return {"test": test, "clothes": clothes, "turned": np.rot90(test[:STRANGE], axes=(1, 2))}


def scores_of(answers: Mapping[str, Mapping[str, np.ndarray]], y: np.ndarray) -> dict[str, Any]:
    """Scores of the answers to test images, and how well entropy tells the others apart from them."""
    found = {key: value for key, value in of_outputs(answers["test"], y).items() if key in ("accuracy", "nll", "ece")}
    inside = answers["test"]["entropy"][:STRANGE]
    return found | {f"auroc_{name}": ood_auroc(inside, a["entropy"]) for name, a in answers.items() if name != "test"}


def anew(model: Any, data: Splits) -> Any:
    """The model with its normalization measured on training images."""
    return bp.recalibrate(model, data.examples("train").x[:2000])


def weight_rows(network: str, variant: str, model: Any, data: Splits) -> list[dict[str, Any]]:
    """The posterior mean without some of its weights, not retrained, its normalization measured anew."""
    test, rows = data.examples("test"), list[dict[str, Any]]()
    for sparsity in SPARSITIES:
        smaller = anew(bp.prune(model, sparsity=sparsity)[0] if sparsity else model, data)
        answer = bp.predict(smaller, test.x, predictive="mean", progress=False)
        outputs = {"test": {"probabilities": answer.probabilities, "entropy": answer.entropy}}
        rows.append({"network": network, "variant": variant, "removed": sparsity, **scores_of(outputs, test.y)})
    return rows


def drawn_row(network: str, variant: str, model: Any, data: Splits, images: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Scores of the mean over draws of the weights, on a part of the test split."""
    y, answers = data.examples("test").y[:DRAWN], {}
    for name, x in images.items():
        answer = bp.predict(model, x[:DRAWN], predictive="sampled", samples=DRAWS, progress=False)
        answers[name] = {
            "probabilities": answer.probabilities,
            "entropy": answer.entropy,
            "epistemic": answer.epistemic,
        }
    by = {
        f"epistemic_auroc_{n}": ood_auroc(answers["test"]["epistemic"], a["epistemic"])
        for n, a in answers.items()
        if n != "test"
    }
    return {"network": network, "variant": variant, "draws": DRAWS, "images": DRAWN, **scores_of(answers, y), **by}


def export_rows(
    network: str, models: Mapping[str, Any], data: Splits, images: Mapping[str, np.ndarray], place: Path, rounds: int
) -> list[dict[str, Any]]:
    """The mean networks in each form: bytes, scores, and milliseconds of all in turns in one fresh process."""
    train, y = data.examples("train").x[:500], data.examples("test").y
    made: dict[Path, dict[str, Any]] = {}
    shutil.rmtree(place, ignore_errors=True)
    for variant, model in models.items():
        for form, options in FORMS.items():
            path = place / f"{variant}-{form}".replace(", ", "-")
            given = options | ({"representative": train} if form.endswith("throughout") else {})
            bp.export(model, path, **given)
            made[path] = {"network": network, "variant": variant, "format": form}
    timed = reload(list(made), images["test"][: BATCHES[-1]], batches=BATCHES, rounds=rounds, trust=True)
    rows = []
    for (path, about), one in zip(made.items(), timed, strict=True):
        answers = {name: reload([path], x, trust=True)[0].outputs for name, x in images.items()}
        manifest = Run.open(path).manifest
        sizes = {key: manifest[key] for key in ("bytes", "payload_bytes") if key in manifest}
        times = {f"ms_{batch}": one.latency_ms[str(batch)]["median"] for batch in BATCHES}
        rows.append(about | times | sizes | scores_of(answers, y))
    base = {row["format"]: row for row in rows if row["variant"] == "plain"}
    for row in rows:
        same = base["LiteRT" if row["format"].startswith("LiteRT") else "SavedModel"]
        row |= {f"speedup_{batch}": same[f"ms_{batch}"] / row[f"ms_{batch}"] for batch in BATCHES}
    return rows


def training_row(network: str, variant: str, run: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a training took, and what came of it on the validation split."""
    history, left = Run.open(run).read_rows(), compact(bp.strip(bp.load_model(run).model))
    spent = [row["cpu_seconds"] for row in history]
    units = {layer.name: int(layer.kernel.shape[-1]) for layer in left.layers if hasattr(layer, "kernel")}
    return {
        "network": network, "variant": variant, **about, "epochs": len(spent), "cpu_seconds": spent, "total_cpu_seconds": sum(spent),
        "val_accuracy": [row["val_accuracy"] for row in history], "val_nll": [row["val_nll"] for row in history],
        "units": units, "parameters": int(left.count_params()), "multiplications": multiplications(left),
    }  # fmt: skip


def rows_of(
    network: str, runs: dict[str, Path], data: Splits, about: dict[str, Any], arguments: Any
) -> list[dict[str, Any]]:
    """All rows of a network, kind by kind."""
    models = {variant: bp.load_model(run).model for variant, run in runs.items()}
    images = images_of(data, arguments.data_dir)
    rows = [training_row(network, variant, run, about) for variant, run in runs.items()]
    # Normalization that was measured under draws is measured anew for the mean.
    means = {v: anew(model, data) if VARIANTS[network][v].bayesian else model for v, model in models.items()}
    rows += export_rows(network, means, data, images, arguments.runs / f"{network}-exports", arguments.rounds)
    rows += [row for variant in runs for row in weight_rows(network, variant, models[variant], data)]
    return rows + [
        drawn_row(network, variant, models[variant], data, images)
        for variant in runs
        if VARIANTS[network][variant].bayesian
    ]


def shown(rows: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    aurocs = {"auroc_clothes": ".3f", "auroc_turned": ".3f"}
    scores = {"accuracy": ".4f", "nll": ".3f", "ece": ".4f"}
    names = {"network": "", "variant": ""}
    kinds: dict[str, dict[str, str]] = {
        "units": names | {"epochs": "d", "parameters": ",d", "multiplications": ",d", "total_cpu_seconds": ",.0f"},
        "format": names | {"format": "", "ms_1": ".2f", "ms_32": ".1f", "speedup_1": ".1f", "speedup_32": ".1f", "bytes": ",d"} | scores | aurocs,
        "removed": names | {"removed": ".2f"} | scores,
        "draws": names | {"draws": "d"} | scores | aurocs,
    }  # fmt: skip
    for kind, columns in kinds.items():
        print(measure.markdown([row for row in rows if kind in row], columns), end="\n\n")


def main() -> None:
    """Trains what is missing, measures and writes."""
    parser = measure.parser(__doc__, "full_size")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/full"), help="where trained networks are kept")
    parser.add_argument("--networks", nargs="+", default=["vgg16"], choices=["vgg16", "resnet18"])
    parser.add_argument("--only", nargs="+", choices=VGG16, help="train these and end")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--policy", default="mixed_bfloat16", help="Keras's policy while training")
    arguments = parser.parse_args()
    data = bp.load("cifar10", arguments.data_dir, batch_size=BATCH, augmentation="shift_flip")
    about = {key: getattr(arguments, key) for key in ("width", "policy")}
    rows: list[dict[str, Any]] = []
    for network in arguments.networks:
        runs = {
            v: train(network, v, data, arguments.runs, arguments.width, arguments.policy)
            for v in arguments.only or VARIANTS[network]
        }
        if not arguments.only:
            rows = measure.merged(rows_of(network, runs, data, about, arguments), arguments.json, itemgetter("network"))
            measure.write(rows, arguments.json)
    if rows:
        shown(rows)


if __name__ == "__main__":
    main()
