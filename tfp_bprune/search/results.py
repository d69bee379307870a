"""What a search hands over: exports of the networks it found, measured on the test split, and one JSON object."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tfp_bprune.data import Split, Splits
from tfp_bprune.evaluate.fresh import reload
from tfp_bprune.evaluate.metrics import of_outputs
from tfp_bprune.evaluate.sweep import BATCHES, machine
from tfp_bprune.export import export
from tfp_bprune.models.convert import adopt
from tfp_bprune.prune.prune import with_masks
from tfp_bprune.prune.select import default_criterion
from tfp_bprune.runs import finite, read_json, write_json
from tfp_bprune.search.budget import Pair, auroc
from tfp_bprune.search.claim import Claim
from tfp_bprune.search.ranking import Ranking, by_score
from tfp_bprune.search.trial import Answers
from tfp_bprune.search.within import SCORES_FILE, Found, Settings, read_scores
from tfp_bprune.types import BpruneError, ExportError, Json

RESULT_FILE = "search.json"


def write_results(
    found: Found, model: Any, data: Splits, out: Path, settings: Settings, strange: Split | None, facts: Json
) -> Json:
    """Exports both claims into `out/exports`, measures them on the test split and writes `out/search.json`.

    Args:
      facts: further entries of the exports' manifests; those that are not objects go into the result.

    Returns:
      The shared keys of the network found (accuracy, nll, ece, sparsity, nonzeros, parameters, bytes, latency_ms, ...);
      `global`, the same for the best single threshold; `claim` and `test` of each; `front`; `sentence`; `speed`.
    """
    exports = out / "exports"
    shutil.rmtree(exports, ignore_errors=True)
    test = data.examples("test")
    scalars = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    rows = {}
    for name, claim, on_test in (("layers", found.layers, found.test), ("global", found.single, found.single_test)):
        pruned = with_masks(model, found.masks(claim.ranking, claim.counts))
        measured = _measured(pruned, exports / name, test, strange, facts)
        rows[name] = {
            **scalars,
            "method": f"{name}, order by {claim.ranking}",
            **measured,
            **_claimed(claim),
            "test": on_test,
        }
    result: Json = rows["layers"] | {
        "global": rows["global"],
        "target": settings.target,
        "budget": finite(vars(settings.budget)),
        "search_seed": settings.seed,
        "order": settings.order,
        "front": found.front,
        "speed": found.speed,
        "machine": machine(),
    }
    result["sentence"] = sentence(result)
    write_json(out / RESULT_FILE, result)
    return finite(result)


def _claimed(claim: Claim) -> Json:
    return {
        "layers": claim.counts,
        "claim": {"holds": claim.holds, "looks": claim.looks, **claim.evidence},
    }


def _measured(pruned: Any, place: Path, test: Split, strange: Split | None, facts: Json) -> Json:
    """Scores, bytes and latency of the exported mean network, and the epistemic uncertainty of the distribution.

    `ood_auroc` is of test examples against all that there are of the other dataset, those that led the search among them.
    """
    manifest = export(pruned, place / "mean", facts=facts)
    [mean] = reload([place / "mean"], test.x, BATCHES)
    found: Json = {key: manifest[key] for key in ("sparsity", "nonzeros", "parameters", "prunable", "bytes")}
    found |= of_outputs(mean.outputs, test.y)
    found["latency_ms"] = {batch: times["median"] for batch, times in mean.latency_ms.items()}
    if default_criterion(pruned) == "snr":
        found["epistemic"] = _epistemic(pruned, place / "uncertain", test, facts)
    if strange is not None:
        [outside] = reload([place / "mean"], strange.x)
        inside = Answers(mean.outputs["probabilities"], test.y)
        found["ood_auroc"] = auroc(Pair(inside, inside, Answers(outside.outputs["probabilities"], strange.y)))
    return found | {"export": str(place / "mean")}


def _epistemic(pruned: Any, place: Path, test: Split, facts: Json) -> float:
    try:
        export(pruned, place, "moments", facts=facts)
    except ExportError:  # a layer that moments cannot pass
        export(pruned, place, "sampled", 10, facts=facts)
    [uncertain] = reload([place], test.x)
    return float(uncertain.outputs["epistemic"].mean())


def sentence(result: Json) -> str:
    """What was found, for a person to act on."""
    test, claim = result["test"], result["claim"]
    tested = (
        f"test {result['accuracy']:.4f} against {test['unpruned_accuracy']:.4f}, difference {-100 * test['accuracy_drop']:+.2f} points, "
        f"95 % interval [{-100 * test['interval'][1]:+.2f}, {-100 * test['interval'][0]:+.2f}], {test['examples']:,} examples"
    )
    left = f"{result['nonzeros']:,} of {result['prunable']:,} left"
    if not claim["holds"]:
        return f"The budget cannot be met: {_nearest(claim)} with all weights that there are ({left}); {tested}."
    beside = _beside(result)
    level = 100 * result["budget"]["level"]
    return (
        f"Removing {100 * result['sparsity']:.2f} % of the weights ({left}, {beside}) "
        f"{_promise(claim)} (shown at {level:g} % confidence on validation examples that were not searched on): {tested}."
    )


def _beside(result: Json) -> str:
    single = result["global"]
    if not single["claim"]["holds"]:
        return "one threshold for all layers could not be shown to be within the budget"
    fewer = 1 - result["nonzeros"] / single["nonzeros"]
    if fewer <= 0:
        return "no fewer than one threshold for all layers within the budget"
    return f"{100 * fewer:.0f} % fewer than one threshold for all layers within the budget"


def _promise(claim: Json) -> str:
    says = {
        "accuracy_drop": lambda c: f"costs at most {100 * c['limit']:g} points of accuracy",
        "ece_increase": lambda c: f"raises the calibration error by at most {c['limit']:g}",
        "ood_auroc": lambda c: f"tells the other dataset with an AUROC of at least {c['limit']:g}",
    }
    return " and ".join(says[name](condition) for name, condition in claim["conditions"].items())


def _nearest(claim: Json) -> str:
    says = {
        "accuracy_drop": lambda c: (
            f"at most {100 * c['bound']:.2f} points of accuracy lost can be shown on {c['examples']:,} validation examples, "
            f"asked were {100 * c['limit']:g}"
        ),
        "ece_increase": lambda c: f"of calibration error at most {c['bound']:.4f} more, asked was {c['limit']:g}",
        "ood_auroc": lambda c: f"an AUROC of {c['estimate']:.4f} (at least {c['bound']:.4f}), asked was {c['limit']:g}",
    }
    return " and ".join(says[name](condition) for name, condition in claim["conditions"].items())


def point_of(out: Path, number: int) -> Json:
    """Point `number` of the front of a finished search in `out`.

    Raises:
      BpruneError: there is none of that number.
      RunError: `out` holds no finished search.
    """
    front = read_json(out / RESULT_FILE).get("front", [])
    for row in front:
        if row["point"] == number:
            return row
    raise BpruneError(
        f"the front in {out / RESULT_FILE} has no point {number}: expected a number from 1 to {len(front)}"
    )


def network_at(model: Any, out: Path, row: Json, settings: Json) -> Any:
    """The pruned network of a trial in the search of `out`."""
    model = adopt(model)
    score = by_score(model, settings.get("criterion") or default_criterion(model))
    ranking = score if row["ranking"] == "score" else Ranking(read_scores(out / SCORES_FILE, score.scores))
    return with_masks(model, ranking.masks(row["counts"]))
