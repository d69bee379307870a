"""How much of a trained network can go, without retraining: dropout networks beside Bayes by Backprop.

The published comparison: D. Prasad, "Model compression using Bayesian Deep Learning": 784-500-500-10, Adam, 50 epochs,
batch 100; plain and dropout networks ranked by |w|, Bayes by Backprop by |mu| / sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from tfp_bprune.evaluation.masked import MaskedNetwork
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.layers.posterior import rho_of
from tfp_bprune.pruning.masks import masks_at_sparsity
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.pruning.scores import decibel
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.reports.studies import accuracy_figure, curves_figure, mean_and_spread, weights_figure
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import scoring
from tfp_bprune.studies.networks import Network, Spec
from tfp_bprune.studies.published import PRASAD_SPARSITIES, prasad
from tfp_bprune.studies.scoring import default_scores, mean_rows, outputs
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.types import Json

SPARSITIES = (*PRASAD_SPARSITIES, 0.95, 0.98, 0.99, 0.995)
METHODS: dict[str, Json] = {
    "sgd": {"layers": "deterministic"},
    "dropout_0.5": {"layers": "dropout", "dropout_rate": 0.5},
    "dropout_0.75": {"layers": "dropout", "dropout_rate": 0.75},
    "dropout_0.9": {"layers": "dropout", "dropout_rate": 0.9},
    "bbb": {"layers": "flipout"},
}
NAMES = {
    "sgd": "SGD",
    "dropout_0.5": "dropout .5",
    "dropout_0.75": "dropout .75",
    "dropout_0.9": "dropout .9",
    "bbb": "Bayes by Backprop",
}
TARGETS = (("mnist", 0.9, 0.982), ("mnist", 0.95, 0.982), ("fashion_mnist", 0.9, 0.89))
_WEIGHTS = np.linspace(-0.5, 0.5, 101)
_DECIBELS = np.linspace(-30, 30, 121)
_DIFFERS = 0.01  # in accuracy, from which on a published figure is said to differ


def specs_of(dataset: str, seed: int, settings: Settings) -> dict[str, Spec]:
    """The five networks by method."""
    epochs = settings.epochs or (30 if settings.quick else 50)
    hidden = (64, 64) if settings.quick else (500, 500)
    return {
        method: Spec(dataset, hidden=hidden, epochs=epochs, seed=seed, batch_size=50 if settings.quick else 100, **how)
        for method, how in METHODS.items()
    }


def run(settings: Settings) -> Result:
    """Trains, prunes and measures all networks."""
    datasets, seeds = settings.datasets_or(("mnist", "fashion_mnist")), settings.seeds_or(3)
    places = [(d, m, s) for s in seeds for d in datasets for m in METHODS]
    specs = [specs_of(d, s, settings)[m] for d, m, s in places]
    found = gather(settings, specs, {"sparsities": list(SPARSITIES), "samples": 10})
    rows = [row for (_, method, _), one in zip(places, found, strict=True) for row in rows_of(method, one)]
    by_method = {(d, m): [f for p, f in zip(places, found, strict=True) if p[:2] == (d, m)] for d in datasets for m in METHODS}  # fmt: skip
    curves = {f"{d}/{m}": mean_curves(group) for (d, m), group in by_method.items()}
    histograms = {f"{d}/{m}": added_histograms(group) for (d, m), group in by_method.items()}
    mistaken = {d: [f.measured["by_rho"] for f in by_method[d, "bbb"]] for d in datasets}
    extra: Json = {
        "ranked_by_rho": mistaken,
        "curves": curves,
        "histograms": histograms,
        "weight_edges": _WEIGHTS.tolist(),
    }
    pictures = {}
    for d in datasets:
        named = {NAMES[m]: m for m in METHODS}
        published = {n: [prasad(d, m, s) for s in SPARSITIES] for n, m in named.items()}
        series = {n: [r for r in rows if (r["dataset"], r["method"]) == (d, m)] for n, m in named.items()}
        pictures[f"{d}-accuracy"] = accuracy_figure(series, f"{d}: accuracy without retraining", published)
        pictures[f"{d}-loss"] = curves_figure({n: curves[f"{d}/{m}"] for n, m in named.items()}, f"{d}: training")
        shown = {n: histograms[f"{d}/{m}"] for n, m in named.items()}
        pictures[f"{d}-weights"] = weights_figure(shown, _WEIGHTS.tolist(), f"{d}: weights after training")
    return Result("Compression without retraining", text_of(rows, mistaken, pictures), rows, pictures, extra, found)


def measure(network: Network, options: Json) -> Json:
    """Scores at each sparsity on the test split, of the mean and, where weights have distributions, of draws; histograms."""
    model, test = network.model, network.data.examples("test")
    rows = mean_rows(model, test.x, test.y, options["sparsities"])
    scores = default_scores(model)
    if network.spec.bayesian:
        for row in rows:
            pruned = with_masks(model, masks_at_sparsity(scores, row["requested"]))
            said = outputs(pruned, "sampled", test.x, options["samples"])["probabilities"]
            row |= {f"sampled_{key}": value for key, value in classification(said, test.y).items()}
    values = np.concatenate([w.loc.ravel() for w in prunable_weights(model, "magnitude").values()])
    found: Json = {"rows": rows, "weights": np.histogram(values, _WEIGHTS)[0].tolist()}
    if network.spec.bayesian:
        ratios = decibel(np.concatenate([s.ravel() for s in scores.values()]))
        found["by_rho"] = by_rho(model, test.x, test.y)
        found["snr_db"] = np.histogram(ratios, _DECIBELS)[0].tolist()
    return found


def by_rho(model: Any, x: np.ndarray, y: np.ndarray) -> Json:
    """Accuracy at the published sparsities where |mu| / rho is ranked in the place of |mu| / sigma, the lowest removed first.

    rho is negative for every sigma below .69, so that this removes the largest weights first. It is what the published code
    says; no figure but this one rests on it.
    """
    mean, scores = MaskedNetwork(model), {}
    for name, w in prunable_weights(model).items():
        scores[name] = np.abs(w.loc) / rho_of(np.asarray(w.scale))
    return {
        f"{s:g}": float(np.mean(mean.probabilities(x, masks_at_sparsity(scores, s)).argmax(1) == y))
        for s in PRASAD_SPARSITIES
    }


MEASURED_BY = (by_rho, scoring)


def rows_of(method: str, found: Found) -> list[Json]:
    """The table's rows of one network, with the published accuracy beside ours."""
    spec = found.spec
    about = {
        "dataset": spec.dataset,
        "network": spec.network,
        "layers": spec.layers,
        "method": method,
        "seed": spec.seed,
    }
    times = {
        "seconds": found.seconds,
        "epoch_seconds": found.epoch_seconds,
        "threads": found.threads,
        "epochs": spec.epochs,
    }
    return [
        about | row | {"published": prasad(spec.dataset, method, row["requested"])} | times
        for row in found.measured["rows"]
    ]


def mean_curves(group: Sequence[Found]) -> Json:
    """Mean over seeds of the history, by epoch: `loss` in nats per example, and `nll`, its part without the KL."""
    keys = [key for key in ("loss", "nll", "val_nll", "val_accuracy") if key in group[0].history[0]]
    return {key: np.mean([[row[key] for row in one.history] for one in group], 0).tolist() for key in keys}


def added_histograms(group: Sequence[Found]) -> list[int]:
    """Counts of the weights, all seeds together."""
    return np.sum([one.measured["weights"] for one in group], 0).tolist()


def text_of(rows: list[Json], mistaken: dict[str, list[Json]], pictures: dict[str, bytes]) -> str:
    """The study in words, tables and pictures."""
    parts = [
        "Accuracy of pruned dropout networks and of a pruned Bayesian network, without retraining. "
        "784-500-500-10 on images (`--budget quick`: 64-64), ReLU, Adam at 1e-3 with a cosine to 0 for all, ranked over "
        "all layers together: plain and dropout networks by |w|, Bayes by Backprop (Flipout, scale-mixture prior, SGD's "
        'settings) by |mu| / sigma. "SGD" is the plain network, trained with Adam as published; dropout p drops each '
        "hidden unit with probability p. Accuracy on the test split, mean ± standard deviation over seeds.",
    ]
    for dataset in mistaken:
        mine = [row for row in rows if row["dataset"] == dataset]
        captions = {f"{dataset}-accuracy": f"{dataset}: accuracy against the part of the weights removed, published figures hollow"}  # fmt: skip
        captions |= {f"{dataset}-loss": f"{dataset}: training loss of all methods"}
        captions |= {f"{dataset}-weights": f"{dataset}: histograms of the weights"}
        shown = {name: picture for name, picture in pictures.items() if name in captions}
        parts += [f"## {dataset}", accuracy_table(mine), sampled_table(mine), times_sentence(mine)]
        parts.append(pictures_in("compression", shown, captions))
    return "\n\n".join(filter(None, [*parts, targets_text(rows), notes_text(rows, mistaken)]))


def accuracy_table(rows: list[Json]) -> str:
    """Accuracy by method and sparsity, the published figure in brackets."""
    header = ["removed", *(f"{100 * s:g} %" for s in SPARSITIES)]
    lines = []
    for method in METHODS:
        cells = [NAMES[method]]
        for sparsity in SPARSITIES:
            mine = [row for row in rows if (row["method"], row["requested"]) == (method, sparsity)]
            known = mine[0]["published"]
            cells.append(mean_and_spread([row["accuracy"] for row in mine]) + (f" ({known:.4f})" if known else ""))
        lines.append(cells)
    brackets = "\n\nIn brackets: published." if any(row["published"] for row in rows) else ""
    return markdown_table(header, lines) + brackets


def sampled_table(rows: list[Json]) -> str:
    """Bayes by Backprop: the mean network beside the mean of draws."""
    header = ["Bayes by Backprop, removed", "accuracy, mean", "NLL", "ECE", "accuracy, 10 draws", "NLL, 10 draws", "ECE, 10 draws"]  # fmt: skip
    keys = ("accuracy", "nll", "ece", "sampled_accuracy", "sampled_nll", "sampled_ece")
    lines = []
    for sparsity in SPARSITIES:
        mine = [row for row in rows if (row["method"], row["requested"]) == ("bbb", sparsity)]
        lines.append([f"{100 * sparsity:g} %", *(mean_and_spread([row[key] for row in mine]) for key in keys)])
    return markdown_table(header, lines)


def times_sentence(rows: list[Json]) -> str:
    """Wall time of a run of each method; by undisturbed epochs Bayes by Backprop's in units of the plain network's."""
    seconds, epoch = (
        {m: float(np.mean([row[key] for row in rows if row["method"] == m])) for m in METHODS}
        for key in ("seconds", "epoch_seconds")
    )
    each = ", ".join(f"{NAMES[m]} {seconds[m]:.0f} s ({epoch[m]:.1f} s an undisturbed epoch)" for m in METHODS)
    ratio = epoch["bbb"] / epoch["sgd"]
    said = f"An undisturbed epoch of Bayes by Backprop takes {ratio:.1f} times as long as one of SGD"
    return f"Wall time of a training: {each}. {said} (published: 50 min and 5 min, 10 times)."


def targets_text(rows: list[Json]) -> str:
    """Whether what was aimed at is reached; empty where it was not measured."""
    lines = []
    for dataset, sparsity, target in TARGETS:
        mine = [
            r["accuracy"] for r in rows if (r["dataset"], r["method"], r["requested"]) == (dataset, "bbb", sparsity)
        ]
        if mine:
            reached = "reached" if np.mean(mine) >= target else "missed"
            lines.append(
                f"- Bayes by Backprop on {dataset} without {100 * sparsity:g} %: {mean_and_spread(mine)}, aimed at {target}: {reached}."
            )
    return "## Aims\n\n" + "\n".join(lines) if lines else ""


def differences(rows: list[Json]) -> list[list[str]]:
    """Where ours and the published accuracy are further apart than .01 and than three standard deviations of ours."""
    lines = []
    keys = dict.fromkeys((r["dataset"], r["method"], r["requested"]) for r in rows if r.get("published"))
    for dataset, method, sparsity in keys:
        mine = [r for r in rows if (r["dataset"], r["method"], r["requested"]) == (dataset, method, sparsity)]
        ours, published = [row["accuracy"] for row in mine], mine[0]["published"]
        gap = float(np.mean(ours)) - published
        if abs(gap) > max(_DIFFERS, 3 * float(np.std(ours, ddof=len(ours) > 1))):
            removed = f"{100 * sparsity:g} %"
            lines.append([dataset, NAMES[method], removed, f"{published:.4f}", mean_and_spread(ours), f"{gap:+.4f}"])
    return lines


def notes_text(rows: list[Json], mistaken: dict[str, list[Json]]) -> str:
    """The differences from what was published, and what is known of their causes; empty where nothing was published."""
    if not any(row["published"] for row in rows):
        return ""
    lines = differences(rows)
    said = (
        "Accuracies more than .01, and more than three standard deviations of our seeds, away from the published ones:"
    )
    header = ["dataset", "method", "removed", "published", "ours", "difference"]
    table = f"{said}\n\n{markdown_table(header, lines, names=3)}" if lines else f"{said} none."
    return "\n\n".join(
        [
            "## Beside the published figures",
            table,
            _CAUSE_BAYES,
            rho_table(mistaken),
            _CAUSE_PLAIN,
            agreement_sentence(rows),
        ]
    )


def agreement_sentence(rows: list[Json]) -> str:
    """How the published figures of SGD and dropout and ours rise and fall together."""
    keys = dict.fromkeys(
        (r["dataset"], r["method"], r["requested"]) for r in rows if r["published"] and r["method"] != "bbb"
    )
    ours = [np.mean([r["accuracy"] for r in rows if (r["dataset"], r["method"], r["requested"]) == k]) for k in keys]
    correlation = float(stats.spearmanr([prasad(*key) for key in keys], ours).statistic)
    return f"Spearman's rank correlation of the {len(ours)} published accuracies of SGD and dropout with ours is {correlation:.2f}."


def rho_table(mistaken: dict[str, list[Json]]) -> str:
    """Accuracy of our Bayesian networks ranked by |mu| / rho, beside the published row."""
    lines = []
    for dataset, found in mistaken.items():
        if prasad(dataset, "bbb", 0.0) is not None:
            cells = [mean_and_spread([one[f"{s:g}"] for one in found]) for s in PRASAD_SPARSITIES]
            lines.append(
                [
                    dataset,
                    *(
                        f"{cell} ({prasad(dataset, 'bbb', s):.4f})"
                        for cell, s in zip(cells, PRASAD_SPARSITIES, strict=True)
                    ),
                ]
            )
    header = ["ours, ranked by abs(mu) / rho (published)", *(f"{100 * s:g} %" for s in PRASAD_SPARSITIES)]
    return markdown_table(header, lines)


_CAUSE_BAYES = """Bayes by Backprop: the code published with the comparison divides |mu| by rho where sigma = softplus(rho) is meant. rho is negative
there, so that the largest weights would go first; and it prunes a copy that the forward pass never reads, so that its four columns
are four evaluations of the unpruned network. The table below shows our networks truly pruned in that order. Ranked by |mu| / sigma (what
is scored here equals what an export of the pruned network says, by a test) our figures are those of the first table: where they agree with
the published ones, the claim of the comparison holds, on this evidence and not on that."""
_CAUSE_PLAIN = """SGD and dropout: we do not know the initial values, the learning-rate schedule or the order of ranking of the published
networks, nor how many runs each figure is of, and so cannot say what the differences come from. Ours is one consistent setting for all
methods, not a correction of theirs."""
