"""The parts of a search by themselves: budgets, bisection, proof, Pareto fronts, allocation, the log."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from tfp_bprune.claims.budget import Budget, Pair, _ece_errors, _ece_increase, auroc
from tfp_bprune.files.runs import write_json
from tfp_bprune.searching import layers
from tfp_bprune.searching.claim import FACTORS, Candidate, prove, prove_all
from tfp_bprune.searching.threshold import bisect, scaled
from tfp_bprune.trials.log import TrialLog, check_same
from tfp_bprune.trials.oracle import propose
from tfp_bprune.trials.pareto import front, undominated
from tfp_bprune.trials.ranking import Ranking
from tfp_bprune.trials.trial import Answers
from tfp_bprune.types import BpruneError, RunError


def answers(right: np.ndarray, confidence: float | np.ndarray = 0.9) -> Answers:
    """Of two classes; the true one is 0."""
    p = np.where(right, confidence, 1 - np.asarray(confidence))
    return Answers(np.stack([p, 1 - p], 1), np.zeros(len(right), np.int64))


def with_drop(drop: float, n: int = 4000) -> Pair:
    lost = round(drop * n)
    return Pair(answers(np.ones(n, bool), 0.9999), answers(np.arange(n) >= lost, 0.9999))


def differing(n: int, lost: int, gained: int) -> Pair:
    place = np.arange(n)
    return Pair(answers(place >= gained, 0.9999), answers(place < n - lost, 0.9999))


def test_all_conditions_must_be_shown() -> None:
    pair = with_drop(0.001)
    alone = Budget(0.005).evidence(pair)
    both = Budget(0.005, max_ece_increase=0.0).evidence(pair)
    assert alone["p_value"] == alone["conditions"]["accuracy_drop"]["p_value"] < 0.05
    assert both["p_value"] == both["conditions"]["ece_increase"]["p_value"] > 0.05
    assert Budget(0.005).excess(pair, 4000) < 0 < Budget(0.005).excess(with_drop(0.01), 4000)


def test_one_condition_that_is_not_shown_is_enough_to_fail() -> None:
    pair = with_drop(0.001)
    assert Budget(0.005).shown(pair)
    assert not Budget(0.005, max_ece_increase=0.0).shown(pair)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "a budget needs a condition"),
        ((0.5, -1.0), "max_ece_increase must be in"),
        ((5.0,), "0.005 is half a point"),
        ((None, None, 0.2), r"min_ood_auroc must be in \[0.5, 1\], got 0.2"),
        ((0.01, None, None, 1.0), "level must be in"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(BpruneError, match=message):
        Budget(*arguments)


def test_the_area_is_that_of_entropies_with_ties() -> None:
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(60, 99, 300) / 100, rng.integers(50, 90, 200) / 100
    pair = Pair(*2 * (answers(np.ones(300, bool), inside),), strange=answers(np.ones(200, bool), outside))
    truth = np.r_[np.zeros(300), np.ones(200)]
    entropies = np.r_[pair.pruned.entropy, pair.strange.entropy]  # type: ignore[union-attr]
    assert auroc(pair) == pytest.approx(roc_auc_score(truth, entropies))
    found = Budget(None, None, auroc(pair)).evidence(pair)["conditions"]["ood_auroc"]
    assert found["p_value"] == 1.0
    assert found["bound"] < found["estimate"]
    with pytest.raises(BpruneError, match="--ood"):
        auroc(with_drop(0.0))


class Curve:
    """A session in which a network is within the budget from `needed` weights on."""

    def __init__(self, needed: int, size: int = 100_000) -> None:
        self.needed, self.rows = needed, []  # type: ignore[var-annotated]
        self.rankings = {"score": Ranking({"a/kernel": np.arange(size, dtype=float)})}

    def trial(self, phase: str, ranking: str, counts: dict[str, int]) -> dict[str, Any]:
        self.rows.append({"trial": len(self.rows), "nonzeros": sum(counts.values()), "counts": counts})
        return self.rows[-1]

    def within(self, row: dict[str, Any]) -> bool:
        return bool(row["nonzeros"] >= self.needed)


def calibration(increase: float, n: int, rng: np.random.Generator) -> Pair:
    """An unpruned network that is calibrated, and a pruned one that says `increase` too much of each answer."""
    confidence = rng.uniform(0.75, 0.97, n)
    labels = (rng.random(n) >= confidence).astype(np.int64)

    def said(p: np.ndarray) -> Answers:
        return Answers(np.stack([p, 1 - p], 1), labels)

    return Pair(said(confidence), said(confidence + increase))


@pytest.mark.parametrize("limit", [0.01, 0.02])
def test_a_broken_limit_of_calibration_is_shown_to_hold_no_more_often_than_the_level_allows(limit: float) -> None:
    """Just at the limit; a bootstrap of the increase says yes in 24 to 39 % of the samples."""
    rng, budget, samples = np.random.default_rng(1), Budget(None, max_ece_increase=limit), 200
    shown = sum(budget.evidence(calibration(limit, 4000, rng))["p_value"] <= 0.05 for _ in range(samples))
    assert stats.binom.sf(shown - 1, samples, 0.05) > 1e-6


def test_each_of_two_sampling_errors_of_calibration_has_half_of_the_chance() -> None:
    pair = calibration(0.0, 2000, np.random.default_rng(2))
    increase, errors = _ece_increase(pair), _ece_errors(pair, 0)
    limit = max(0.0, increase) + float(np.quantile(errors, 0.9))
    found = Budget(None, max_ece_increase=limit).evidence(pair)["p_value"]
    count = np.count_nonzero(errors >= limit - increase)
    assert found == pytest.approx(2 * (1 + count) / (1 + len(errors)))
    assert 0.05 < found < 0.5


def test_counts_grow_to_what_is_left_and_never_vanish() -> None:
    assert scaled({"a": 10, "b": 3, "c": 0}, 4.0, {"a": 15, "b": 99, "c": 9}) == {"a": 15, "b": 12, "c": 0}
    assert scaled({"a": 10, "b": 3}, 0.01, {"a": 15, "b": 99}) == {"a": 1, "b": 1}


def half_sure(n: int, accuracy: float, rng: np.random.Generator) -> Pair:
    """A calibrated network, and one of the same answers that is calibrated for half of them and at .5 for the others."""
    labels = (rng.random(n) >= accuracy).astype(np.int64)
    p = np.where(rng.random(n) < 0.5, 0.5 + 1e-6, accuracy)
    said = [Answers(np.stack([q, 1 - q], 1), labels) for q in (np.full(n, accuracy), p)]
    return Pair(*said)


@pytest.mark.parametrize(("accuracy", "n"), [(0.995, 400), (0.999, 400), (0.995, 4000), (0.999, 4000)])
def test_how_many_fall_into_a_bin_is_left_to_chance_too(accuracy: float, n: int) -> None:
    """The increase is half of the gap at .5; with the bins' sizes taken for given, 6 to 24 % of the samples say yes."""
    rng, samples = np.random.default_rng(3), 200
    budget = Budget(None, max_ece_increase=(accuracy - 0.5) / 2)
    shown = sum(budget.evidence(half_sure(n, accuracy, rng))["p_value"] <= 0.05 for _ in range(samples))
    assert stats.binom.sf(shown - 1, samples, 0.05) > 1e-6


def test_a_held_limit_of_calibration_can_be_shown() -> None:
    pair = calibration(0.0, 4000, np.random.default_rng(2))
    found = Budget(None, max_ece_increase=0.05).evidence(pair)["conditions"]["ece_increase"]
    assert found["p_value"] < 0.05
    assert found["estimate"] < found["bound"] < 0.05
    assert Budget(None, max_ece_increase=0.05).excess(pair, 4000) <= 0 < Budget(None, 0.001).excess(pair, 4000)


def test_few_examples_do_not_show_that_all_are_told_apart() -> None:
    def pair(n: int) -> Pair:
        sure, unsure = answers(np.ones(n, bool), 0.9999), answers(np.ones(n, bool), 0.6)
        return Pair(sure, sure, unsure)

    few, many = (Budget(None, min_ood_auroc=0.95).evidence(pair(n)) for n in (10, 1000))
    assert few["p_value"] > 0.05 > many["p_value"]


def test_what_leads_the_search_rises_with_what_is_lost() -> None:
    drops = [with_drop(drop).soft_drop for drop in (0.0, 0.01, 0.1)]
    assert drops[0] == 0 < drops[1] < drops[2]
    assert answers(np.array([True, False])).margin.tolist() == pytest.approx([np.log(9), -np.log(9)])


def test_layers_are_told_apart_by_one_measurement_each() -> None:
    """Of many kernels there is one sensitivity each, and the centre."""
    center, limits = {"a/kernel": 1000, "b/kernel": 1000}, {"a/kernel": 5000, "b/kernel": 5000}
    curves = [{"tensor": None, "kept": 1.0, "nll": 0.1}]
    curves += [{"tensor": "a/kernel", "kept": 0.6, "nll": 0.5}, {"tensor": "b/kernel", "kept": 0.6, "nll": 0.11}]
    for counts in layers._starts(center, curves, limits):
        assert counts["a/kernel"] > 1.2 * counts["b/kernel"]
    assert layers.PARTS[0] < 1


@pytest.mark.parametrize("needed", [1, 7, 1234, 50_000, 99_999, 100_000])
@pytest.mark.parametrize("start", [None, 1000])
def test_bisection_finds_the_number_within_two_percent(needed: int, start: int | None) -> None:
    session = Curve(needed)
    best: Any = bisect(session, most=60, start=start)  # type: ignore[arg-type]
    assert needed <= best["nonzeros"] <= max(needed * 1.021, needed + 1)
    assert len({row["nonzeros"] for row in session.rows}) == len(session.rows)
    assert len(session.rows) <= 30


def test_bisection_says_when_nothing_is_within() -> None:
    assert bisect(Curve(100_001)) is None  # type: ignore[arg-type]


def test_a_proof_ends_at_the_first_failure() -> None:
    drops = {"a/kernel": 10_000}
    ranking, looked = Ranking({"a/kernel": np.arange(100_000, dtype=float)}), []

    def pair(masks: Any, bits: Any = None) -> Pair:
        looked.append(int(masks["a/kernel"].sum()))
        return with_drop(0.0 if looked[-1] > 11_000 else 0.02)

    claim = prove(SimpleNamespace(pair=pair), Budget(0.005), Candidate(ranking, "score", drops))  # type: ignore[arg-type]
    assert looked == sorted(looked, reverse=True)
    assert looked[0] == 100_000
    assert looked[-1] <= 11_000 < looked[-2]
    assert (claim.holds, claim.counts["a/kernel"], claim.looks) == (True, looked[-2], len(looked))
    assert list(FACTORS) == sorted(FACTORS, reverse=True)
    hopeless = prove(
        SimpleNamespace(pair=lambda masks, bits: with_drop(0.02)), Budget(0.005), Candidate(ranking, "score", drops)
    )  # type: ignore[arg-type]
    assert (hopeless.holds, hopeless.looks, hopeless.counts) == (False, 2, ranking.left)


def test_a_second_sequence_begins_near_the_best() -> None:
    """An unlucky network of 2.8 times its weights ends the first one alone."""
    drops = {"a/kernel": 10_000}
    ranking = Ranking({"a/kernel": np.arange(100_000, dtype=float)})

    def pair(masks: Any, bits: Any = None) -> Pair:
        total = int(masks["a/kernel"].sum())
        return with_drop(0.02 if total < 11_000 or 27_000 < total < 29_000 else 0.0)

    claim = prove(SimpleNamespace(pair=pair), Budget(0.005), Candidate(ranking, "score", drops))  # type: ignore[arg-type]
    assert (claim.holds, claim.counts["a/kernel"]) == (True, 11_000)


class Unsaid(Budget):
    """A budget that leaves out the bounds: they take longer than what they are bounds for."""

    def evidence(self, pair: Any, seed: int = 0) -> Any:
        """Nothing."""
        return {}


class Chance(Unsaid):
    """A condition that all weights fulfil and no other network does: there its p-value, here in the place of a pair, is uniform."""

    def shown(self, pair: Any, seed: int = 0) -> bool:
        """With just the chance that the level allows."""
        return bool(pair <= 1 - self.level)


@pytest.mark.parametrize("best", [10_000, 26_000])
def test_a_broken_budget_is_promised_no_more_often_than_the_level_allows(best: int) -> None:
    """Networks of at most 30,000 weights lose just what they must not, each on other examples; those above a quarter of it."""
    rng, n, samples = np.random.default_rng(4), 500, 100
    ranking = Ranking({"a/kernel": np.arange(100_000, dtype=float)})

    def pair(masks: Any, bits: Any = None) -> Pair:
        broken = int(masks["a/kernel"].sum()) <= 30_000
        lost, gained, _ = rng.multinomial(n, [0.05, 0.01, 0.94] if broken else [0.015, 0.005, 0.98])
        return differing(n, lost, gained)

    sample: Any = SimpleNamespace(pair=pair)
    claims = [prove(sample, Unsaid(0.04), Candidate(ranking, "score", {"a/kernel": best})) for _ in range(samples)]
    false = sum(claim.holds and claim.counts["a/kernel"] <= 30_000 for claim in claims)
    assert stats.binom.sf(false - 1, samples, 0.05) > 1e-6
    assert sum(claim.holds for claim in claims) > samples / 2


def test_both_sequences_share_the_error() -> None:
    """Alone the second of these would be shown at 95 %; the sequence near the best has nine tenths of the error."""
    drops = {"a/kernel": 10_000}
    ranking = Ranking({"a/kernel": np.arange(100_000, dtype=float)})
    for lost, gained, holds in ((16, 5, True), (14, 2, False)):
        answers = differing(4000, lost, gained)
        evidence = Budget(0.005).evidence(answers)
        assert (evidence["p_value"] <= 0.045) == holds
        assert evidence["p_value"] <= 0.05
        claim = prove(
            SimpleNamespace(pair=lambda masks, bits, a=answers: a), Budget(0.005), Candidate(ranking, "score", drops)
        )  # type: ignore[arg-type]
        assert claim.holds == holds


def test_all_promises_of_one_sample_hold_together() -> None:
    """Each by itself at the whole error, one of two would be false in 9.75 % of the samples."""
    rng, samples, budget = np.random.default_rng(5), 4000, Chance(0.005)
    ranking = Ranking({"a/kernel": np.arange(100, dtype=float)})
    sample: Any = SimpleNamespace(pair=lambda masks, bits: 0.0 if masks["a/kernel"].all() else rng.uniform())
    found = [Candidate(ranking, name, {"a/kernel": 20}) for name in ("refined", "score")]
    claims = [prove_all(sample, budget, found) for _ in range(samples)]
    false = sum(any(claim.counts["a/kernel"] < 100 for claim in both) for both in claims)
    assert stats.binom.sf(false - 1, samples, 0.05) > 1e-6
    assert stats.binom.cdf(false, samples, 0.8 * 0.05) > 1e-6  # nor is much of the error left unused
    alone = [claim for _ in range(samples) for claim in prove_all(sample, budget, found[:1] * 2)[:1]]
    false = sum(claim.counts["a/kernel"] < 100 for claim in alone)  # one that is there twice has the whole error
    assert stats.binom.sf(false - 1, samples, 0.05) > 1e-6
    assert stats.binom.cdf(false, samples, 0.8 * 0.05) > 1e-6


def test_fronts_hold_what_nothing_beats() -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"trial": i, "nonzeros": float(a), "latency": float(b), "accuracy_drop": float(c)}
        for i, (a, b, c) in enumerate(rng.integers(0, 12, (60, 3)))
    ]
    chosen = undominated(rows, "nonzeros")
    for row in rows:
        beaten = [r for r in chosen if r["nonzeros"] <= row["nonzeros"] and r["accuracy_drop"] <= row["accuracy_drop"]]
        assert beaten, "every trial is matched or beaten by a point of the front"
    for a in chosen:
        assert not any(r["nonzeros"] <= a["nonzeros"] and r["accuracy_drop"] < a["accuracy_drop"] for r in rows)
    assert len({row["accuracy_drop"] for row in chosen}) == len(chosen)  # of equals the smallest
    points = front(rows)
    assert [row["point"] for row in points] == list(range(1, len(points) + 1))
    assert {r["trial"] for r in points} >= {r["trial"] for r in chosen}


def test_fewer_bits_are_on_the_front_of_bytes() -> None:
    """Of one network in 32, 8 and 4 bits, none has fewer weights than another: only bytes tell them apart."""
    drops = [(400, 100, 0.001), (100, 100, 0.002), (50, 100, 0.004), (120, 90, 0.02), (60, 80, 0.03)]
    rows = [
        {"trial": i, "bytes": size, "nonzeros": left, "latency": 1.0, "accuracy_drop": drop}
        for i, (size, left, drop) in enumerate(drops)
    ]
    found = front(rows, "bytes")
    assert [(row["point"], row["trial"], row["on"]) for row in found] == [
        (1, 2, ["bytes"]),
        (2, 1, ["bytes"]),
        (3, 0, ["bytes", "latency"]),
    ]
    assert front(rows, "latency") == front(rows)
    assert [(row["trial"], row["on"]) for row in front(rows)] == [
        (4, ["nonzeros"]),
        (3, ["nonzeros"]),
        (0, ["nonzeros", "latency"]),
    ]


def allocated(center: dict[str, int], total: int) -> dict[str, int]:
    """loss = -weight * log(count): the optimum gives each layer a part in proportion to its weight, 3 and 2."""
    weights = {"a/kernel": 3.0, "b/kernel": 2.0}
    curves = [
        {"tensor": name, "kept": float(part), "nll": -weights[name] * float(np.log(part)) + 10}
        for name in center
        for part in np.geomspace(0.4, 1.7, 40)
    ]
    return layers._allocated(center, curves, total, {name: 10_000 for name in center})


def test_allocation_makes_the_marginal_losses_equal() -> None:
    found = allocated({"a/kernel": 1000, "b/kernel": 1000}, 2000)
    assert sum(found.values()) == pytest.approx(2000, abs=2)
    assert found["a/kernel"] / found["b/kernel"] == pytest.approx(1.5, rel=0.06)


def test_a_weight_costs_the_same_in_a_small_layer() -> None:
    found = allocated({"a/kernel": 1500, "b/kernel": 500}, 1800)
    assert found["a/kernel"] / found["b/kernel"] == pytest.approx(1.5, rel=0.06)


def test_a_layer_loses_no_less_with_fewer_weights_whatever_was_measured() -> None:
    rows = [{"tensor": "a/kernel", "kept": kept, "nll": nll} for kept, nll in ((0.5, 1.0), (0.8, 3.0), (1.6, 2.0))]
    found = layers._loss("a/kernel", rows, np.log([0.5, 0.8, 1.6]))
    np.testing.assert_allclose(found, [3.0, 3.0, 2.0])


def test_counts_and_global_order() -> None:
    ranking = Ranking({"a/kernel": np.array([[5.0, 1.0], [3.0, -np.inf]]), "b/kernel": np.array([[4.0, 2.0]])})
    assert ranking.left == {"a/kernel": 3, "b/kernel": 2}
    assert ranking.globally(3) == {"a/kernel": 2, "b/kernel": 1}
    assert ranking.globally(2) == {"a/kernel": 1, "b/kernel": 1}
    assert ranking.masks({"a/kernel": 9, "b/kernel": 1})["a/kernel"].tolist() == [[True, True], [True, False]]
    assert scaled({"a/kernel": 2, "b/kernel": 1}, 0.1, ranking.left) == {"a/kernel": 1, "b/kernel": 1}


def test_the_oracle_finds_a_minimum_and_answers_the_same_again() -> None:
    space, told = {"x/kernel": (-1.0, 1.0), "y": (-1.0, 1.0)}, []
    for i in range(18):
        point = propose(space, told, i)
        told.append((point, (point["x/kernel"] - 0.3) ** 2 + (point["y"] + 0.5) ** 2))
    assert propose(space, told, 99) == propose(space, told, 99)
    best, value = min(told, key=lambda pair: pair[1])
    assert value < 0.01, best  # a random one of 18 is as good with a chance of one in eight


def test_the_log_notices_damage_and_drops_what_a_kill_left(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    log = TrialLog(path)
    for i in range(4):
        log.append({"trial": i, "nll": 0.1 * i, "odd": float("nan")})
    content = path.read_bytes()
    assert TrialLog(path).rows == log.rows
    assert log.rows[1]["odd"] is None
    path.write_bytes(content + b'{"trial": 4, "nl')
    begun = TrialLog(path)
    assert len(begun.rows) == 4
    assert path.read_bytes() == content + b'{"trial": 4, "nl'  # who only reads changes nothing
    begun.append({"trial": 4})
    assert path.read_bytes().startswith(content)
    assert [row["trial"] for row in TrialLog(path).rows] == [0, 1, 2, 3, 4]
    path.write_bytes(content[:-1] + b"\x0b")
    with pytest.raises(RunError, match=r"line 4 of .*delete the file"):
        TrialLog(path)
    lines = content.splitlines(keepends=True)
    damaged = {
        2: content.replace(b'"nll": 0.1', b'"nll": 0.3'),
        3: b"".join([lines[0], lines[1], lines[3]]),
        1: b"".join([lines[1], lines[0]]),
        4: b"".join([*lines[:3], b"not json\n"]),
    }
    for line, text in damaged.items():
        path.write_bytes(text)
        with pytest.raises(RunError, match=rf"line {line} of .*delete the file"):
            TrialLog(path)
    path.write_text(json.dumps([1]) + "\n")
    with pytest.raises(RunError, match="line 1"):
        TrialLog(path)


def test_settings_of_another_search_are_refused(tmp_path: Path) -> None:
    check_same(tmp_path / "settings.json", {"a": 1, "b": [1, 2]})
    check_same(tmp_path / "settings.json", {"a": 1, "b": [1, 2]})
    with pytest.raises(RunError, match="differs in b: repeat its command"):
        check_same(tmp_path / "settings.json", {"a": 1, "b": [1, 3]})


def test_settings_of_a_version_before_are_the_same(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", {"twin": "flipout"}, True)
    check_same(tmp_path / "settings.json", {"layers": "flipout"})
    with pytest.raises(RunError, match="differs in layers"):
        check_same(tmp_path / "settings.json", {"layers": "local"})
