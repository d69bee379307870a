"""Pruning at the size of VGG-16 and ResNet-18 on CIFAR-10, Bayesian and plain, by weight and by unit.

After Sharma and Jennings 2020 (arXiv 2005.11619): up to 80 % pruned, 7 % of accuracy lost at worst, faster inference, many workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.graphs import strip
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.pruning.prune import prune
from tfp_bprune.pruning.scores import decibel
from tfp_bprune.reports.studies import layers_figure, mean_and_spread, panels_figure
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import scoring
from tfp_bprune.studies.networks import Network, Spec
from tfp_bprune.studies.scoring import default_scores
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.studies.throughput import throughput_rows
from tfp_bprune.training import recalibrate
from tfp_bprune.types import Granularity, Json

SPARSITIES: dict[Granularity, tuple[float, ...]] = {
    "weight": (0.0, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95),
    "unit": (0.0, 0.25, 0.5, 0.75, 0.8),
}
WIDTH, KL_WEIGHT = 0.25, 0.1
NAMES = {"bayesian": "Bayesian", "plain": "plain"}
_PANELS = {
    "accuracy": "accuracy",
    "nll": "NLL (nats)",
    "nonzeros": "nonzero parameters",
    "latency_ms": "ms a batch of 64",
}
_DECIBELS = np.linspace(-30, 30, 61)
_BATCH, _CALLS = 64, 25
Predict = Callable[[Any], Any]
_TEXT = """{networks} at width {width:g}, {epochs} epochs, batch {batch}, training images shifted and mirrored (not on digits), as Bayesian
networks (Flipout, with a tenth of the KL: a cold posterior, since the whole KL costs accuracy at this length) and as plain ones.
Pruned without retraining, by single weights and by whole units, Bayesian networks by SNR, plain ones by magnitude; batch
normalization measured anew on training images after each pruning. Scores of the mean network on the test split. Times are of the
lowered network, dead units removed, in this process: the median of {calls} calls, all sparsities of a network in turns."""
_WORKERS = """Training examples a second, batch {batch} a worker, Horovod, each worker on a core of its own (Sharma and Jennings 2020,
authors' repository, read off a plot: 1.8 times on two workers, Bayesian and plain):"""


def specs_of(dataset: str, network: str, seed: int, settings: Settings) -> dict[str, Spec]:
    """A network Bayesian and plain."""
    epochs = settings.epochs or (2 if settings.quick else 15)
    width, batch = (0.0625, 200) if settings.quick else (WIDTH, 64)
    common = Spec(dataset, network, width=width, epochs=epochs, batch_size=batch, seed=seed, augmentation="shift_flip")
    if dataset == "digits":
        common = Spec(dataset, network, width=width, epochs=epochs, batch_size=batch, seed=seed)
    fields = common.to_json()
    return {
        "bayesian": Spec.from_json(fields | {"kl_weight": KL_WEIGHT}),
        "plain": Spec.from_json(fields | {"layers": "deterministic"}),
    }


def networks_for(dataset: str) -> tuple[str, ...]:
    """The networks that take images of the dataset's size."""
    return ("resnet18",) if dataset in ("digits", "mnist", "fashion_mnist") else ("vgg16", "resnet18")


def run(settings: Settings) -> Result:
    """Trains what is missing, prunes, scores and times."""
    datasets, seeds = settings.datasets_or(("cifar10",)), settings.seeds_or(1)
    named = {
        (dataset, network, kind, seed): spec
        for seed in seeds
        for dataset in datasets
        for network in settings.models_or(networks_for(dataset))
        for kind, spec in specs_of(dataset, network, seed, settings).items()
    }
    options: Json = {"sparsities": {kind: list(values) for kind, values in SPARSITIES.items()}}
    if settings.quick:
        options = {"sparsities": {"weight": [0.0, 0.8], "unit": [0.5]}}
    found = gather(settings, list(named.values()), options)
    rows = [row for place, one in zip(named, found, strict=True) for row in rows_of(place[2], one)]
    names = sorted({place[1] for place in named})
    workers, why = ([], "the small budget") if settings.quick else throughput_rows(names, WIDTH, _BATCH)
    pictures, histograms = {}, {}
    for (dataset, network, kind, seed), one in zip(named, found, strict=True):
        if kind == "bayesian" and seed == 0:
            mine = [r for r in rows if (r["dataset"], r["network"]) == (dataset, network)]
            title = f"{network} on {dataset}"
            pictures[f"{dataset}-{network}"] = panels_figure(_series(mine), _PANELS, title)
            pictures[f"{dataset}-{network}-threshold"] = _threshold_picture(mine, title)
            pictures[f"{dataset}-{network}-layers"] = layers_figure(one.measured["snr_db"], _DECIBELS.tolist(), title)
            histograms[f"{dataset}/{network}"] = one.measured["snr_db"]
    extra = {"snr_db": histograms, "snr_db_edges": _DECIBELS.tolist(), "throughput": workers}
    return Result(
        "At the size of VGG-16 and ResNet-18",
        text_of(rows, workers_text(workers, why), found, pictures),
        rows,
        pictures,
        extra,
        found,
    )


def measure(network: Network, options: Json) -> Json:
    """Scores, sizes and times at each sparsity, by weight and by unit; SNR of each layer in dB."""
    test, train = network.data.examples("test"), network.data.examples("train").x[:10000]
    rows, predictions = [], []
    for granularity, sparsities in options["sparsities"].items():
        for sparsity in sparsities:
            pruned, report = prune(network.model, sparsity=sparsity, granularity=granularity)
            ready = recalibrate(pruned, train)
            predictions.append(Predictor(ready, "mean").predict)
            about = {"granularity": granularity, "requested": sparsity, "sparsity": report.sparsity}
            about |= {"threshold": report.threshold, "threshold_db": float(decibel(np.asarray(report.threshold)))}
            about |= {"nonzeros": report.prunable - report.pruned, "parameters": int(strip(ready).count_params())}
            rows.append(about | scores_of(predictions[-1], test.x, test.y))
    for row, milliseconds in zip(rows, latencies(predictions, test.x[:_BATCH]), strict=True):
        row["latency_ms"] = milliseconds
    found: Json = {"rows": rows}
    if network.spec.bayesian:
        scores = default_scores(network.model)
        found["snr_db"] = {
            name.split("/")[0]: np.histogram(decibel(s), _DECIBELS)[0].tolist() for name, s in scores.items()
        }
    return found


def scores_of(predict: Predict, x: np.ndarray, y: np.ndarray) -> Json:
    """Scores on (x, y)."""
    parts = [predict(tf.constant(x[i : i + 500], tf.float32))["probabilities"] for i in range(0, len(x), 500)]
    return dict(classification(np.concatenate(parts), y))


def latencies(predictions: Sequence[Predict], x: np.ndarray) -> list[float]:
    """Median milliseconds of each for a batch, called in turns: what else the machine does falls on all alike."""
    batch, times = tf.constant(x, tf.float32), np.empty((_CALLS, len(predictions)))
    for turn in range(_CALLS):
        for place, predict in enumerate(predictions):
            begin = time.perf_counter()
            predict(batch)["probabilities"].numpy()
            times[turn, place] = 1e3 * (time.perf_counter() - begin)
    return [float(median) for median in np.median(times, 0)]


MEASURED_BY = (scoring, scores_of, latencies)


def rows_of(kind: str, found: Found) -> list[Json]:
    """The table's rows of one network; the log likelihood is that of a held-out example, in nats."""
    spec = found.spec
    about = {"dataset": spec.dataset, "network": spec.network, "layers": spec.layers, "method": kind, "seed": spec.seed}
    times = {"width": spec.width, "epochs": spec.epochs, "seconds": found.seconds, "threads": found.threads}
    return [about | row | {"log_likelihood": -row["nll"]} | times for row in found.measured["rows"]]


def _series(rows: list[Json]) -> dict[str, list[Json]]:
    named = {
        f"{name}, by {granularity}": [r for r in rows if (r["method"], r["granularity"]) == (method, granularity)]
        for method, name in NAMES.items()
        for granularity in SPARSITIES
    }
    places = {row["requested"] for row in rows}
    for mine in named.values():  # every line over the same places
        missing = places - {row["requested"] for row in mine}
        mine += [{"requested": p, **dict.fromkeys(_PANELS, float("nan"))} for p in missing]
    return named


def _threshold_picture(rows: list[Json], title: str) -> bytes:
    """The Bayesian network's scores against the SNR below which weights, or units, went."""
    panels = {
        f"by {granularity}": [
            row
            for row in rows
            if (row["method"], row["granularity"]) == ("bayesian", granularity)
            and row["requested"]
            and row["threshold_db"] is not None
        ]
        for granularity in SPARSITIES
    }
    return panels_figure(panels, _PANELS, f"{title}, Bayesian", x_label="SNR threshold (dB)", place="threshold_db")


def text_of(rows: list[Json], workers: str, found: Sequence[Found], pictures: dict[str, bytes]) -> str:
    """The study in words, tables and pictures."""
    one = found[0].spec
    names = " and ".join(dict.fromkeys({"vgg16": "VGG-16", "resnet18": "ResNet-18"}[f.spec.network] for f in found))
    parts = [_TEXT.format(networks=names, width=one.width, epochs=one.epochs, batch=one.batch_size, calls=_CALLS)]
    for dataset, network in dict.fromkeys((row["dataset"], row["network"]) for row in rows):
        mine = [r for r in rows if (r["dataset"], r["network"]) == (dataset, network)]
        start = f"{dataset}-{network}"
        captions = {
            start: f"{network}: accuracy, NLL, size and time against sparsity",
            f"{start}-threshold": f"{network}: the same against the SNR threshold",
            f"{start}-layers": f"{network}: SNR of the weights of each layer",
        }
        shown = {name: picture for name, picture in pictures.items() if name in captions}
        parts += [
            f"## {network} on {dataset}",
            table_of(mine),
            _loss_sentence(mine),
            pictures_in("scale", shown, captions),
        ]
    return "\n\n".join(filter(None, [*parts, workers]))


def table_of(rows: list[Json]) -> str:
    """Scores, size and time by kind, granularity and sparsity."""
    keys = {"accuracy": ("accuracy", 4), "log_likelihood": ("log likelihood", 3), "threshold_db": ("threshold, dB", 1)}
    keys |= {"nonzeros": ("nonzero weights", 0), "latency_ms": ("ms, batch 64", 1)}
    lines = []
    for method, name in NAMES.items():
        for granularity in SPARSITIES:
            chosen = [r for r in rows if (r["method"], r["granularity"]) == (method, granularity)]
            for sparsity in sorted({row["requested"] for row in chosen}):
                here = [row for row in chosen if row["requested"] == sparsity]
                values = [([r[key] for r in here if r[key] is not None], digits) for key, (_, digits) in keys.items()]
                cells = [mean_and_spread(v, digits) if v else "" for v, digits in values]
                lines.append([name, granularity, f"{100 * sparsity:g} %", *cells])
    return markdown_table(["", "by", "removed", *(title for title, _ in keys.values())], lines, names=2)


def _loss_sentence(rows: list[Json]) -> str:
    """Accuracy lost at 80 % of the weights, beside the published claim."""
    lost = []
    for method, name in NAMES.items():
        mine = [r for r in rows if (r["method"], r["granularity"]) == (method, "weight")]
        whole, less = ([r["accuracy"] for r in mine if r["requested"] == s] for s in (0.0, 0.8))
        lost.append(f"{name} {100 * (np.mean(whole) - np.mean(less)):.2f}")
    return f"Percentage points of accuracy lost without 80 % of the weights: {', '.join(lost)} (Sharma and Jennings 2020: 7.0 at worst, in percent)."


def workers_text(workers: list[Json], why: str) -> str:
    """Throughput of one worker and of two, or why there is none."""
    if not workers:
        return f"## One worker and two\n\nLeft out: {why}."
    lines = [
        [r["network"], r["layers"], f"{r['one']:.0f}", f"{r['two']:.0f}", f"{r['two'] / r['one']:.2f}"] for r in workers
    ]
    table = markdown_table(["network", "layers", "1 worker", "2 workers", "ratio"], lines, names=2)
    return f"## One worker and two\n\n{_WORKERS.format(batch=_BATCH)}\n\n{table}"
