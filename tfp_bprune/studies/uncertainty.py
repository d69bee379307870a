"""What pruning does to what a network knows: how sure it is when right and wrong, and before images of another kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.data.splits import Info, load
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.evaluation.uncertainty import area_under_risk_coverage, ood_auroc, risk_coverage
from tfp_bprune.pruning.masks import masks_at_sparsity, sparsity_of
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.reports.studies import lines_figure, mean_and_spread, panels_figure
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import compression, scale, scoring
from tfp_bprune.studies.networks import Network, Spec
from tfp_bprune.studies.scoring import default_scores, outputs
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.training import recalibrate
from tfp_bprune.types import Json, Predictive

SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98)
STRANGERS = {"mnist": ("fashion_mnist",), "fashion_mnist": ("mnist",)}
MADE = ("noise", "rotated")
NAMES = {
    ("sgd", "mean"): "plain",
    ("dropout_0.5", "mean"): "dropout .5",
    ("bbb", "mean"): "Bayesian, mean",
    ("bbb", "moments"): "Bayesian, moments",
    ("bbb", "sampled"): "Bayesian, draws",
}
PANELS = {
    "nll": "NLL (nats)",
    "ece": "ECE",
    "brier": "Brier score",
    "ood_auroc_entropy": "OOD AUROC, entropy",
    "ood_auroc_epistemic": "OOD AUROC, mutual information",
    "aurc_entropy": "area under risk-coverage",
}
_LOGARITHMIC = ("nll", "ece", "brier", "aurc_entropy")
_COVERAGES = np.linspace(0.02, 1, 50)
_SHOWN_CURVES = (0.0, 0.9, 0.95)
_TEXT = """The uncertainty of pruned networks, at each sparsity and without retraining: NLL, ECE and Brier score on the test split; entropy and
mutual information (of class and weights) of right and of wrong predictions; how well entropy and mutual information separate
out-of-distribution images from test images (area under the ROC, .5 is chance); and the error rate when only the most certain
predictions are answered (area under the risk-coverage curve; lower is better). Out-of-distribution images: fashion_mnist for mnist
and the other way round; for other datasets images of uniform noise and test images rotated by 90 degrees. Plain and dropout networks
are scored by their softmax. The Bayesian network predicts in three ways: at its mean, by moments, and as the mean of draws.
Mean ± standard deviation over seeds where there are several."""

_CUT = """On cifar10: the first 2,000 test images and 10 draws alone, batch normalization measured anew after each pruning."""


def specs_of(dataset: str, seed: int, settings: Settings) -> dict[str, Spec]:
    """Networks by method: those of `compression`, and for cifar10 the VGG-16 of `scale`."""
    if dataset == "cifar10":
        found = scale.specs_of(dataset, "vgg16", seed, settings)
        return {"sgd": found["plain"], "bbb": found["bayesian"]}
    found = compression.specs_of(dataset, seed, settings)
    return {method: found[method] for method in ("sgd", "dropout_0.5", "bbb")}


def run(settings: Settings) -> Result:
    """Trains what is missing, and measures."""
    datasets, seeds = settings.datasets_or(("mnist", "fashion_mnist", "cifar10")), settings.seeds_or(1)
    named = {
        (dataset, method, seed): spec
        for seed in seeds
        for dataset in datasets
        for method, spec in specs_of(dataset, seed, settings).items()
    }
    found: list[Found] = []
    rows: list[Json] = []
    curves: Json = {}
    for dataset in datasets:
        chosen = {place: spec for place, spec in named.items() if place[0] == dataset}
        options = _options(dataset, settings)
        for place, one in zip(chosen, gather(settings, list(chosen.values()), options), strict=True):
            found.append(one)
            rows += rows_of(place[1], one)
            if place[2] == 0:
                curves |= {f"{dataset}/{place[1]}/{name}": risks for name, risks in one.measured["curves"].items()}
    pictures = {}
    for dataset in datasets:
        mine = [row for row in rows if row["dataset"] == dataset]
        pictures[dataset] = panels_figure(
            _series(mine), PANELS, f"{dataset}: uncertainty against sparsity", logarithmic=_LOGARITHMIC
        )
        pictures[f"{dataset}-risk"] = _risk_picture(dataset, curves)
    extra = {"coverages": _COVERAGES.tolist(), "risk": curves}
    return Result("Uncertainty of pruned networks", text_of(rows, datasets, pictures), rows, pictures, extra, found)


def _options(dataset: str, settings: Settings) -> Json:
    # A convolution on 32x32 pixels takes a hundred times as long as a dense network: fewer examples and draws.
    big = dataset not in ("mnist", "fashion_mnist", "digits")
    examples, samples = (2000, 10) if big or settings.quick else (10000, 30)
    return {"sparsities": list(SPARSITIES), "examples": examples, "samples": samples}


def measure(network: Network, options: Json) -> Json:
    """All scores at each sparsity and in each way of predicting; risk-coverage curves."""
    test, model = network.data.examples("test"), network.model
    x, y = test.x[: options["examples"]], test.y[: options["examples"]]
    strange = strangers(network.data.info, x, network.data_dir)
    images = np.concatenate([x, *strange.values()])
    scores = default_scores(model)
    ways: tuple[Predictive, ...] = ("mean", "moments", "sampled") if network.spec.bayesian else ("mean",)
    rows, curves = [], {}
    for sparsity in options["sparsities"]:
        masks = masks_at_sparsity(scores, sparsity)
        pruned = with_masks(model, masks)
        for way in ways:
            ready = recalibrated(pruned, network, way)
            said = outputs(ready, way, images, options["samples"])  # in one go: to build what predicts takes longer
            parts = [
                {key: values[i : i + len(x)] for key, values in said.items()} for i in range(0, len(images), len(x))
            ]
            row, risks = _row(parts[0], y, dict(zip(strange, parts[1:], strict=True)))
            rows.append({"requested": sparsity, "sparsity": sparsity_of(masks), "predictive": way, **row})
            curves[f"{way}/{sparsity:g}"] = risks
    return {"rows": rows, "curves": curves}


def recalibrated(model: Any, network: Network, way: Predictive) -> Any:
    """The model with batch normalization measured anew on training data, if it has any."""
    if network.spec.network not in ("vgg16", "resnet18"):
        return model
    train = network.data.examples("train").x[:10000]
    return recalibrate(model, train, predictive="mean" if way == "mean" else "sampled")


def strangers(info: Info, x: np.ndarray, data_dir: Path | None) -> dict[str, np.ndarray]:
    """Images that are not of the data, by kind: as many as `x` [n, ...], in its units."""
    if info.name in STRANGERS:
        return {name: load(name, data_dir).examples("test").x[: len(x)] for name in STRANGERS[info.name]}
    noise = np.random.default_rng(0).integers(0, int(x.max()) + 1, x.shape)
    return dict(zip(MADE, (noise.astype(x.dtype), np.rot90(x, axes=(1, 2))), strict=True))


def _row(inside: dict[str, np.ndarray], y: np.ndarray, outside: dict[str, dict[str, np.ndarray]]) -> tuple[Json, Json]:
    """Scores of the answers to test images and to strange ones; risks at the coverages."""
    right = inside["probabilities"].argmax(1) == y
    row: Json = classification(inside["probabilities"], y)
    kinds = [kind for kind in ("entropy", "epistemic") if kind in inside]
    for kind in kinds:
        row |= {f"{kind}_right": _mean(inside[kind][right]), f"{kind}_wrong": _mean(inside[kind][~right])}
        aucs = {name: ood_auroc(inside[kind], said[kind]) for name, said in outside.items()}
        row |= {f"ood_auroc_{kind}_{name}": value for name, value in aucs.items()}
        row[f"ood_auroc_{kind}"] = float(np.mean(list(aucs.values())))
        row[f"aurc_{kind}"] = area_under_risk_coverage(inside[kind], right)
    coverage, risk = risk_coverage(inside["entropy"], right)
    row["ood_auroc"] = row["ood_auroc_entropy"]
    return row, np.interp(_COVERAGES, coverage, risk).tolist()


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


MEASURED_BY = (scoring, recalibrated, strangers, _row)


def rows_of(method: str, found: Found) -> list[Json]:
    """The table's rows of one network."""
    spec = found.spec
    about = {
        "dataset": spec.dataset,
        "network": spec.network,
        "layers": spec.layers,
        "method": method,
        "seed": spec.seed,
    }
    return [about | row for row in found.measured["rows"]]


def _series(rows: list[Json]) -> dict[str, list[Json]]:
    return {name: [r for r in rows if (r["method"], r["predictive"]) == key] for key, name in NAMES.items()}


def _risk_picture(dataset: str, curves: Json) -> bytes:
    """Error rate by the part that is answered: a panel for some sparsities, a line for each way."""
    panels = {}
    for sparsity in _SHOWN_CURVES:
        lines = {name: curves.get(f"{dataset}/{m}/{way}/{sparsity:g}") for (m, way), name in NAMES.items()}
        panels[f"{100 * sparsity:g} % removed"] = lines
    x_label, y_label = "coverage (fraction of the test split answered)", "error rate among them"
    return lines_figure(panels, _COVERAGES.tolist(), x_label, y_label, f"{dataset}: risk and coverage")


def text_of(rows: list[Json], datasets: Sequence[str], pictures: dict[str, bytes]) -> str:
    """The study in words, tables and pictures."""
    parts = [_TEXT]
    for dataset in datasets:
        mine = [row for row in rows if row["dataset"] == dataset]
        captions = {dataset: f"{dataset}: six scores of uncertainty against sparsity"}
        captions |= {f"{dataset}-risk": f"{dataset}: error rate against coverage"}
        shown = {name: picture for name, picture in pictures.items() if name in captions}
        parts += [f"## {dataset}", table_of(mine), pictures_in("uncertainty", shown, captions)]
    if "cifar10" in datasets:
        parts.append(_CUT)
    return "\n\n".join(parts)


def table_of(rows: list[Json]) -> str:
    """Every score by way of predicting and sparsity."""
    keys = {
        "accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier",
        "entropy_right": "entropy, right", "entropy_wrong": "wrong",
        "epistemic_right": "mutual inf., right", "epistemic_wrong": "wrong",
        "ood_auroc_entropy": "OOD AUROC, entropy", "ood_auroc_epistemic": "mutual inf.", "aurc_entropy": "AURC",
    }  # fmt: skip
    lines = []
    for name, mine in _series(rows).items():
        for sparsity in sorted({row["requested"] for row in mine}):
            here = [row for row in mine if row["requested"] == sparsity]
            cells = [[row[key] for row in here if row.get(key) is not None] for key in keys]
            lines.append([name, f"{100 * sparsity:g} %", *(mean_and_spread(c) if c else "" for c in cells)])
    return markdown_table(["", "removed", *keys.values()], lines)
