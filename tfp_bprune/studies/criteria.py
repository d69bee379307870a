"""What to rank weights by: nine scores, over all layers and by layer, on the same trained Bayesian networks.

The networks are those of `compression`; a store that both share holds them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune.evaluation.masked import MaskedNetwork
from tfp_bprune.evaluation.metrics import classification
from tfp_bprune.layers import variational_layers
from tfp_bprune.layers.distribution import log_density_at_zero
from tfp_bprune.pruning import prune
from tfp_bprune.pruning.masks import masks_at_sparsity
from tfp_bprune.pruning.scores import magnitude, snr
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.reports.studies import accuracy_figure, mean_and_spread
from tfp_bprune.reports.tables import markdown_table
from tfp_bprune.studies import saliency, scoring
from tfp_bprune.studies.compression import SPARSITIES, specs_of
from tfp_bprune.studies.networks import Network
from tfp_bprune.studies.saliency import elbo_change, kl_of_each, likelihood_slopes, nll_change
from tfp_bprune.studies.scoring import counted
from tfp_bprune.studies.study import Found, Result, Settings, gather, pictures_in
from tfp_bprune.types import Granularity, Json, Scope

NAMES = {
    "snr": "SNR, |mu| / sigma",
    "magnitude": "|mu|",
    "log_q0": "-log q(0)",
    "evidence": "evidence, log p(0) - log q(0)",
    "kl": "KL of the weight",
    "nll": "change of E[NLL]",
    "elbo": "change of the ELBO",
    "nll_size": "size of the change of E[NLL]",
    "obd": "h mu² / 2",
}
SCOPES: tuple[Scope, ...] = ("global", "layer")


def run(settings: Settings) -> Result:
    """Trains what is missing, ranks in every way, prunes and scores."""
    datasets, seeds = settings.datasets_or(("mnist", "fashion_mnist")), settings.seeds_or(3)
    specs = [specs_of(dataset, seed, settings)["bbb"] for seed in seeds for dataset in datasets]
    found = gather(settings, specs, {"sparsities": list(SPARSITIES)})
    rows = [row for one in found for row in rows_of(one)]
    ends = {d: [one.measured["end"] for one in found if one.spec.dataset == d] for d in datasets}
    pictures = {}
    for dataset in datasets:
        for scope in SCOPES:
            chosen = {
                name: [r for r in rows if (r["dataset"], r["scope"], r["method"]) == (dataset, scope, method)]
                for method, name in NAMES.items()
            }
            where = "over all layers" if scope == "global" else "in each layer by itself"
            pictures[f"{dataset}-{scope}"] = accuracy_figure(chosen, f"{dataset}: ranked {where}")
    return Result(
        "What to rank weights by", text_of(rows, datasets, pictures, ends), rows, pictures, {"end": ends}, found
    )


def measure(network: Network, options: Json) -> Json:
    """Scores of the posterior mean on the test split for each criterion, scope and sparsity."""
    mean, test = MaskedNetwork(network.model), network.data.examples("test")
    rows, overlap = [], {}
    scores = all_scores(network, mean)
    for criterion, by_name in scores.items():
        for scope in SCOPES:
            for sparsity in options["sparsities"]:
                masks = masks_at_sparsity(by_name, sparsity, scope)
                found = classification(mean.probabilities(test.x, masks), test.y)
                about = {"method": criterion, "scope": scope, "requested": sparsity}
                rows.append(about | counted(masks, mean) | found)
        overlap[criterion] = agreement(by_name, scores["snr"])
    return {"rows": rows, "overlap": overlap, "end": at_its_end(network, test)}


def at_its_end(network: Network, test: Any) -> Json:
    """What `prune` takes without a sparsity, by weight and by unit, and the test scores before and after."""
    found: Json = {"before": _scored(network.model, test)}
    kinds: tuple[Granularity, ...] = ("weight", "unit")
    for granularity in kinds:
        pruned, report = prune(network.model, granularity=granularity)
        found[granularity] = _scored(pruned, test) | {"sparsity": report.sparsity}
    return found


def _scored(model: Any, test: Any) -> Json:
    masks = {name: w.mask for name, w in prunable_weights(model).items()}
    return dict(classification(MaskedNetwork(model).probabilities(test.x, masks), test.y))


def all_scores(network: Network, mean: MaskedNetwork) -> dict[str, dict[str, np.ndarray]]:
    """Scores of every weight by criterion and tensor name; the lowest go first."""
    train = network.data.examples("train")
    scales = {f"{q.name}/kernel": q.kernel_posterior.scale.numpy() for q in variational_layers(network.model)}
    slopes = likelihood_slopes(mean.network, train.x, train.y, scales)
    scores: dict[str, dict[str, np.ndarray]] = {criterion: {} for criterion in NAMES}
    for layer in variational_layers(network.model):
        name, q = f"{layer.name}/kernel", layer.kernel_posterior
        loc, scale = q.loc.numpy(), q.scale.numpy()
        kl = kl_of_each(loc, scale, layer.prior)
        gradient, curvature = slopes[name]
        scores["snr"][name] = snr(loc, scale)
        scores["magnitude"][name] = magnitude(loc)
        scores["log_q0"][name] = -log_density_at_zero(loc, scale)
        scores["evidence"][name] = q.log_prior_at_zero() - q.log_density_at_zero()
        scores["kl"][name] = kl
        scores["nll"][name] = nll_change(loc, scale, gradient, curvature)
        scores["nll_size"][name] = np.abs(scores["nll"][name])
        scores["obd"][name] = curvature * np.square(loc.astype(np.float64)) / 2
        scores["elbo"][name] = elbo_change(loc, scale, gradient, curvature, kl)
    return scores


def agreement(one: dict[str, np.ndarray], other: dict[str, np.ndarray], sparsity: float = 0.95) -> float:
    """Of the weights that `one` keeps at a sparsity, the part that `other` keeps too."""
    mine, theirs = masks_at_sparsity(one, sparsity), masks_at_sparsity(other, sparsity)
    both = sum(int(np.count_nonzero(mine[name] & theirs[name])) for name in mine)
    return both / max(1, sum(int(np.count_nonzero(mask)) for mask in mine.values()))


MEASURED_BY = (all_scores, agreement, at_its_end, saliency, scoring)


def rows_of(found: Found) -> list[Json]:
    """The table's rows of one network."""
    spec = found.spec
    about = {"dataset": spec.dataset, "network": spec.network, "layers": spec.layers, "seed": spec.seed}
    overlap = found.measured["overlap"]
    return [about | row | {"overlap_with_snr": overlap[row["method"]]} for row in found.measured["rows"]]


def text_of(
    rows: list[Json], datasets: Sequence[str], pictures: dict[str, bytes], ends: dict[str, list[Json]] | None = None
) -> str:
    """The study in words, tables and pictures."""
    parts = [_METHOD]
    for dataset in datasets:
        mine = [row for row in rows if row["dataset"] == dataset]
        captions = {
            f"{dataset}-global": f"{dataset}: accuracy against sparsity by criterion, all layers ranked together"
        }
        captions |= {f"{dataset}-layer": f"{dataset}: the same, each layer by itself"}
        shown = {name: picture for name, picture in pictures.items() if name in captions}
        parts += [f"## {dataset}", *(criterion_table(mine, scope) for scope in SCOPES), best_sentence(mine)]
        parts += [end_sentence(ends[dataset])] if ends else []
        parts.append(pictures_in("criteria", shown, captions))
    return "\n\n".join(parts)


def criterion_table(rows: list[Json], scope: Scope) -> str:
    """Accuracy by criterion and sparsity, and what the criterion has in common with SNR."""
    where = "all layers together" if scope == "global" else "each layer by itself"
    header = [f"removed, {where}", *(f"{100 * s:g} %" for s in SPARSITIES), "kept by SNR too, at 95 %"]
    lines = []
    for method, name in NAMES.items():
        mine = [row for row in rows if (row["method"], row["scope"]) == (method, scope)]
        cells = [mean_and_spread([r["accuracy"] for r in mine if r["requested"] == s]) for s in SPARSITIES]
        lines.append(
            [name.replace("|", "\\|"), *cells, f"{100 * np.mean([r['overlap_with_snr'] for r in mine]):.0f} %"]
        )
    return markdown_table(header, lines)


def best_sentence(rows: list[Json]) -> str:
    """Which criterion and scope has the highest mean accuracy at each sparsity from 90 % on."""
    said = []
    for sparsity in (s for s in SPARSITIES if s >= 0.9):
        means = {
            (m, scope): float(np.mean([r["accuracy"] for r in rows if (r["method"], r["scope"], r["requested"]) == (m, scope, sparsity)]))
            for m in NAMES
            for scope in SCOPES
        }  # fmt: skip
        (method, scope), value = max(means.items(), key=lambda item: item[1])
        said.append(f"{100 * sparsity:g} %: {NAMES[method]} ({scope}) {value:.4f}")
    return "Highest mean accuracy: " + "; ".join(said) + "."


def end_sentence(ends: list[Json]) -> str:
    """What goes without a sparsity, and at which cost."""
    before = mean_and_spread([end["before"]["accuracy"] for end in ends])
    said = [
        f"by {kind} it takes {100 * np.mean([end[kind]['sparsity'] for end in ends]):.1f} % and leaves an accuracy of "
        f"{mean_and_spread([end[kind]['accuracy'] for end in ends])}"
        for kind in ("weight", "unit")
    ]
    return f"Without a sparsity `prune(model)` ends by the evidence: {'; '.join(said)}, of {before} before."


_METHOD = r"""Nine things that a trained weight q(w) = N(mu, sigma²) could be ranked by, on the same networks, the lowest removed first, without
retraining; accuracy of the posterior mean on the test split, mean ± standard deviation over seeds.

- SNR: |mu| / sigma (Blundell et al. 2015, section 5.1; Graves 2011, "Practical variational inference for neural networks").
- |mu| (Han et al. 2015).
- -log q(0) = log sigma + mu² / (2 sigma²) + log(2 pi) / 2: how improbable 0 is. Without log sigma, that is relative to the density
  at its peak, it would be the order of SNR.
- Evidence: log p(0) - log q(0), what the log evidence loses with the weight (Friston and Penny 2011). These networks have one prior, so
  its order is that of -log q(0); what it adds is an end: below 0 the model is better off without the weight.
- KL of the weight: KL(q || p) of its term, E_q[log q(w) - log p(w)], by Gauss-Hermite quadrature.
- Change of E[NLL] when the weight goes: the negative log likelihood L of the training data by Taylor, with a diagonal curvature (LeCun
  et al. 1989, "Optimal brain damage", eq. 4, here with its first-order term, since mu is no minimum of L alone). With q, E[L] =
  L(mu) + h sigma² / 2; without the weight it is L(mu) - g mu + h mu² / 2. The difference is

      -g mu + h (mu² - sigma²) / 2

  g is the derivative of L by the weight, h the diagonal of the Fisher information in the place of the Hessian, both means over draws
  of the network.
- Change of the ELBO: the same less KL(q || p) of the weight, which is saved.
- Size of the change of E[NLL]: its absolute value, so that what helps when it goes is not taken first.
- h mu² / 2: optimal brain damage as published, the curvature alone.

Both changes are of one weight alone while all others stay."""
