"""Whole searches on a small network: found, resumed, killed, refused, exported."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import Process
from tfp_bprune.cli import search as command
from tfp_bprune.cli.common import Parser
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import Split, Splits
from tfp_bprune.files.runs import write_json
from tfp_bprune.pruning import prune
from tfp_bprune.searching import Budget, Found, Settings, search
from tfp_bprune.searching.results import point_of
from tfp_bprune.storage import load_model
from tfp_bprune.trials.ranking import by_score
from tfp_bprune.trials.trial import Evaluator
from tfp_bprune.types import BpruneError, PruneError, RunError

SETTINGS = Settings(Budget(0.25), trials=30)


def found(model: Any, digits: Splits, out: Path, settings: Settings = SETTINGS, **options: Any) -> Found:
    out.mkdir(exist_ok=True)
    return search(model, digits, out, settings=settings, **options)


@pytest.fixture(scope="module")
def model(run: Path) -> Any:
    """The model of `run`."""
    return load_model(run).model


@pytest.fixture(scope="module")
def whole(model: Any, digits: Splits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Path]:
    """An uninterrupted search."""
    out = tmp_path_factory.mktemp("search")
    return found(model, digits, out), out


def asked(run: Path, out: Path) -> list[str]:
    """A search by the command."""
    words = ["search", run, "--max-accuracy-drop", "0.2", "--trials", "30", "--out", out / "search"]
    return [*map(str, words), "--json", str(out / "r.json")]


@pytest.fixture(scope="module")
def answered(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The command's JSON."""
    out = tmp_path_factory.mktemp("command")
    assert main(asked(run, out)) == 0
    return json.loads((out / "r.json").read_text()) | {"out": str(out / "search")}


def told(result: Found) -> Any:
    """What must be equal, whichever way the search came to its end."""
    return (result.layers, result.single, result.test, result.rows, result.front)


@pytest.mark.parametrize("criterion", ["snr", "evidence"])
def test_a_trial_is_what_prune_gives(model: Any, digits: Splits, criterion: Any) -> None:
    pruned, report = prune(model, sparsity=0.8, criterion=criterion)
    order, valid = by_score(model, criterion), digits.examples("valid")
    masks = order.masks(order.globally(report.prunable - report.pruned))
    for layer in ("dense_1", "logits"):
        kept = pruned.get_layer(layer).kernel_posterior.mask.numpy()
        np.testing.assert_array_equal(masks[f"{layer}/kernel"], kept)
    ours = Evaluator(model, "snr").on(valid).answers(masks)
    theirs = Evaluator(pruned, "snr").on(valid).answers(masks)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)


def test_a_search_ends_within_its_budget(whole: tuple[Found, Path]) -> None:
    result, _ = whole
    assert len(result.rows) <= 30
    assert result.layers.holds
    assert result.layers.evidence["conditions"]["accuracy_drop"]["bound"] <= 0.25
    assert {row["phase"] for row in result.rows} >= {"global", "sensitivity", "bayesian"}
    assert sum(result.layers.counts.values()) < 64 * 16 + 160
    assert result.test["examples"] == 359


@pytest.mark.parametrize("cut", [1, 8, 21])
def test_a_search_cut_short_repeats_nothing_and_ends_the_same(
    whole: tuple[Found, Path], model: Any, digits: Splits, tmp_path: Path, cut: int
) -> None:
    result, out = whole
    shutil.copytree(out, tmp_path / "again")
    log = tmp_path / "again" / "trials.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:cut]) + lines[cut][:20])
    again = found(model, digits, tmp_path / "again")
    assert told(again) == told(result)
    assert again.speed["evaluated"] == len(lines) - cut
    assert log.read_bytes() == b"".join(lines)


def test_a_killed_search_is_resumed(run: Path, answered: dict[str, Any], tmp_path: Path) -> None:
    words, log = asked(run, tmp_path), tmp_path / "search" / "trials.jsonl"
    wanted = int(np.random.default_rng(os.getpid()).integers(1, 15))
    with Process(words) as process:
        while not process.ended and (not log.exists() or log.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        process.kill()
        process.wait()
    kept = log.read_bytes().count(b"\n")
    assert kept < 20  # it was in the middle
    assert main(words) == 0
    resumed = json.loads((tmp_path / "r.json").read_text())
    same = ("layers", "nonzeros", "accuracy", "nll", "claim", "test", "front")
    assert {key: resumed[key] for key in same} == {key: answered[key] for key in same}
    assert resumed["speed"]["evaluated"] == answered["speed"]["trials"] - kept


def test_another_search_in_the_same_folder_is_refused(whole: tuple[Found, Path], model: Any, digits: Splits) -> None:
    with pytest.raises(RunError, match="holds a search that differs in budget, seed"):
        found(model, digits, whole[1], Settings(Budget(0.1), trials=30, seed=3))


def test_a_damaged_log_is_refused(whole: tuple[Found, Path], model: Any, digits: Splits, tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole[1], tmp_path / "damaged"))
    log = out / "trials.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"phase": "global"', b'"phase": "locale"', 1))
    with pytest.raises(RunError, match="line 1 of"):
        found(model, digits, out)
    (out / "trials.jsonl").unlink()
    (out / "scores.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"scores\.safetensors cannot be read"):
        found(model, digits, out)


def test_a_budget_that_cannot_be_met_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", run, "--max-accuracy-drop", "0.0001", "--trials", "20", "--out", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "No pruned network can be shown to meet the budget: 96 validation examples kept aside can show" in said
    assert "are needed for 0.01, train with a larger --validation-fraction" in said


def test_a_second_dataset_counts(model: Any, digits: Splits, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    strange = Split("noise", rng.integers(0, 17, (150, 8, 8, 1)).astype(np.uint8), np.zeros(150, np.int64))
    settings = Settings(Budget(0.3, 0.9, 0.5), trials=20, order="score", target="bytes")
    result = found(model, digits, tmp_path / "ood", settings, strange=strange)
    assert set(result.layers.evidence["conditions"]) == {"accuracy_drop", "ece_increase", "ood_auroc"}
    assert all(0 <= row["ood_auroc"] <= 1 for row in result.rows)
    assert {row["ranking"] for row in result.rows} == {"score"}
    other = Split("noise", strange.x + 1, strange.y)
    with pytest.raises(RunError, match="differs in ood:"):
        found(model, digits, tmp_path / "ood", settings, strange=other)
    with pytest.raises(BpruneError, match="go together"):
        found(model, digits, tmp_path / "ood", Settings(Budget(None, None, 0.9)))


def test_plain_networks_are_searched_by_magnitude(plain_run: Path, digits: Splits, tmp_path: Path) -> None:
    model = load_model(plain_run).model
    result = found(model, digits, tmp_path / "plain", Settings(Budget(0.3), "latency", 20))
    assert result.layers.holds
    tried = [row for row in result.rows if row["phase"] == "global"]
    assert tried
    magnitudes = {f"{name}/kernel": np.abs(model.get_layer(name).kernel.numpy()) for name in ("dense_1", "logits")}
    everything = np.sort(np.concatenate([values.ravel() for values in magnitudes.values()]))[::-1]
    for row in tried:  # the largest of all, wherever they are
        cut = everything[sum(row["counts"].values()) - 1] if sum(row["counts"].values()) else np.inf
        assert row["counts"] == {name: int((values >= cut).sum()) for name, values in magnitudes.items()}


def test_networks_that_are_no_classifiers_are_refused(regression_run: Path, digits: Splits, tmp_path: Path) -> None:
    with pytest.raises((PruneError, BpruneError), match=r"expects (logits|a classification)"):
        found(load_model(regression_run).model, digits, tmp_path / "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 5}, "at least 20"),
        ({"target": "weight"}, "unknown target"),
        ({"order": "x"}, "order must be"),
        ({"seed": -1}, "seed must"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    with pytest.raises(BpruneError, match=message):
        Settings(**options)


def test_the_command_tells_the_shared_keys_twice(answered: dict[str, Any]) -> None:
    shared = {"accuracy", "nll", "ece", "sparsity", "nonzeros", "parameters", "bytes", "latency_ms", "epistemic", "network",
              "inference", "dataset", "method", "seed"}  # fmt: skip
    assert shared <= set(answered)
    assert shared <= set(answered["global"])
    assert answered["nonzeros"] == sum(answered["layers"].values())
    assert answered["test"]["accuracy_drop"] == pytest.approx(
        answered["test"]["unpruned_accuracy"] - answered["accuracy"], abs=1e-6
    )
    assert answered["sentence"].startswith("Removing ")
    assert (Path(answered["out"]) / "search.png").read_bytes().startswith(b"\x89PNG")


def test_points_are_exported_by_number(
    answered: dict[str, Any], run: Path, tiny_run: Path, tmp_path: Path, capsys: Any
) -> None:
    point = answered["front"][len(answered["front"]) // 2]
    words = [
        "search",
        run,
        "--out",
        answered["out"],
        "--export",
        point["point"],
        "--to",
        tmp_path / "it",
        "--json",
        "-",
    ]
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    assert json.loads(capsys.readouterr().out)["nonzeros"] == point["nonzeros"]
    words[words.index("--export") + 1] = 999
    words[words.index("--to") + 1] = tmp_path / "other"
    assert main([str(word) for word in words]) == 2
    assert "has no point 999: expected a number from 1 to" in capsys.readouterr().err
    words[words.index("--export") + 1] = point["point"]
    words[words.index(run)] = tiny_run
    assert main([str(word) for word in words]) == 2
    assert "holds a search of another network than" in capsys.readouterr().err


def test_sensitivities_are_told_and_drawn(run: Path, tmp_path: Path, capsys: Callable[..., Any]) -> None:
    words = ["search", run, "--sensitivity", "--out", tmp_path / "s", "--json", tmp_path / "s.json"]
    assert main([str(word) for word in words]) == 0
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [row["layer"] for row in rows] == [None, *["dense_1"] * 6, *["logits"] * 6]
    assert rows[0]["accuracy_drop"] == 0
    for row in rows[1:]:
        others = sum(n for name, n in row["counts"].items() if name != row["tensor"])
        assert others == (160 if row["layer"] == "dense_1" else 64 * 16)
    assert (tmp_path / "s" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")


def test_accuracy_is_a_condition_unless_it_is_said_not_to_be() -> None:
    """A network that says the classes' frequencies of every example is calibrated, and worth nothing."""
    parser = Parser()
    command.add_arguments(parser)
    asked = parser.parse_args(["run", "--max-ece-increase", "0.01"])
    assert command.settings_of(asked).budget == Budget(0.005, 0.01)
    without = parser.parse_args(["run", "--max-ece-increase", "0.01", "--max-accuracy-drop", "none"])
    assert command.settings_of(without).budget == Budget(None, 0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{run}"], "is a run directory: name a folder of its own for the search with --out"),
        (["--sensitivity", "--export", "1", "--to", "{new}"], "--sensitivity and --export are two jobs"),
        (["--ood", "digits", "--min-ood-auroc", "0.9"], "--ood digits is what the run was trained on"),
        (["--export", "1", "--to", "{new}", "--out", "{new}/none"], "holds no finished search"),
    ],
)
def test_wrong_requests(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {"run": run, "new": tmp_path / "new"}
    assert main(["search", str(run), *(word.format(**places) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_result_that_was_changed_is_not_exported(whole: tuple[Found, Path], tmp_path: Path) -> None:
    result, folder = whole
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    stored = {"front": json.loads(json.dumps(result.front))}
    expected = result.front[0]["counts"]
    stored["front"][0]["counts"] = {name: 5 * count for name, count in expected.items()}
    write_json(out / "search.json", stored, True)
    assert point_of(out, 1)["counts"] == expected  # from the log, which has checksums
    (out / "search.json").write_text((out / "search.json").read_text().replace('"point": 1', '"point": 3'))
    with pytest.raises(RunError, match="does not match its own SHA-256"):
        point_of(out, 1)
    for content in ({}, {"front": [{}]}, {"front": [{"point": 1, "trial": 999}]}):
        write_json(out / "search.json", content, True)
        with pytest.raises(BpruneError, match=r"not as it was written|has no trial 999"):
            point_of(out, 1)
    (out / "search.json").write_text("[]")
    with pytest.raises(RunError, match=r"not as it was written|does not state its SHA-256"):
        point_of(out, 1)
