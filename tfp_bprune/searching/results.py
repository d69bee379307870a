"""What a search hands over: exports of the networks it found, measured on the test split, and one JSON object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune.claims.sentence import sentence
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import as_served, of_outputs
from tfp_bprune.evaluation.sweep import BATCHES, machine
from tfp_bprune.evaluation.uncertainty import ood_auroc
from tfp_bprune.exports import export
from tfp_bprune.files.runs import finite, write_json
from tfp_bprune.files.schemas import COUNT, listing, record
from tfp_bprune.files.writing import beside, put_in_place
from tfp_bprune.graphs.convert import adopt
from tfp_bprune.prediction.grids import storage_of
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.pruning.scoring import Scoring, default_criterion
from tfp_bprune.searching.claim import Claim
from tfp_bprune.searching.find import TRIALS_FILE, Found, Settings, settings_for
from tfp_bprune.searching.samples import others_parted
from tfp_bprune.trials.log import TrialLog, read_sealed
from tfp_bprune.trials.ranking import SCORES_FILE, read_scores
from tfp_bprune.trials.trial import Bits
from tfp_bprune.trials.units import ranked
from tfp_bprune.types import BpruneError, ExportError, Json, Precision, RunError

RESULT_FILE, EXPORTS = "search.json", "exports"
_FRONT = record(("front",), front=listing(record(("point", "trial"), point=COUNT, trial=COUNT)))


def write_results(
    found: Found,
    model: Any,
    data: Splits,
    out: str | os.PathLike[str],
    settings: Settings,
    strange: Split | None,
    facts: Json,
) -> Json:
    """Exports both claims into `out/exports`, measures them on the test split and writes `out/search.json`.

    Args:
      facts: further entries of the exports' manifests; those that are not objects go into the result.

    Returns:
      The shared keys of the network found (accuracy, nll, ece, sparsity, nonzeros, parameters, bytes, latency_ms, ...);
      `global`, the same for the best single threshold; of each `claim`, `test` and `of_unpruned`, the target's part of the
      unpruned network's by the model of sizes that the search went by; `front`; `sentence`; `speed`.
    """
    out, settings = Path(out), settings_for(model, data, settings)
    test, odd = data.examples("test"), others_parted(strange)[2] if strange else None
    scalars = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    rows = {}
    with beside(out / EXPORTS) as fresh:
        for name, claim, on_test in (("layers", found.layers, found.test), ("global", found.single, found.single_test)):
            order = found.rankings[claim.ranking]
            pruned = with_masks(model, order.masks(claim.counts))
            measured = _measured(pruned, fresh / name, test, odd, facts, claim.bits)
            rows[name] = {
                **scalars,
                "method": f"{name}, order by {claim.ranking}",
                **measured,
                **_claimed(claim),
                "export": str(out / EXPORTS / name / "mean"),
                "test": on_test,
                "of_unpruned": found.sizes.of(claim.counts, order, claim.bits)[settings.target]
                / found.sizes.of(order.left, order)[settings.target],
            }
        # The result must not name exports that are gone.
        put_in_place(fresh, out / EXPORTS, lambda: (out / RESULT_FILE).unlink(missing_ok=True))
    result: Json = rows["layers"] | {
        "global": rows["global"],
        "target": settings.target,
        "budget": finite(vars(settings.budget)),
        "search_seed": settings.seed,
        "order": settings.order,
        "granularity": settings.granularity,
        "front": found.front,
        "speed": found.speed,
        "machine": machine(),
    }
    result["sentence"] = sentence(result)
    write_json(out / RESULT_FILE, result, seal=True)
    return finite(result)


def _claimed(claim: Claim) -> Json:
    return {
        "layers": claim.counts,
        **({"bits": dict(claim.bits)} if claim.bits else {}),
        "claim": {"holds": claim.holds, "looks": claim.looks, **claim.evidence},
    }


def precision_of(bits: Bits) -> dict[str, Precision] | None:
    """The `precision` of an export of a network whose layers have so many bits."""
    return {name: storage_of(number) for name, number in bits.items()} or None


def _measured(pruned: Any, place: Path, test: Split, strange: Split | None, facts: Json, bits: Bits) -> Json:
    """Scores, bytes and latency of the exported mean network, and the epistemic uncertainty of the distribution, of a
    regression the standard deviation by its weights.

    `ood_auroc` is of test examples against those of the other dataset that neither led the search nor proved anything.
    """
    manifest = export(pruned, place / "mean", facts=facts, precision=precision_of(bits))
    test = as_served(test, manifest)
    [mean] = reload([place / "mean"], test.x, batches=BATCHES, trust=True)
    found: Json = {key: manifest[key] for key in ("sparsity", "nonzeros", "parameters", "prunable", "bytes")}
    found |= of_outputs(mean.outputs, test.y)
    found["latency_ms"] = {batch: times["median"] for batch, times in mean.latency_ms.items()}
    if default_criterion(pruned) == "snr":
        found["epistemic"] = _epistemic(pruned, place / "uncertain", test, facts)
    if strange is not None:
        [outside] = reload([place / "mean"], as_served(Split("", strange.x, test.y), manifest).x, trust=True)
        found["ood_auroc"] = ood_auroc(*(_summed(one.outputs["entropy"]) for one in (mean, outside)))
    return found


def _summed(entropy: np.ndarray) -> np.ndarray:
    """Over the labels, pixels or steps of each example."""
    return entropy.reshape(len(entropy), -1).sum(1)


def _epistemic(pruned: Any, place: Path, test: Split, facts: Json) -> float:
    try:
        export(pruned, place, predictive="moments", facts=facts)
    except ExportError:  # a layer that moments cannot pass
        export(pruned, place, predictive="sampled", samples=10, facts=facts)
    [uncertain] = reload([place], test.x, trust=True)
    known = uncertain.outputs
    return float(known["epistemic" if "epistemic" in known else "weights_std"].mean())


def point_of(out: Path, number: int) -> Json:
    """Point `number` of the front of a finished search in `out`, its counts from the log of trials, which is checked.

    Raises:
      BpruneError: there is none of that number.
      RunError: `out` holds no finished search, or a damaged one.
    """
    path = out / RESULT_FILE
    if not path.exists():
        raise RunError(f"{out} holds no finished search: run tfp-bprune search first, or name its folder with --out")
    front, log = read_sealed(path, _FRONT)["front"], TrialLog(out / TRIALS_FILE)
    trials = {row["point"]: row["trial"] for row in front}
    if number not in trials:
        raise BpruneError(f"the front in {path} has no point {number}: expected a number from 1 to {len(trials)}")
    if trials[number] >= len(log.rows):
        raise RunError(f"{log.path} has no trial {trials[number]}: repeat the search to write it anew")
    return log.trial(trials[number]) | {"point": number}


def network_at(model: Any, out: Path, row: Json, settings: Json) -> Any:
    """The pruned network of a trial in the search of `out`.

    Raises:
      RunError: the trial or the order that it goes by is damaged.
    """
    model = adopt(model)
    scoring = Scoring(settings.get("criterion"), granularity=settings.get("granularity", "weight")).of(model)
    ranking = ranked(model, scoring.by, scoring.granularity)
    if row["ranking"] != "score":
        shapes = {name: scores.shape for name, scores in ranking.scores.items()}
        ranking = ranking.with_scores(read_scores(out / SCORES_FILE, shapes))
    ranking.check(row["counts"])
    return with_masks(model, ranking.masks(row["counts"]))
