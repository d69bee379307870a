"""Table 2 of Blundell et al. 2015 (arXiv 1505.05424) again: wide Bayesian networks pruned by SNR, with two priors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.pruning.masks import masks_at_sparsity
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.reports.studies import mean_and_spread, panels_figure
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import scoring
from tfp_bprune.studies.networks import Network, Spec
from tfp_bprune.studies.published import BLUNDELL
from tfp_bprune.studies.scoring import default_scores, mean_rows, outputs
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.types import Json

SPARSITIES = (0.0, 0.5, 0.75, 0.95, 0.98, 0.99)
PRIORS: dict[str, Json] = {
    "mixture": {"kind": "scale_mixture"},
    "normal": {
        "kind": "normal",
        "scale": math.exp(-2),
    },  # the narrowest that the paper searched for the mixture's wide part
}
_SAMPLES = 10
_TEXT = """Two hidden layers of {units} units, ReLU, pruned by |mu| / sigma over all layers together without retraining: test error in
percent, beside table 2 of Blundell et al. 2015 (1200 units, mixture prior, 600 epochs). Ours are {epochs} epochs of Adam at 1e-3 with a
cosine to 0, batch {batch}, a tenth of the training images held out, Flipout in the place of one draw a batch. The mixture is pi = 1/2, sigma 1 and
exp(-6); the normal prior has sigma exp(-2). Neither was searched for. Mean ± standard deviation over seeds where there are several."""


def specs_of(dataset: str, seed: int, settings: Settings) -> dict[str, Spec]:
    """The networks by prior."""
    epochs = settings.epochs or (30 if settings.quick else 100)
    hidden, batch = ((64, 64), 50) if settings.quick else ((1200, 1200), 100)
    return {
        name: Spec(dataset, hidden=hidden, epochs=epochs, batch_size=batch, seed=seed, prior=prior)
        for name, prior in PRIORS.items()
    }


def run(settings: Settings) -> Result:
    """Trains both networks and prunes them."""
    datasets, seeds = settings.datasets_or(("mnist",)), settings.seeds_or(1)
    named = {(d, s, p): spec for d in datasets for s in seeds for p, spec in specs_of(d, s, settings).items()}
    found = gather(settings, list(named.values()), {"sparsities": list(SPARSITIES)})
    rows = [row for place, one in zip(named, found, strict=True) for row in rows_of(place[2], one)]
    pictures = {dataset: _picture(dataset, rows) for dataset in datasets}
    one = found[0].spec
    text = _TEXT.format(units=(one.hidden or (0,))[0], epochs=one.epochs, batch=one.batch_size)
    return Result(
        "Blundell et al. 2015, table 2", text_of(text, rows, datasets, pictures), rows, pictures, networks=found
    )


def measure(network: Network, options: Json) -> Json:
    """Scores at each sparsity on the test split, of the mean and of draws."""
    model, test = network.model, network.data.examples("test")
    rows, scores = mean_rows(model, test.x, test.y, options["sparsities"]), default_scores(model)
    for row in rows:
        pruned = with_masks(model, masks_at_sparsity(scores, row["requested"]))
        said = outputs(pruned, "sampled", test.x, _SAMPLES)["probabilities"]
        row |= {f"sampled_{key}": value for key, value in classification(said, test.y).items()}
    return {"rows": rows}


MEASURED_BY = (scoring,)


def rows_of(prior: str, found: Found) -> list[Json]:
    """The table's rows of one network; `published` is an accuracy."""
    spec = found.spec
    about = {
        "dataset": spec.dataset,
        "network": spec.network,
        "layers": spec.layers,
        "method": prior,
        "seed": spec.seed,
    }
    times = {"epochs": spec.epochs, "seconds": found.seconds, "threads": found.threads}
    known = BLUNDELL if (spec.dataset, prior) == ("mnist", "mixture") else {}
    return [about | row | {"published": known.get(row["requested"])} | times for row in found.measured["rows"]]


def _picture(dataset: str, rows: list[Json]) -> bytes:
    def errors(prior: str, key: str) -> list[Json]:
        mine = [row for row in rows if (row["dataset"], row["method"]) == (dataset, prior) and row.get(key) is not None]
        return [{"requested": row["requested"], "error": 100 * (1 - row[key])} for row in mine]

    series = {"published": errors("mixture", "published")}
    for prior in PRIORS:
        series |= {
            f"{prior} prior": errors(prior, "accuracy"),
            f"{prior} prior, draws": errors(prior, "sampled_accuracy"),
        }
    series = {name: mine for name, mine in series.items() if mine}
    for mine in series.values():  # every line over the same places
        missing = set(SPARSITIES) - {row["requested"] for row in mine}
        mine += [{"requested": sparsity, "error": float("nan")} for sparsity in missing]
    title = f"{dataset}: pruned by SNR"
    return panels_figure(series, {"error": "test error (%)"}, title, width=7.0, logarithmic=("error",))


def text_of(text: str, rows: list[Json], datasets: Sequence[str], pictures: dict[str, bytes]) -> str:
    """The study in words, a table and a picture for each dataset."""
    parts = [text]
    for dataset in datasets:
        mine = [row for row in rows if row["dataset"] == dataset]
        parts += [f"## {dataset}", table_of(mine)]
        parts.append(
            pictures_in("blundell", {dataset: pictures[dataset]}, {dataset: f"{dataset}: test error against sparsity"})
        )
    return "\n\n".join(parts)


def table_of(rows: list[Json]) -> str:
    """Test error in percent by prior and sparsity."""
    lines = []
    if any(row["published"] for row in rows):
        lines.append(
            ["published", *("" if s not in BLUNDELL else f"{100 * (1 - BLUNDELL[s]):.2f}" for s in SPARSITIES)]
        )
    for prior in PRIORS:
        for key, name in (("accuracy", "mean network"), ("sampled_accuracy", f"{_SAMPLES} draws")):
            values = [
                [100 * (1 - r[key]) for r in rows if (r["method"], r["requested"]) == (prior, s)] for s in SPARSITIES
            ]
            lines.append([f"{prior} prior, {name}", *(mean_and_spread(v, 2) for v in values)])
    return markdown_table(["test error (%), removed", *(f"{100 * s:g} %" for s in SPARSITIES)], lines)
