"""What retraining changes: pruning and training on, and pruning while training, which the published comparison left out.

Han et al. 2015 (arXiv 1506.02626) prune by magnitude and train what is left; Zhu and Gupta 2017 (arXiv 1710.01878) remove more and
more while training. Both are done here to the networks of `compression`; and, since a Bayesian step takes longer, also with
as many epochs for the others as the Bayesian network's time buys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tfp_bprune.evaluation.masked import MaskedNetwork
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.pruning.scoring import default_criterion
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.reports.studies import mean_and_spread, panels_figure
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import compression, scoring
from tfp_bprune.studies.networks import Network, Spec
from tfp_bprune.studies.scoring import counted, mean_rows
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.types import Json

METHODS = ("sgd", "dropout_0.5", "bbb")
WAYS = {
    "none": "no retraining",
    "retrained": "pruned, then retrained",
    "gradual": "pruned while training",
    "retrained_equal_time": "pruned, then retrained, equal time",
    "gradual_equal_time": "pruned while training, equal time",
}
_RATE = 5e-4  # of Adam in retraining: half of training's, and again down to 0
_TEXT = """Plain, dropout and Bayesian networks (784-500-500-10 on images, those of `compression`) with retraining, which the published
comparison left out. Accuracy of the mean network on the test split.

- No retraining: as in `compression`.
- Pruned, then retrained: once, to the full sparsity, then {retraining} of Adam at 5e-4 with a cosine to 0; what is pruned stays pruned
  (Han et al. 2015; they prune and retrain several times).
- Pruned while training: the {epochs} epochs from the beginning, the sparsity rising by a cubic from 19 % to 75 % of the steps (Zhu and Gupta 2017).
- Equal time: plain and dropout networks get as many epochs as the Bayesian network's time buys, by their undisturbed epochs ({ratios}).
  "Retrained" then spends what is left of it after the first {epochs} epochs on retraining."""


def run(settings: Settings) -> Result:
    """Trains in all ways what is missing, and scores."""
    datasets, seeds = settings.datasets_or(("mnist",)), settings.seeds_or(1)
    sparsities = (0.9,) if settings.quick else (0.9, 0.95, 0.98, 0.99)
    parents = {
        (dataset, seed, method): compression.specs_of(dataset, seed, settings)[method]
        for dataset in datasets
        for seed in seeds
        for method in METHODS
    }
    trained = gather(settings, list(parents.values()), {"sparsities": list(sparsities)})
    found = dict(zip(parents, trained, strict=True))
    rows = [row for place, one in found.items() for row in _rows(place[2], "none", one)]
    retraining = max(1, round(0.1 * trained[0].spec.epochs))
    ratios = {place: _ratio(found, place) for place in parents}
    children = {
        (*place, way, sparsity): spec
        for place, one in found.items()
        for sparsity in sparsities
        for way, spec in children_of(one.spec, sparsity, retraining, ratios[place]).items()
    }
    later = gather(settings, list(children.values()), {"sparsities": None})
    for place, one in zip(children, later, strict=True):
        rows += _rows(place[2], place[3], one)
    pictures = {dataset: _picture(dataset, rows) for dataset in datasets}
    said = ", ".join(
        f"{d} {compression.NAMES[m]}: {r:.2f} times the epochs"
        for (d, s, m), r in ratios.items()
        if m != "bbb" and s == 0
    )
    text = _TEXT.format(
        retraining=f"{retraining} epoch{'s' * (retraining != 1)}", epochs=trained[0].spec.epochs, ratios=said
    )
    return Result("Retraining", text_of(text, rows, datasets, pictures), rows, pictures, networks=[*trained, *later])


def children_of(parent: Spec, sparsity: float, retraining: int, ratio: float) -> dict[str, Spec]:
    """The networks that are trained further from a parent, or anew and pruned meanwhile, by way."""
    on = replace(parent, parent=parent, sparsity=sparsity, epochs=retraining, learning_rate=_RATE, kl="constant")
    anew = replace(parent, sparsity=sparsity)
    specs = {"retrained": on, "gradual": anew}
    if not parent.bayesian:
        in_all = round(ratio * (parent.epochs + retraining))
        specs["retrained_equal_time"] = replace(on, epochs=max(retraining, in_all - parent.epochs))
        specs["gradual_equal_time"] = replace(anew, epochs=max(parent.epochs, round(ratio * parent.epochs)))
    return specs


def _ratio(found: dict[tuple[str, int, str], Found], place: tuple[str, int, str]) -> float:
    """The Bayesian network's seconds an epoch over this one's, both undisturbed: what else the machine did must not count."""
    return found[*place[:2], "bbb"].epoch_seconds / found[place].epoch_seconds


def measure(network: Network, options: Json) -> Json:
    """Scores of the mean network on the test split: pruned to each sparsity, or as pruned as it is."""
    model, test = network.model, network.data.examples("test")
    if options["sparsities"] is not None:
        return {"rows": mean_rows(model, test.x, test.y, options["sparsities"])}
    mean = MaskedNetwork(model)
    masks = {name: w.mask for name, w in prunable_weights(model, default_criterion(model)).items()}
    found = classification(mean.probabilities(test.x, masks), test.y)
    return {"rows": [{"requested": network.spec.sparsity, **counted(masks, mean), **found}]}


MEASURED_BY = (scoring,)


def _rows(method: str, way: str, found: Found) -> list[Json]:
    spec = found.spec
    about = {
        "dataset": spec.dataset,
        "network": spec.network,
        "layers": spec.layers,
        "method": method,
        "seed": spec.seed,
    }
    about |= {"way": way, "epochs": spec.epochs, "seconds": found.seconds, "threads": found.threads}
    return [about | row for row in found.measured["rows"]]


def _picture(dataset: str, rows: list[Json]) -> bytes:
    """Accuracy against sparsity: a panel a way, the Bayesian network in all of them."""
    series = {
        name: [
            {"requested": r["requested"], way: r["accuracy"]}
            for way in WAYS
            for r in rows
            if (r["dataset"], r["method"]) == (dataset, method)
            and r["way"] == (way.removesuffix("_equal_time") if method == "bbb" else way)
        ]
        for method, name in compression.NAMES.items()
        if method in METHODS
    }
    return panels_figure(series, {way: f"accuracy, {name}" for way, name in WAYS.items()}, f"{dataset}: retraining")


def text_of(text: str, rows: list[Json], datasets: Sequence[str], pictures: dict[str, bytes]) -> str:
    """The study in words, tables and pictures."""
    parts = [text]
    for dataset in datasets:
        mine = [row for row in rows if row["dataset"] == dataset]
        shown = {dataset: pictures[dataset]}
        parts += [f"## {dataset}", table_of(mine), ahead(mine)]
        parts.append(
            pictures_in("retrain", shown, {dataset: f"{dataset}: accuracy against sparsity, by way of retraining"})
        )
    return "\n\n".join(parts)


def table_of(rows: list[Json]) -> str:
    """Accuracy by way, method and sparsity, with epochs and seconds of the training that the way adds."""
    sparsities = sorted({row["requested"] for row in rows})
    lines = []
    for way, name in WAYS.items():
        for method in METHODS:
            mine = [row for row in rows if (row["way"], row["method"]) == (way, method)]
            if mine:
                cells = [mean_and_spread([r["accuracy"] for r in mine if r["requested"] == s]) for s in sparsities]
                seconds = f"{np.mean([row['seconds'] for row in mine]):.0f}"
                lines.append([name, compression.NAMES[method], str(mine[0]["epochs"]), seconds, *cells])
    header = ["way", "network", "epochs", "seconds", *(f"{100 * s:g} %" for s in sparsities)]
    return markdown_table(header, lines, names=2)


def ahead(rows: list[Json]) -> str:
    """By how much the Bayesian network is ahead of the better of the others, for each way and sparsity."""
    lines = []
    for way, name in WAYS.items():
        mine = way.removesuffix("_equal_time")
        parts = []
        for sparsity in sorted({row["requested"] for row in rows}):
            bayesian = _mean(rows, "bbb", mine, sparsity)
            other = max(_mean(rows, method, way, sparsity) for method in METHODS if method != "bbb")
            parts.append(f"{100 * (bayesian - other):+.2f} at {100 * sparsity:g} %")
        lines.append(f"- {name}: {', '.join(parts)}")
    return (
        "Accuracy of Bayes by Backprop less that of the better of the two others, in percentage points:\n\n"
        + "\n".join(lines)
    )


def _mean(rows: list[Json], method: str, way: str, sparsity: float) -> float:
    key = (method, way, sparsity)
    return float(np.mean([r["accuracy"] for r in rows if (r["method"], r["way"], r["requested"]) == key]))
