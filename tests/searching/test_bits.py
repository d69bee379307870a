"""A search that gives the weights of each layer fewer bits: what a trial rounds to, when it ends, and what is exported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.searching.test_parts import with_drop
from tfp_bprune._keras import keras
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import Splits
from tfp_bprune.exports import export
from tfp_bprune.files.runs import Run
from tfp_bprune.pruning.prune import with_masks
from tfp_bprune.searching import Budget, Settings, find, search
from tfp_bprune.searching.bits import CHOICES, fewest_bits
from tfp_bprune.searching.claim import Candidate, prove
from tfp_bprune.searching.results import network_at, point_of, precision_of
from tfp_bprune.storage import load_model
from tfp_bprune.trials.ranking import by_score
from tfp_bprune.trials.size import Sizes
from tfp_bprune.trials.trial import Evaluator
from tfp_bprune.types import BpruneError


@pytest.mark.parametrize("bits", [{"dense_1": 8}, {"dense_1": 3, "logits": 5}, {"dense_1": 2, "logits": 2}])
def test_a_trial_answers_as_the_export_in_as_many_bits(run: Path, digits: Splits, tmp_path: Path, bits: Any) -> None:
    model, split = load_model(run).model, digits.examples("valid")
    order = by_score(model, "snr")
    masks, examples = order.masks(order.globally(400)), Evaluator(model, "snr").on(split)
    whole = examples.answers(masks).probabilities  # type: ignore[union-attr]
    found = examples.answers(masks, bits).probabilities  # type: ignore[union-attr]
    export(with_masks(model, masks), tmp_path / "out", precision=precision_of(bits))
    served = bp.predict(tmp_path / "out", split.x, progress=False).probabilities
    assert np.abs(served - found).max() < 1e-5
    assert np.abs(served - whole).max() > 1e-4
    assert np.array_equal(examples.answers(masks).probabilities, whole)  # type: ignore[union-attr]  # and back


class Session:
    """Trials of which each layer holds the budget down to its own number of bits."""

    def __init__(self, least: dict[str, int]) -> None:
        self.least, self.done, self.target = least, 0, "bytes"
        self.rows: list[Any] = [{"trial": 0, "ranking": "score", "excess": -1.0, "bytes": 1e6, "nonzeros": 9}]

    def within(self, row: Any) -> bool:
        return bool(row["excess"] <= 0)

    def trial(self, phase: str, ranking: str, counts: Any, bits: Any) -> Any:
        self.done += 1
        holds = all(number >= self.least[name] for name, number in bits.items())
        size = sum(bits.get(name.rpartition("/")[0], 32) * count for name, count in counts.items())
        row = {"trial": self.done, "ranking": ranking, "counts": counts, "bits": bits, "nonzeros": 9}
        self.rows.append(row | {"excess": 0.0 if holds else 1.0, "bytes": size})
        return self.rows[-1]


@pytest.mark.parametrize(
    "least",
    [{"a": 5, "b/c": 3, "d": 8}, {"a": 2, "b/c": 2, "d": 2}, {"a": 9, "b/c": 4, "d": 9}, {"a": 9, "b/c": 9, "d": 9}],
)
def test_each_layer_gets_the_fewest_bits_within_the_budget(least: dict[str, int]) -> None:
    session: Any = Session(least)
    start = {"counts": {"a/kernel": 50, "b/c/kernel": 30, "b/c/other": 30, "d/kernel": 1}, "ranking": "score"}
    found = fewest_bits(session, session.rows[0] | start, 100)
    expected = {name: min((c for c in CHOICES if c >= number), default=None) for name, number in least.items()}
    assert found.get("bits", {}) == {name: number for name, number in expected.items() if number}
    assert fewest_bits(session, session.rows[0] | start, 0) is found  # no more trials than there are


def test_a_proof_begins_with_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, looked = {"a/kernel": 100}, []

    def pair(masks: Any, bits: Any) -> Any:
        looked.append((masks["a/kernel"], dict(bits)))
        return with_drop(0.0 if not bits else 0.5)

    ranking: Any = SimpleNamespace(left=counts, masks=lambda kept: kept)
    sample: Any = SimpleNamespace(pair=pair)
    claim = prove(sample, Budget(0.01), Candidate(ranking, "score", counts, {"a": 4}))
    # What fails in few bits with all weights leaves all weights, in float32.
    assert looked[:2] == [(100, {}), (100, {"a": 4})]
    assert (claim.counts, dict(claim.bits), claim.holds) == (counts, {}, True)


def test_bytes_fall_with_the_bits() -> None:
    sizes = Sizes(
        Evaluator(
            keras.Sequential([keras.Input((20,)), keras.layers.Dense(10, name="a"), keras.layers.Softmax()]),
            "magnitude",
        )
    )
    rest, part = 4 * 10, 0.1
    pattern = -200 * (part * math.log2(part) + (1 - part) * math.log2(1 - part)) / 8
    for bits in CHOICES:
        found = sizes.of({"a/kernel": 20}, bits={"a": bits})["bytes"]
        assert found == pytest.approx(rest + 20 * bits / 8 + 4 * 10 + pattern)
    assert sizes.of({"a/kernel": 200}, bits={"a": 8})["bytes"] == rest + 200 + 40
    assert sizes.of({"a/kernel": 0}, bits={"a": 8})["bytes"] == rest + 40


def test_a_search_finds_bits_goes_on_and_exports_them(run: Path, digits: Splits, tmp_path: Path) -> None:
    settings = Settings(Budget(0.25), "bytes", trials=30, bits=True)
    model = load_model(run).model
    found = search(model, digits, tmp_path / "a", settings=settings)
    assert [row["phase"] for row in found.rows].count("bits") >= 3
    assert all(set(row["bits"]) <= {"dense_1", "dense_2", "logits"} for row in found.rows if row["phase"] == "bits")
    again = search(model, digits, tmp_path / "a", settings=settings)
    assert (again.rows, again.layers) == (found.rows, found.layers)
    assert again.speed["evaluated"] == 0
    with pytest.raises(BpruneError, match="differs in bits"):
        search(model, digits, tmp_path / "a", settings=Settings(Budget(0.25), "bytes", trials=30))


def test_the_command_exports_what_it_found(run: Path, tmp_path: Path) -> None:
    words = [
        "search",
        str(run),
        "--max-accuracy-drop",
        "0.3",
        "--trials",
        "40",
        "--target",
        "bytes",
        "--out",
        str(tmp_path / "s"),
    ]
    results = {}
    for name, more in (("bits", ["--bits"]), ("floats", [])):
        words[-1] = str(tmp_path / name)
        assert main([*words, *more, "--json", str(tmp_path / f"{name}.json")]) == 0
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert results["bits"]["bits"]
    assert " and holding the others in " in results["bits"]["sentence"]
    assert "bits" not in results["floats"]["sentence"]
    assert results["bits"]["of_unpruned"] < 0.8 * results["floats"]["of_unpruned"]
    manifest = Run.open(tmp_path / "bits" / "exports" / "layers" / "mean").manifest
    precisions = {name: layer["precision"] for name, layer in manifest["layers"].items()}
    assert precisions.items() >= precision_of(results["bits"]["bits"]).items()  # type: ignore[union-attr]
    for result in results.values():  # fewer bits are further down on the axis of bytes
        sizes = [row["bytes"] for row in result["front"]]
        assert sizes == sorted(sizes)
        assert {on for row in result["front"] for on in row["on"]} == {"bytes", "latency"}
    smallest, largest = results["bits"]["front"][0], results["floats"]["front"][0]
    assert "bits" in smallest
    assert smallest["bytes"] < largest["bytes"]
    [point, *_] = [row for row in results["bits"]["front"] if "bits" in row]
    assert (
        main(
            [
                "search",
                str(run),
                "--out",
                str(tmp_path / "bits"),
                "--export",
                str(point["point"]),
                "--to",
                str(tmp_path / "to"),
            ]
        )
        == 0
    )
    assert "int" in str({layer["precision"] for layer in Run.open(tmp_path / "to").manifest["layers"].values()})
    row = point_of(tmp_path / "bits", point["point"])
    assert row["bits"] == point["bits"]
    assert network_at(load_model(run).model, tmp_path / "bits", row, {}) is not None


def test_bits_are_for_bytes() -> None:
    with pytest.raises(BpruneError, match="expected the target 'bytes' with bits, got 'nonzeros'"):
        Settings(bits=True)


def test_trials_suffice_for_weights_and_bits() -> None:
    with pytest.raises(BpruneError, match="trials must be at least 29 with bits, got 28"):
        Settings(target="bytes", bits=True, trials=28)
    Settings(target="bytes", trials=20)
    assert round(29 * (1 - find._FOR_BITS)) >= find._LEAST_TRIALS  # those of weights, without which none are of bits
