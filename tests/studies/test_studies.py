"""Every study on digits with its small budget, and what all of them rest on: a store that nothing is trained into twice."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import Splits
from tfp_bprune.evaluation.fresh import reload
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.exports import export
from tfp_bprune.files.runs import Run
from tfp_bprune.pruning.masks import masks_at_sparsity, sparsity_of
from tfp_bprune.pruning.prune import prune, with_masks
from tfp_bprune.pruning.select import prunable_weights
from tfp_bprune.storage import load_model
from tfp_bprune.studies.networks import Spec, is_trained, train
from tfp_bprune.studies.pool import Durations
from tfp_bprune.studies.process import environment
from tfp_bprune.studies.retrain import children_of
from tfp_bprune.studies.scoring import default_scores, mean_rows, outputs
from tfp_bprune.studies.study import Settings, gather
from tfp_bprune.studies.uncertainty import strangers
from tfp_bprune.types import BpruneError, Json, RunError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that the studies of this file share."""
    return tmp_path_factory.mktemp("networks")


def study(name: str, out: Path, store: Path, *more: object) -> Json:
    """Runs a study with tiny settings in this process and gives its JSON file."""
    words = [
        "study",
        name,
        "--budget",
        "quick",
        "--epochs",
        "2",
        "--jobs",
        "0",
        "--out",
        out,
        "--networks",
        store,
        *more,
    ]
    assert main([*map(str, words), "--json", str(out / "copy.json")]) == 0
    content = json.loads((out / f"{name}.json").read_text())
    assert content == json.loads((out / "copy.json").read_text())
    text = (out / f"{name}.md").read_text()
    for picture in out.glob(f"{name}-*.png"):
        assert f"({picture.name})" in text
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert "nan" not in text.lower().split()
    for lines in ([line.count(" | ") for line in table.splitlines()] for table in tables_in(text)):
        assert len(set(lines)) == 1  # as many cells in every line
    return content


def tables_in(text: str) -> list[str]:
    """The tables of a Markdown text, their rules left out."""
    return [
        "\n".join(p for p in part.splitlines() if "---" not in p) for part in text.split("\n\n") if part.startswith("|")
    ]


def scored(row: Json) -> bool:
    """Whether a row has what all commands call scores, in their ranges."""
    return 0 <= row["accuracy"] <= 1 and 0 <= row["ece"] <= 1 and 0 <= row["brier"] <= 2 and row["nll"] > 0


def test_compression_and_criteria_share_their_networks(tmp_path: Path, store: Path) -> None:
    found = study("compression", tmp_path, store)
    assert len(found["networks"]) == 5
    assert len(found["rows"]) == 40
    assert all(scored(row) for row in found["rows"])
    for row in found["rows"]:
        assert row["sparsity"] == pytest.approx(row["requested"], abs=1e-3)
        assert row["published"] is None  # nothing was published for digits
        assert ("sampled_nll" in row) == (row["method"] == "bbb")
    assert len(found["curves"]["digits/bbb"]["loss"]) == 2
    before = {path: path.stat().st_mtime_ns for path in store.glob("*/manifest.json")}
    ranked = study("criteria", tmp_path, store)
    assert {path: path.stat().st_mtime_ns for path in store.glob("*/manifest.json")} == before
    assert {(r["method"], r["scope"]) for r in ranked["rows"]} == {
        (m, s)
        for m in ("snr", "magnitude", "log_q0", "evidence", "kl", "nll", "elbo", "nll_size", "obd")
        for s in ("global", "layer")
    }
    [end] = ranked["end"]["digits"]
    assert 0 < end["weight"]["sparsity"] < 1
    assert all(scored(end[kind]) for kind in ("before", "weight", "unit"))
    # One prior for all: the evidence ranks as the posterior's density at 0 does.
    ranks = {m: [r["nll"] for r in ranked["rows"] if r["method"] == m] for m in ("evidence", "log_q0")}
    np.testing.assert_allclose(ranks["evidence"], ranks["log_q0"], rtol=1e-2)
    # Nothing removed is the same network, whatever it is ranked by; and SNR over all layers is what compression does.
    assert len({row["nll"] for row in ranked["rows"] if row["requested"] == 0}) == 1
    by_snr = [r["nll"] for r in ranked["rows"] if (r["method"], r["scope"]) == ("snr", "global")]
    np.testing.assert_allclose(by_snr, [r["nll"] for r in found["rows"] if r["method"] == "bbb"], rtol=1e-6)


def test_figures_in_this_process_are_those_of_an_export(tiny_run: Path, digits: Splits, tmp_path: Path) -> None:
    model, test = load_model(tiny_run).model, digits.examples("test")
    for sparsity, row in zip((0.0, 0.6), mean_rows(model, test.x, test.y, [0.0, 0.6]), strict=True):
        pruned, report = prune(model, sparsity=sparsity)
        export(pruned, tmp_path / f"{sparsity}", predictive="mean")
        [served] = reload([tmp_path / f"{sparsity}"], test.x)
        expected = of_outputs(served.outputs, test.y)
        assert row["accuracy"] == expected["accuracy"]
        assert row["nll"] == pytest.approx(expected["nll"], rel=1e-4)
        assert (row["sparsity"], row["nonzeros"]) == (report.sparsity, report.prunable - report.pruned)


def test_draws_of_a_network_without_weights_know_only_its_biases(tiny_run: Path, digits: Splits) -> None:
    model, x = load_model(tiny_run).model, digits.examples("test").x[:50]
    masks = {name: np.zeros_like(m) for name, m in masks_at_sparsity(default_scores(model), 0.0).items()}
    said = outputs(with_masks(model, masks), "sampled", x, 3)
    np.testing.assert_allclose(said["probabilities"], np.tile(said["probabilities"][:1], (50, 1)), atol=1e-6)
    np.testing.assert_allclose(said["epistemic"], 0, atol=1e-6)
    assert np.ptp(outputs(model, "sampled", x, 3)["probabilities"][:, 0]) > 0.01


_TWO_NETWORKS = """
import sys
from pathlib import Path
from tfp_bprune.studies.networks import Spec
from tfp_bprune.studies.study import Settings, gather
from tests.studies.test_studies import PAIR
gather(Settings("compression", Path(sys.argv[1]), jobs=1), PAIR, {}, study="")
"""
PAIR = [Spec("digits", hidden=(4,), layers="deterministic", epochs=e) for e in (2, 60)]


def held(run: Run) -> bool:
    """Whether another process is writing the run."""
    try:
        with run.locked():
            return False
    except RunError:
        return True


def test_a_killed_study_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    settings = Settings("compression", tmp_path, jobs=0)
    first, second = (settings.store / spec.key for spec in PAIR)
    gather(settings, PAIR[:1], {}, study="")
    stored = (first / "manifest.json").stat().st_mtime_ns
    words = [sys.executable, "-c", _TWO_NETWORKS, str(tmp_path)]
    with subprocess.Popen(words, env=environment()) as process:
        deadline = time.monotonic() + 120
        while not (second / "times.jsonl").exists() or not Run(second).exists or not Run(second).read_rows():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)  # the study alone: its worker must not live on, and hold the network
    while held(Run(second)):  # its lock goes once its memory is taken apart
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert is_trained(PAIR[0], settings.store)
    assert not is_trained(PAIR[1], settings.store)
    done = len(Run.open(second).read_rows())
    begun = [json.loads(line) for line in (second / "times.jsonl").read_text().splitlines()]
    found = gather(settings, PAIR, {}, study="")
    assert (first / "manifest.json").stat().st_mtime_ns == stored
    assert [row["epoch"] for row in found[1].history] == list(range(1, 61))
    times = Run.open(second).read_rows("times.jsonl")
    assert 1 <= done < 60
    assert times[: len(begun) - 1] == begun[:-1]  # those epochs were not trained again
    assert Run.open(second).verify()


def test_a_spec_survives_json_and_its_key_names_all_of_it() -> None:
    parent = Spec("digits", hidden=(8,), prior={"kind": "normal", "scale": 0.1})
    spec = Spec("digits", hidden=(8,), parent=parent, sparsity=0.5)
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    others = [Spec("digits"), Spec("digits", hidden=(9,)), parent, Spec("digits", seed=1), Spec("digits", epochs=3)]
    assert len({one.key for one in [spec, *others]}) == 6
    assert Spec("digits", seed=1).kind == Spec("digits", seed=2).kind != Spec("digits", epochs=2).kind


def test_time_left_is_by_the_median_of_a_kind() -> None:
    durations = Durations()
    assert durations.left(["a"], [], 1) is None
    for seconds in (10, 12, 100):
        durations.add("a", seconds)
    durations.add("b", 40)
    assert durations.left(["a", "b", "b"], [], 2) == (12 + 40 + 40) / 2
    assert durations.left([], [("b", 30.0)], 2) == 10  # one network cannot be shared by two
    assert durations.left([], [("a", 500.0)], 1) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        (["criteria", "--seeds", "-1"], "must not be negative"),
        (["criteria", "--dataset", "diabetes", "--jobs", "0"], "diabetes is a regression"),
    ],
)
def test_a_wrong_request_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["study", *words, "--out", str(tmp_path)])
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if not line.startswith("study ")]  # which is its progress
    assert (code, said.out, len(lines)) == (2, "", 1)
    assert message in said.err


def test_a_failure_is_told_after_the_others_were_finished(tmp_path: Path) -> None:
    good = Spec("digits", hidden=(4,), epochs=1)
    settings = Settings("compression", tmp_path, budget="quick", jobs=2)
    with pytest.raises(BpruneError, match=r"1 of 2 networks failed; the first, nowhere-mlp.*there is no dataset"):
        gather(settings, [Spec("nowhere", epochs=1), good], {}, study="")
    assert is_trained(good, settings.store)


def when_a_process_starts(act: Callable[[Any], None], times: int) -> threading.Thread:
    """A thread that acts on each of the next processes that this one starts."""

    def watch() -> None:
        known = set(multiprocessing.active_children())
        for _ in range(times):
            while not (new := set(multiprocessing.active_children()) - known):
                time.sleep(0.01)
            known |= new
            act(new.pop())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_process_that_dies_is_one_failure_and_the_next_task_is_begun(tmp_path: Path) -> None:
    killer = when_a_process_starts(lambda process: process.kill(), 2)
    with pytest.raises(BpruneError, match=r"2 of 2 networks failed; the first, digits-mlp.*its process was ended"):
        gather(Settings("compression", tmp_path, jobs=1), PAIR, {}, study="")
    killer.join()


def test_what_ends_a_study_ends_its_processes(tmp_path: Path) -> None:
    others = set(multiprocessing.active_children())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process that shares the tests heeds none
    try:
        when_a_process_starts(lambda process: signal.raise_signal(signal.SIGINT), 1)
        with pytest.raises(KeyboardInterrupt):
            gather(Settings("compression", tmp_path, jobs=1), PAIR, {}, study="")
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(multiprocessing.active_children()) == others


def test_a_process_is_quiet_before_tensorflow_is_there(tmp_path: Path) -> None:
    (errors := tmp_path / "errors").touch()
    script = f"""
import sys
from tfp_bprune.studies.process import begin
begin({str(errors)!r})
print("out"), print("tensorflow" in sys.modules, file=sys.stderr)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
    )
    assert (ended.stdout, ended.stderr, errors.read_text()) == ("", "", "False\n")


def test_uncertainty_says_what_each_way_of_predicting_can_know(tmp_path: Path, store: Path) -> None:
    found = study("uncertainty", tmp_path, store)
    assert {(r["method"], r["predictive"]) for r in found["rows"]} == {
        *(("sgd", "mean"), ("dropout_0.5", "mean")),
        *(("bbb", way) for way in ("mean", "moments", "sampled")),
    }
    for row in found["rows"]:
        assert scored(row)
        assert ("epistemic_right" in row) == (row["predictive"] != "mean")
        assert row["ood_auroc"] == np.mean([row["ood_auroc_entropy_noise"], row["ood_auroc_entropy_rotated"]])
    # All answered: the error rate itself.
    whole = next(r for r in found["rows"] if (r["method"], r["requested"]) == ("sgd", 0.0))
    assert found["risk"]["digits/sgd/mean/0"][-1] == pytest.approx(1 - whole["accuracy"])


def test_strange_images_are_of_the_same_shape_and_units(digits: Splits) -> None:
    x = digits.examples("test").x[:7]
    made = strangers(digits.info, x, None)
    assert {name: (images.shape, images.dtype) for name, images in made.items()} == dict.fromkeys(
        ("noise", "rotated"), (x.shape, x.dtype)
    )
    np.testing.assert_array_equal(made["rotated"][0, :, :, 0], np.rot90(x[0, :, :, 0]))
    assert 0 <= made["noise"].min() < made["noise"].max() <= x.max()


@pytest.mark.slow  # thirteen networks
def test_retraining_keeps_what_is_pruned_and_equal_time_buys_epochs(tmp_path: Path, store: Path) -> None:
    found = study("retrain", tmp_path, store)
    ways = {(r["method"], r["way"]) for r in found["rows"]}
    plain = {"none", "retrained", "gradual", "retrained_equal_time", "gradual_equal_time"}
    assert ways == {(m, w) for m in ("sgd", "dropout_0.5") for w in plain} | {
        ("bbb", w) for w in ("none", "retrained", "gradual")
    }
    for row in found["rows"]:
        assert scored(row)
        above = 0.02 if row["way"].startswith("gradual") else 1e-3  # dead weights go besides
        assert 0.9 - 1e-3 <= row["sparsity"] <= 0.9 + above, row["way"]
    assert "in percentage points" in (tmp_path / "retrain.md").read_text()


def test_gradual_pruning_goes_on_from_the_parents_sparsity(tmp_path: Path) -> None:
    parent = Spec("digits", hidden=(16,), epochs=2, sparsity=0.5)
    spec = Spec("digits", hidden=(16,), epochs=4, parent=parent, sparsity=0.8, gradual=True)
    train(spec, tmp_path, None, threads=1)
    before, after = (prunable_weights(load_model(tmp_path / s.key).model) for s in (parent, spec))
    for name, weights in after.items():
        assert not (weights.mask & ~before[name].mask).any()
    first, last = (sparsity_of({n: w.mask for n, w in found.items()}) for found in (before, after))
    assert 0.5 - 1e-3 <= first < 0.55
    assert 0.8 - 1e-3 <= last < 0.85


def test_units_leave_with_their_last_weights(tmp_path: Path) -> None:
    """The network is smaller, and has as many weights left of the whole one."""
    parent = Spec("digits", hidden=(40,), epochs=2, sparsity=0.5)
    left, units = [], []
    for shrink in (None, True):
        spec = Spec("digits", hidden=(40,), epochs=3, parent=parent, sparsity=0.98, gradual=True, shrink=shrink)
        train(spec, tmp_path, None, threads=1)
        found = prunable_weights(load_model(tmp_path / spec.key).model)
        left.append(sum(int(weights.mask.sum()) for weights in found.values()))
        units.append(next(iter(found.values())).mask.shape[1])
    whole = 64 * 40 + 40 * 10
    assert units[0] == 40 > units[1]
    assert all(0.97 < 1 - count / whole <= 0.981 for count in left), left


def test_weights_go_after_units_of_a_training_that_ended_early(tmp_path: Path) -> None:
    """The schedule of the units is that of all epochs; that of the weights begins at 0, as what is gone has left."""
    parent = Spec("digits", hidden=(40,), epochs=6, sparsity=0.5, units="evidence", prior={"kind": "ard"}, stop_after=4)
    spec = Spec("digits", hidden=(40,), epochs=3, parent=parent, prior=parent.prior, sparsity=0.7, gradual=True)
    train(spec, tmp_path, None, threads=1)
    run = Run.open(tmp_path / parent.key)
    assert [row["epoch"] for row in run.read_rows("metrics.jsonl")] == [1, 2, 3, 4]
    assert is_trained(parent, tmp_path)
    before, after = (prunable_weights(load_model(tmp_path / s.key).model) for s in (parent, spec))
    assert next(iter(before.values())).mask.shape[1] < 40
    counts = [sum(w.mask.size for w in found.values()) for found in (before, after)]
    left = sum(int(w.mask.sum()) for w in after.values())
    assert 0.65 <= 1 - left / counts[0] < 0.8
    assert counts[1] <= counts[0]


def test_equal_time_is_counted_in_the_bayesian_networks_seconds() -> None:
    parent = Spec("digits", layers="deterministic", epochs=50)
    children = children_of(parent, 0.9, 5, 2.0)
    assert children["gradual_equal_time"].epochs == 100
    assert parent.epochs + children["retrained_equal_time"].epochs == 2 * (50 + 5)
    assert children["retrained"].parent == parent
    assert set(children_of(Spec("digits"), 0.9, 5, 1.0)) == {"retrained", "gradual"}


def test_blundell_sets_errors_beside_published_ones_of_mnist_alone(tmp_path: Path, store: Path) -> None:
    found = study("blundell", tmp_path, store)
    assert {row["method"] for row in found["rows"]} == {"mixture", "normal"}
    assert all(scored(row) and row["published"] is None for row in found["rows"])
    assert {spec["prior"]["kind"] for spec in found["networks"]} == {"scale_mixture", "normal"}


def test_units_leave_and_the_rival_has_as_many_from_the_beginning(tmp_path: Path, store: Path) -> None:
    found = study("units", tmp_path, store)
    by = {(row["method"], row["cut"]): row for row in found["rows"]}
    assert set(by) == {("mixture", 0.0), ("mixture", 0.9), ("ard", 0.9), ("plain", 0.9), ("scratch", 0.0)}
    whole, ard, scratch = by["mixture", 0.0], by["ard", 0.9], by["scratch", 0.0]
    assert (whole["units"], whole["reads"]) == ([64, 64], [64, 64, 64])
    assert whole["mflops"] == pytest.approx(2e-6 * (64 * 64 + 64 * 64 + 64 * 10))
    assert ard["mflops"] <= 0.1 * whole["mflops"]
    assert scratch["units"] == ard["units"]
    assert scratch["reads"][0] == 64
    for row in found["rows"]:
        assert scored(row)
        assert 0 <= row["ood_auroc"] <= 1
        assert row["savedmodel_mean_ms_256"] > 0
        assert row["bytes"] == pytest.approx(row["savedmodel_mean_bytes"], rel=0.01)
        assert row["savedmodel_mean_bytes"] <= 1.01 * row["dense_savedmodel_mean_bytes"]
        assert ("moments_nll" in row) == (row["method"] in ("mixture", "ard"))


@pytest.mark.slow  # tracing twenty Bayesian convolutions takes a minute
def test_scale_measures_size_and_time(tmp_path: Path, store: Path) -> None:
    found = study("scale", tmp_path, store, "--epochs", 1)
    by = {(r["method"], r["granularity"], r["requested"]): r for r in found["rows"]}
    assert len(by) == 6
    for method in ("bayesian", "plain"):
        whole, weights, units = by[method, "weight", 0.0], by[method, "weight", 0.8], by[method, "unit", 0.5]
        assert weights["nonzeros"] == pytest.approx(0.2 * whole["nonzeros"], rel=0.01)
        assert units["nonzeros"] <= 0.5 * whole["nonzeros"]
        assert all(scored(row) and row["latency_ms"] > 0 for row in (whole, weights, units))
    assert len(found["snr_db"]["digits/resnet18"]) == 21
    assert "Left out" in (tmp_path / "scale.md").read_text()


def test_networks_that_a_version_before_stored_are_found() -> None:
    parent = Spec("digits", hidden=(4,), epochs=1, batch_size=300)
    child = Spec("digits", hidden=(4,), epochs=1, batch_size=300, parent=parent, sparsity=0.5)
    assert (parent.key, child.key) == ("digits-mlp-flipout-0-083c22211a06", "digits-mlp-flipout-0-5e55fb2cf926")
    before = json.loads(json.dumps(child.to_json()).replace('"layers"', '"twin"'))
    assert Spec.from_json(before) == child


def test_networks_of_a_study_are_chosen_among_its_own(tmp_path: Path) -> None:
    chosen = Settings("units", tmp_path, models=("mlp",))
    assert chosen.models_or(("lenet5", "mlp")) == ("mlp",)
    assert "--model mlp" in chosen.command
    assert Settings("units", tmp_path).models_or(("lenet5", "mlp")) == ("lenet5", "mlp")
    with pytest.raises(BpruneError, match="study 'units' has no network 'vgg16': expected some of lenet5, mlp"):
        Settings("units", tmp_path, models=("vgg16",)).models_or(("lenet5", "mlp"))
    with pytest.raises(BpruneError, match="study 'blundell' has one kind of network: leave the models out"):
        Settings("blundell", tmp_path, models=("mlp",))
