"""Units that leave while a network learns: a prior over groups of weights, beside what else makes a network small.

After Louizos et al. 2017 (arXiv 1705.08665), with the rival that such comparisons leave out: a network that has as few units from the
beginning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.evaluation.uncertainty import ood_auroc
from tfp_bprune.exports import export
from tfp_bprune.exports.writing import bytes_of
from tfp_bprune.files.aside import scratch
from tfp_bprune.graphs import compact, strip
from tfp_bprune.graphs.graph import graph_of
from tfp_bprune.layers import kernels_of, kind_of
from tfp_bprune.pruning.prune import prune
from tfp_bprune.reports.studies import mean_and_spread, scatter_figure
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.storage import load_model
from tfp_bprune.studies import scoring
from tfp_bprune.studies.networks import Network, Spec, start_of
from tfp_bprune.studies.scoring import outputs
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.studies.uncertainty import strangers
from tfp_bprune.types import Format, Json, Layers, Predictive

METHODS = {
    "mixture": "scale mixture, units cut afterwards",
    "ard": "ARD, units leave while training",
    "normal_jeffreys": "normal-Jeffreys, units leave while training",
    "horseshoe": "horseshoe, units leave while training",
    "plain": "plain, units cut by magnitude while training",
    "scratch": "plain, as small as ARD's from the beginning",
}
SPARSITIES = {"lenet300": 0.95, "lenet5": 0.9, "mlp": 0.9}  # of the multiplications
LAYERS: dict[str, Layers] = {"lenet300": "local", "lenet5": "reparameterization", "mlp": "local"}
KL_WEIGHT = 0.1
BATCHES = (1, 32, 256)
DRAWS = 10
TIMED_BY = ("dataset", "network", "seed", "method", "cut")
FORMS: tuple[tuple[Format, Predictive], ...] = (("savedmodel", "mean"), ("savedmodel", "moments"), ("litert", "mean"))
_ENDS: Json = {"task": "classification", "from_logits": True}
_TEXT = """Networks that lose whole units: Bayesian ones with a prior over the weights of a unit, groups by input and by output (ARD, units
going by their evidence; normal-Jeffreys and horseshoe, by log alpha); Bayesian ones with the scale mixture, cut after training by their SNR;
plain ones, by magnitude (norm); and plain ones that had as few units as ARD's from the beginning. {epochs} epochs each, Adam at 1e-3 with a
cosine to 0, batch 100, a tenth of the KL. Units, and inputs of dense layers, go between a tenth and half of the training, until {sparsities}
of the multiplications are gone, and what is left is trained on; networks shrink meanwhile (`Shrink`). A tenth of the training images
is held out; scores are of the test split. Strange images for the OOD AUROC: fashion_mnist for mnist and the other way round, else noise and
images turned by a quarter. Milliseconds are medians of exports of the first seed's networks and of the whole network, all in turns in
one fresh process, with nothing else at work."""


def specs_of(dataset: str, network: str, seed: int, settings: Settings) -> dict[str, Spec]:
    """The networks by method, but for the one whose size follows from another."""
    epochs = settings.epochs or (20 if settings.quick else 30)
    sizes: Json = {"hidden": (64, 64)} if settings.quick else {}
    common = Spec(dataset, network, epochs=epochs, seed=seed, layers=LAYERS[network], kl_weight=KL_WEIGHT, **sizes)
    pruned = replace(common, sparsity=SPARSITIES[network])
    found = {"mixture": common}
    found["ard"] = replace(pruned, prior={"kind": "ard"}, units="evidence")
    for kind in () if settings.quick else ("normal_jeffreys", "horseshoe"):
        found[kind] = replace(pruned, prior={"kind": kind}, units="log_alpha")
    plain = replace(pruned, layers="deterministic", kl_weight=1.0, units="magnitude")
    return found | {"plain": plain}


def of_size(spec: Spec, units: Sequence[int]) -> Spec:
    """A plain network that has so many units from the beginning."""
    start = replace(spec, layers="deterministic", kl_weight=1.0, prior=None, units=None, sparsity=None)
    return replace(start, hidden=tuple(units)) if spec.network == "mlp" else replace(start, sizes=tuple(units))


def run(settings: Settings) -> Result:
    """Trains, cuts, exports and measures."""
    datasets, seeds = settings.datasets_or(("mnist", "fashion_mnist")), settings.seeds_or(3)
    networks = settings.models_or(("mlp",) if settings.quick else ("lenet300", "lenet5", "mlp"))
    places = [(d, n, s) for s in seeds for d in datasets for n in networks]
    named = {(p, m): spec for p in places for m, spec in specs_of(*p, settings).items()}
    options = {"examples": 500 if settings.quick else 10000}
    found = dict(zip(named, gather(settings, list(named.values()), options), strict=True))
    small = {
        (p, "scratch"): of_size(found[p, "ard"].spec, found[p, "ard"].measured["rows"][-1]["units"]) for p in places
    }
    found |= dict(zip(small, gather(settings, list(small.values()), options), strict=True))
    rows = [row for (_, method), one in found.items() for row in rows_of(method, one)]
    timed = _timed(settings, found, [p for p in places if p[2] == seeds[0]])
    rows = [row | timed.get(tuple(row[key] for key in TIMED_BY), {}) for row in rows]
    pictures = {f"{d}-{n}": _picture(d, n, rows) for d in datasets for n in networks}
    epochs = next(iter(found.values())).spec.epochs
    text = _TEXT.format(epochs=epochs, sparsities=", ".join(f"{100 * SPARSITIES[n]:g} % ({n})" for n in networks))
    return Result("Units that leave", text_of(text, rows, pictures), rows, pictures, networks=list(found.values()))


def measure(network: Network, options: Json) -> Json:
    """A row of the network as it was trained, and, where nothing was cut in training, one of it without units.

    Or, where `options` name networks to time, milliseconds and bytes of all of them.
    """
    if "time" in options:
        return {"rows": _times(network, options["time"])}
    return {
        "rows": [{"cut": cut, **_row(network, model, options)} for cut, model in _cuts(network.model, network.spec)]
    }


def _cuts(model: Any, spec: Spec) -> list[tuple[float, Any]]:
    """The network, and where units are cut afterwards the network without them: each with what part is gone."""
    whole = [(spec.sparsity or 0.0, model)]
    if not spec.bayesian or spec.sparsity is not None:
        return whole
    cut = SPARSITIES[spec.network]
    return [*whole, (cut, prune(model, sparsity=cut, granularity="unit", inputs=True, counts="multiplications")[0])]


def _row(network: Network, model: Any, options: Json) -> Json:
    test = network.data.examples("test")
    x, y = test.x[: options["examples"]], test.y[: options["examples"]]
    strange = np.concatenate(list(strangers(network.data.info, x, network.data_dir).values()))
    row: Json = shape_of(model)
    ways: tuple[Predictive, ...] = ("mean", "moments") if network.spec.bayesian else ("mean",)
    for way in ways:
        inside, outside = (outputs(model, way, images, 1) for images in (x, strange))
        scores = dict(classification(inside["probabilities"], y))
        scores["ood_auroc"] = ood_auroc(inside["entropy"], outside["entropy"])
        row |= scores if way == "mean" else {f"{way}_{key}": value for key, value in scores.items()}
    with scratch() as folder:
        export(model, folder / "export", predictive="mean", **_ENDS)
        return row | {"bytes": bytes_of(folder / "export")}


def shape_of(model: Any) -> Json:
    """Units of each layer but the last, inputs that each layer reads, and multiplications of an example."""
    small = compact(strip(model))
    graph = graph_of(small)
    assert graph is not None
    units, reads, products = [], [], 0
    for step in graph.steps:
        kind = kind_of(step.layer)
        for name, weights in (kernels_of(step.layer) if kind else {}).items():
            axes, left = kind.axes(name), weights.mask  # type: ignore[union-attr]
            read = np.ones(1, bool) if axes.read is None else left.any(_others(left, axes.read))
            units.append(left.shape[-1])
            reads.append(int(read.sum()))
            products += left.size // len(read) * int(read.sum()) * math.prod(size or 1 for size in step.shape[1:-1])
    return {"units": units[:-1], "reads": reads, "mflops": 2e-6 * products}


def _others(array: np.ndarray, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(array.ndim) if a != axis % array.ndim)


def _times(network: Network, methods: Mapping[str, Json]) -> list[Json]:
    """Bytes and milliseconds of exports, all in one fresh process in turns: the whole network's, dense, and a row a model.

    Args:
      network: whose size is that of the whole network.
      methods: specs of the networks, by method.
    """
    whole = start_of(network.spec, network.data, network.store)  # as large as all were: values do not matter to times
    wanted: list[tuple[int, Any, Format, Predictive, str]] = []
    rows: list[Json] = []
    for method, stored in methods.items():
        spec = Spec.from_json(stored)
        for cut, model in _cuts(load_model(network.store / spec.key).model, spec):
            forms = [(form, way) for form, way in FORMS if spec.bayesian or way == "mean"]
            wanted += [(len(rows), model, form, way, f"{form}_{way}") for form, way in forms]
            rows.append({"method": method, "cut": cut})
    dense = [*FORMS, ("savedmodel", "sampled")]
    wanted += [(-1, whole, form, way, f"dense_{form}_{way}") for form, way in dense]
    common: Json = {}
    with scratch() as folder:
        places = [folder / str(number) for number in range(len(wanted))]
        for (_, model, form, way, _), place in zip(wanted, places, strict=True):
            kernels: Json = {"kernels": "dense"} if model is whole else {}
            export(model, place, format=form, predictive=way, samples=DRAWS, **_ENDS, **kernels)
        x = network.data.examples("test").x[: max(BATCHES)]
        for (row, _, _, _, name), place, one in zip(
            wanted, places, reload(places, x, batches=BATCHES, trust=True), strict=True
        ):
            found = common if row < 0 else rows[row]
            found[f"{name}_bytes"] = bytes_of(place)
            found |= {f"{name}_ms_{batch}": one.latency_ms[str(batch)]["median"] for batch in BATCHES}
    return [row | common for row in rows]


def _timed(settings: Settings, found: Mapping[Any, Found], places: Sequence[Any]) -> dict[Any, Json]:
    """Times of the networks of these places, by `TIMED_BY`: measured with nothing else at work, so one after the other."""
    alone = replace(settings, jobs=min(1, settings.jobs))
    timed: dict[Any, Json] = {}
    for place in places:
        mine = {method: one.spec for (where, method), one in found.items() if where == place}
        options = {"time": {method: spec.to_json() for method, spec in mine.items()}}
        for row in gather(alone, [mine["mixture"]], options)[0].measured["rows"]:
            timed[(*place, row["method"], row["cut"])] = row
    return timed


MEASURED_BY = (scoring, shape_of, _cuts, _row, _times)


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
    times = {"epochs": spec.epochs, "seconds": found.seconds, "threads": found.threads}
    return [about | row | times for row in found.measured["rows"]]


def _picture(dataset: str, network: str, rows: list[Json]) -> bytes:
    """Test error against multiplications, a mark a network."""
    mine = [row for row in rows if (row["dataset"], row["network"]) == (dataset, network)]
    marks = {
        name: [(row["mflops"], 100 * (1 - row["accuracy"])) for row in mine if row["method"] == method]
        for method, name in METHODS.items()
    }
    return scatter_figure(marks, ("MFLOPs an example", "test error (%)"), f"{network} on {dataset}")


def text_of(text: str, rows: list[Json], pictures: dict[str, bytes]) -> str:
    """The study in words, tables and pictures."""
    parts = [text]
    for dataset, network in dict.fromkeys((row["dataset"], row["network"]) for row in rows):
        mine = [row for row in rows if (row["dataset"], row["network"]) == (dataset, network)]
        key = f"{dataset}-{network}"
        parts += [f"## {network} on {dataset}", table_of(mine), times_of(mine)]
        parts.append(pictures_in("units", {key: pictures[key]}, {key: f"{key}: test error against multiplications"}))
    return "\n\n".join(parts)


def _groups(rows: list[Json]) -> list[tuple[str, list[Json]]]:
    found = []
    for method, name in METHODS.items():
        mine = [row for row in rows if row["method"] == method]
        for cut in sorted({row["cut"] for row in mine}):
            whole = " (whole)" if method == "mixture" and not cut else ""
            found.append((name + whole, [row for row in mine if row["cut"] == cut]))
    return found


def table_of(rows: list[Json]) -> str:
    """Sizes and scores by method; those by moments behind those of the mean."""
    columns = {"mflops": ("MFLOPs", 3), "bytes": ("bytes", 0), "nll": ("NLL", 4), "ece": ("ECE", 4)}
    columns |= {"ood_auroc": ("OOD AUROC", 3), "moments_nll": ("NLL, moments", 4), "moments_ece": ("ECE, moments", 4)}
    columns |= {"moments_ood_auroc": ("OOD AUROC, moments", 3)}
    lines = []
    for name, mine in _groups(rows):
        first = mine[0]
        size = "-".join(map(str, (first["reads"][0], *first["units"])))
        error = mean_and_spread([100 * (1 - row["accuracy"]) for row in mine], 2)
        cells = [
            mean_and_spread([row[key] for row in mine], digits) if key in first else ""
            for key, (_, digits) in columns.items()
        ]
        lines.append([name, size, error, *cells])
    return markdown_table(
        ["", "inputs and units, seed 0", "error (%)", *(t for t, _ in columns.values())], lines, names=2
    )


def times_of(rows: list[Json]) -> str:
    """Milliseconds by form and batch, with how many times as fast as the dense whole network that is."""
    kinds = [("savedmodel_mean", "dense_savedmodel_mean", "SavedModel"), ("litert_mean", "dense_litert_mean", "LiteRT")]
    kinds.append(("savedmodel_moments", "dense_savedmodel_sampled", "moments (against ten draws)"))
    lines = []
    for name, mine in _groups([row for row in rows if "litert_mean_ms_1" in row]):
        cells = []
        for key, other, _ in kinds:
            for batch in BATCHES:
                both = [(r[f"{key}_ms_{batch}"], r[f"{other}_ms_{batch}"]) for r in mine if f"{key}_ms_{batch}" in r]
                took, whole = np.mean(both, axis=0) if both else (math.nan, math.nan)
                ratio = f" ({whole / took:.1f}x)" if mine[0]["method"] != "scratch" else ""  # which was never larger
                cells.append(f"{took:.3f}{ratio}" if both else "")
        lines.append([name, *cells])
    header = [f"{title}, {batch}" for _, _, title in kinds for batch in BATCHES]
    return "Milliseconds a batch, and how many times as fast as the whole network, dense:\n\n" + markdown_table(
        ["", *header], lines
    )
