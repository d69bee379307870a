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
from tfp_bprune.search import bounds
from tfp_bprune.search.budget import Pair, auroc
from tfp_bprune.search.claim import Claim
from tfp_bprune.search.log import TrialLog
from tfp_bprune.search.ranking import Ranking, by_score
from tfp_bprune.search.size import Sizes
from tfp_bprune.search.trial import Answers
from tfp_bprune.search.within import SCORES_FILE, TRIALS_FILE, Found, Settings, others_parted, read_scores
from tfp_bprune.types import BpruneError, ExportError, Json, RunError

RESULT_FILE, EXPORTS = "search.json", "exports"


def write_results(
    found: Found, model: Any, data: Splits, out: Path, settings: Settings, strange: Split | None, facts: Json
) -> Json:
    """Exports both claims into `out/exports`, measures them on the test split and writes `out/search.json`.

    Args:
      facts: further entries of the exports' manifests; those that are not objects go into the result.

    Returns:
      The shared keys of the network found (accuracy, nll, ece, sparsity, nonzeros, parameters, bytes, latency_ms, ...);
      `global`, the same for the best single threshold; of each `claim`, `test` and `of_unpruned`, the target's part of the
      unpruned network's by the model of sizes that the search went by; `front`; `sentence`; `speed`.
    """
    fresh = out / ".exports"
    shutil.rmtree(fresh, ignore_errors=True)
    test, odd = data.examples("test"), others_parted(strange)[2] if strange else None
    sizes = Sizes(found.evaluator)
    scalars = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    rows = {}
    for name, claim, on_test in (("layers", found.layers, found.test), ("global", found.single, found.single_test)):
        pruned = with_masks(model, found.masks(claim.ranking, claim.counts))
        measured = _measured(pruned, fresh / name, test, odd, facts)
        rows[name] = {
            **scalars,
            "method": f"{name}, order by {claim.ranking}",
            **measured,
            **_claimed(claim),
            "export": str(out / EXPORTS / name / "mean"),
            "test": on_test,
            "of_unpruned": sizes.of(claim.counts)[settings.target]
            / sizes.of(found.rankings["score"].left)[settings.target],
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
    shutil.rmtree(out / EXPORTS, ignore_errors=True)
    fresh.rename(out / EXPORTS)
    write_json(out / RESULT_FILE, result)
    return finite(result)


def _claimed(claim: Claim) -> Json:
    return {
        "layers": claim.counts,
        "claim": {"holds": claim.holds, "looks": claim.looks, **claim.evidence},
    }


def _measured(pruned: Any, place: Path, test: Split, strange: Split | None, facts: Json) -> Json:
    """Scores, bytes and latency of the exported mean network, and the epistemic uncertainty of the distribution.

    `ood_auroc` is of test examples against those of the other dataset that neither led the search nor proved anything.
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
    return found


def _epistemic(pruned: Any, place: Path, test: Split, facts: Json) -> float:
    try:
        export(pruned, place, "moments", facts=facts)
    except ExportError:  # a layer that moments cannot pass
        export(pruned, place, "sampled", 10, facts=facts)
    [uncertain] = reload([place], test.x)
    return float(uncertain.outputs["epistemic"].mean())


def sentence(result: Json) -> str:
    """What was found, for a person to act on."""
    claim, left = result["claim"], f"{result['nonzeros']:,} of {result['prunable']:,} left"
    if not claim["holds"]:
        return (
            f"No pruned network can be shown to meet the budget: {_out_of_reach(result)}; nothing was removed ({left})."
        )
    return (
        f"Removing {100 * result['sparsity']:.2f} % of the weights ({left}, {_beside(result)}{_smaller(result)}) "
        f"{_promise(claim)} (shown for the mean network, at {100 * result['budget']['level']:g} % confidence, on validation "
        f"examples that were not searched on): {_tested(result)}."
    )


def _tested(result: Json) -> str:
    """The test split's figures, each with its uncertainty."""
    test = result["test"]
    said = [
        f"test {result['accuracy']:.4f} against {test['unpruned_accuracy']:.4f}, difference {-100 * test['accuracy_drop']:+.2f} points, "
        f"95 % interval [{-100 * test['interval'][1]:+.2f}, {-100 * test['interval'][0]:+.2f}], {test['examples']:,} examples"
    ]
    says = {
        "ece_increase": lambda c: f"calibration error {c['estimate']:+.4f}, at most {c['bound']:+.4f}",
        "ood_auroc": lambda c: f"AUROC {c['estimate']:.4f}, at least {c['bound']:.4f}",
    }
    return "; ".join([*said, *(says[name](condition) for name, condition in test["conditions"].items())])


def _beside(result: Json) -> str:
    single = result["global"]
    if not single["claim"]["holds"]:
        return "one threshold for all layers could not be shown to be within the budget"
    fewer = 1 - result["nonzeros"] / single["nonzeros"]
    if fewer < 0:
        return f"more than the {single['nonzeros']:,} that one threshold for all layers could be shown with, exports/global"
    return f"{100 * fewer:.0f} % fewer than one threshold for all layers within the budget"


def _smaller(result: Json) -> str:
    """How much of the target is left, where that is not the number of weights."""
    if result["target"] == "nonzeros":
        return ""
    part = 100 * result["of_unpruned"]
    what = {"bytes": "bytes", "latency": "latency by the cost model"}[result["target"]]
    return f"; {what}: {part:.0f} % of the unpruned network's" + (", nothing gained" if part > 99 else "")


def _promise(claim: Json) -> str:
    says = {
        "accuracy_drop": lambda c: f"costs at most {100 * c['limit']:g} points of accuracy",
        "ece_increase": lambda c: f"raises the calibration error by at most {c['limit']:g}",
        "ood_auroc": lambda c: f"tells the other dataset with an AUROC of at least {c['limit']:g}",
    }
    return " and ".join(says[name](condition) for name, condition in claim["conditions"].items())


def _out_of_reach(result: Json) -> str:
    """Why not, and what to do: the best that so many examples can show, here of the unpruned network itself."""
    claim = result["claim"]
    says = {"accuracy_drop": _accuracy_out_of_reach, "ece_increase": _ece_out_of_reach, "ood_auroc": _area_out_of_reach}
    missed = {k: c for k, c in claim["conditions"].items() if c["p_value"] > 1 - claim["level"]}
    return " and ".join(
        says[name](condition, claim["level"]) for name, condition in (missed or claim["conditions"]).items()
    )


def _accuracy_out_of_reach(condition: Json, level: float) -> str:
    limit, needed = condition["limit"], bounds.enough(condition["limit"], 1 - level)
    advice = (
        f"{needed:,} are needed for {100 * limit:g}, train with a larger --validation-fraction"
        if needed
        else "a drop of 0 can be shown of no other network, allow some"
    )
    return (
        f"{condition['examples']:,} validation examples kept aside can show a loss of at most {100 * condition['bound']:.2f} "
        f"points of accuracy at best ({advice})"
    )


def _ece_out_of_reach(condition: Json, level: float) -> str:
    return (
        f"{condition['examples']:,} validation examples kept aside can show at best that the calibration error grows by at most "
        f"{condition['bound']:.4f}, asked was {condition['limit']:g}"
    )


def _area_out_of_reach(condition: Json, level: float) -> str:
    return (
        f"with all weights the AUROC is {condition['estimate']:.4f} (at least {condition['bound']:.4f} on "
        f"{condition['examples']:,} examples), asked was {condition['limit']:g}"
    )


def point_of(out: Path, number: int) -> Json:
    """Point `number` of the front of a finished search in `out`, its counts from the log of trials, which is checked.

    Raises:
      BpruneError: there is none of that number.
      RunError: `out` holds no finished search, or a damaged one.
    """
    path = out / RESULT_FILE
    if not path.exists():
        raise RunError(f"{out} holds no finished search: run tfp-bprune search first, or name its folder with --out")
    stored, rows = read_json(path), TrialLog(out / TRIALS_FILE).rows
    front = stored.get("front") if isinstance(stored, dict) else None
    try:
        trials = {int(row["point"]): rows[int(row["trial"])] for row in front or ()}
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise RunError(f"{path} is not as it was written: repeat the search to write it anew") from error
    if number not in trials:
        raise BpruneError(f"the front in {path} has no point {number}: expected a number from 1 to {len(trials)}")
    return trials[number] | {"point": number}


def network_at(model: Any, out: Path, row: Json, settings: Json) -> Any:
    """The pruned network of a trial in the search of `out`."""
    model = adopt(model)
    score = by_score(model, settings.get("criterion") or default_criterion(model))
    ranking = (
        score
        if row["ranking"] == "score"
        else Ranking(read_scores(out / SCORES_FILE, {name: s.shape for name, s in score.scores.items()}))
    )
    return with_masks(model, ranking.masks(row["counts"]))
