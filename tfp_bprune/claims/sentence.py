"""What was found, in one sentence that a person can act on."""

from __future__ import annotations

from tfp_bprune.claims import bounds
from tfp_bprune.types import Json


def sentence(result: Json) -> str:
    """What was found, for a person to act on."""
    claim, left = result["claim"], f"{result['nonzeros']:,} of {result['prunable']:,} left"
    if not claim["holds"]:
        return (
            f"No pruned network can be shown to meet the budget: {_out_of_reach(result)}; nothing was removed ({left})."
        )
    return (
        f"Removing {100 * result['sparsity']:.2f} % of the weights{_units(result)}{_bits(result)} ({left}, {_beside(result)}{_smaller(result)}) "
        f"{_promise(claim)} (shown for the mean network, at {100 * result['budget']['level']:g} % confidence, on validation "
        f"examples that were not searched on): {_tested(result)}."
    )


def _by_unit(result: Json) -> bool:
    return bool(result.get("granularity") == "unit")


def _units(result: Json) -> str:
    """How many units every layer keeps, where whole ones went."""
    if not _by_unit(result):
        return ""
    kept = (f"{count} of {name.rpartition('/')[0]}" for name, count in result["layers"].items())
    return f" as whole units, which leaves {', '.join(kept)}"


def _bits(result: Json) -> str:
    """In how many bits the weights of layers are, where these were searched for."""
    found = sorted(set(result.get("bits", {}).values()))
    if not found:
        return ""
    ends = dict.fromkeys((found[0], found[-1]))
    return f" and holding the others in {' to '.join(map(str, ends))} bits"


def _tested(result: Json) -> str:
    """The test split's figures, each with its uncertainty."""
    test = result["test"]
    if "rmse_increase" in test:
        return (
            f"test RMSE {result['rmse']:.4g} against {test['unpruned_rmse']:.4g}, {100 * test['rmse_increase']:+.2f} %, "
            f"95 % interval [{100 * test['interval'][0]:+.2f}, {100 * test['interval'][1]:+.2f}], {test['examples']:,} examples"
        )
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
    latency = "latency of exports" if _by_unit(result) else "latency by the cost model"
    what = {"bytes": "bytes", "latency": latency}[result["target"]]
    return f"; {what}: {part:.0f} % of the unpruned network's" + (", nothing gained" if part > 99 else "")


def _promise(claim: Json) -> str:
    says = {
        "accuracy_drop": lambda c: f"costs at most {100 * c['limit']:g} points of accuracy",
        "ece_increase": lambda c: f"raises the calibration error by at most {c['limit']:g}",
        "rmse_increase": lambda c: f"raises the RMSE by at most {100 * c['limit']:g} %",
        "ood_auroc": lambda c: f"tells the other dataset with an AUROC of at least {c['limit']:g}",
    }
    return " and ".join(says[name](condition) for name, condition in claim["conditions"].items())


def _out_of_reach(result: Json) -> str:
    """Why not, and what to do: the best that so many examples can show, here of the unpruned network itself."""
    claim = result["claim"]
    says = {
        "accuracy_drop": lambda condition: _accuracy_out_of_reach(condition, claim["level"]),
        "ece_increase": _ece_out_of_reach,
        "ood_auroc": _area_out_of_reach,
        "rmse_increase": _rmse_out_of_reach,
    }
    missed = {k: c for k, c in claim["conditions"].items() if c["p_value"] > 1 - claim["level"]}
    return " and ".join(says[name](condition) for name, condition in (missed or claim["conditions"]).items())


def _accuracy_out_of_reach(condition: Json, level: float) -> str:
    limit, needed = condition["limit"], bounds.enough(condition["limit"], 1 - level)
    advice = "a drop of 0 can be shown of no other network, allow some"
    if needed:
        number = f"{needed:,} are needed" if condition["method"].startswith("paired, score") else "more are needed"
        advice = f"{number} for {100 * limit:g}, train with a larger --validation-fraction"
    return (
        f"{condition['examples']:,} validation examples kept aside can show a loss of at most {100 * condition['bound']:.2f} "
        f"points of accuracy at best ({advice})"
    )


def _ece_out_of_reach(condition: Json) -> str:
    return (
        f"{condition['examples']:,} validation examples kept aside can show at best that the calibration error grows by at most "
        f"{condition['bound']:.4f}, asked was {condition['limit']:g}"
    )


def _rmse_out_of_reach(condition: Json) -> str:
    shown = "no bound" if condition["bound"] is None else f"at most {100 * condition['bound']:.3g} %"
    return (
        f"{condition['examples']:,} validation examples kept aside can show a growth of the RMSE by {shown} at best, asked was "
        f"{100 * condition['limit']:g} %, train with a larger --validation-fraction"
    )


def _area_out_of_reach(condition: Json) -> str:
    return (
        f"with all weights the AUROC is {condition['estimate']:.4f} (at least {condition['bound']:.4f} on "
        f"{condition['examples']:,} examples), asked was {condition['limit']:g}"
    )
