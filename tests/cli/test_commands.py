"""Every command from end to end, on small runs, in this process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tfp_bprune.cli import demo, sweep
from tfp_bprune.cli.bench import labels_of
from tfp_bprune.cli.common import facts_of
from tfp_bprune.cli.main import main
from tfp_bprune.data.splits import load
from tfp_bprune.evaluation import reload
from tfp_bprune.evaluation.metrics import of_outputs
from tfp_bprune.exports import export
from tfp_bprune.files.runs import Run
from tfp_bprune.layers import variational_layers
from tfp_bprune.prediction import cost
from tfp_bprune.reports import sweep_table
from tfp_bprune.storage import load_model, save_model
from tfp_bprune.training import Settings, fit

Answer = Callable[..., dict[str, Any]]
QUALITY = {"accuracy", "nll", "ece", "brier", "entropy"}
COST = {"bytes", "latency_ms", "throughput"}


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Runs a command with `--json -` and returns its one object; anything else on standard output fails."""

    def run(*words: object) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, words), "--json", "-"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        result = json.loads(lines[0], parse_constant=refuse)
        assert isinstance(result, dict)
        return result

    return run


@pytest.fixture(scope="module")
def swept(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tiny run swept once; `path` says where."""
    path = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("swept") / "run"))
    words = ["sweep", str(path), "--sparsity", "0", "0.9", "--samples", "4", "--json", str(path / "answer.json")]
    assert main(words) == 0
    return json.loads((path / "answer.json").read_text()) | {"path": path}


def test_train(answer: Answer, tmp_path: Path) -> None:
    words = "train --dataset digits --layers dropout --hidden 8 --batch-size 300 --epochs 1 --seed 4 --out"
    result = answer(*words.split(), tmp_path / "run")
    assert result["run"] == str(tmp_path / "run")
    assert (result["epochs"], len(result["history"])) == (1, 1)
    assert {"epoch", "loss", "nll", "accuracy", "val_nll", "val_accuracy"} <= set(result["history"][0])
    run = Run.open(tmp_path / "run")
    assert {"config.json", "metrics.jsonl", "history.png"} <= set(run.verify())
    assert (run.manifest["seed"], run.manifest["kind"]) == (4, "run")
    assert run.config["request"]["layers"] == "dropout"


def test_train_writes_kl_by_layer(tiny_run: Path) -> None:
    for row in Run.open(tiny_run).read_rows():
        assert row["kl/dense_1"] > 0
        assert row["kl/logits"] > 0


def test_prune(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    result = answer("prune", tiny_run, "--sparsity", 0.75, "--scope", "layer", "--out", tmp_path / "out")
    kernels = 64 * 16 + 16 * 10
    assert (result["prunable"], result["nonzeros"]) == (kernels, kernels // 4)
    assert result["sparsity"] == 0.75
    saved = load_model(tmp_path / "out")
    assert saved.manifest["pruning"]["scope"] == "layer"
    assert saved.manifest["data"] == Run.open(tiny_run).manifest["data"]
    assert np.count_nonzero(saved.model.get_layer("logits").kernel_posterior.mask) == 40
    inspected = answer("inspect", tmp_path / "out")
    assert inspected["bytes"] < inspected["dense_bytes"] / 2
    again = answer("prune", tmp_path / "out", "--threshold", 1e9, "--include-bias", "--out", tmp_path / "none")
    assert (again["nonzeros"], again["threshold"]) == (0, None)


def test_prune_without_a_sparsity_ends_by_the_evidence(
    answer: Answer, mlp: Callable[..., Any], plain_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(mlp(rho_init=-6.0), tmp_path / "narrow")
    result = answer("prune", tmp_path / "narrow", "--out", tmp_path / "out")
    assert (result["criterion"], result["requested"]) == ("evidence", {"criterion": "evidence"})
    assert 0 < result["sparsity"] < 1
    manifest = answer("export", tmp_path / "out", "--out", tmp_path / "export")
    assert manifest["nonzeros"] == result["nonzeros"]
    for words, said in (
        (["prune", plain_run], "plain weights have no evidence"),
        (["prune", tmp_path / "narrow", "--criterion", "snr"], "criterion 'snr' cannot choose the sparsity"),
        (["sweep", plain_run, "--criterion", "evidence"], "plain Keras layers have no prior"),
        (["search", plain_run, "--criterion", "evidence"], "plain Keras layers have no prior"),
    ):
        more = ["--out", tmp_path / "none"] if words[0] != "sweep" else []
        assert main([str(word) for word in (*words, *more)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def kernels_of(run: Path) -> np.ndarray:
    """All kernels of a stored network, joined; for distributions their means."""
    layers = (load_model(run).model.get_layer(name) for name in ("dense_1", "logits"))
    found = (q.loc if (q := getattr(layer, "kernel_posterior", None)) else layer.kernel for layer in layers)
    return np.concatenate([kernel.numpy().ravel() for kernel in found])


def assert_the_smallest_half_is_gone(before: Path, after: Path) -> None:
    """Where all scales are equal, or there are none, both criteria remove the smallest means, and change no other."""
    old, new = kernels_of(before), kernels_of(after)
    expected = np.where(np.abs(old) > np.median(np.abs(old)), old, 0)
    np.testing.assert_array_equal(new, expected)


def test_prune_takes_models_that_were_saved_by_hand(answer: Answer, mlp: Callable[..., Any], tmp_path: Path) -> None:
    model = mlp()
    for layer in variational_layers(model):
        layer.kernel_posterior.rho_variable.assign(np.full(layer.kernel_posterior.shape, -3.0))
    save_model(model, tmp_path / "run", config={})
    assert answer("prune", tmp_path / "run", "--sparsity", 0.5, "--out", tmp_path / "out")["sparsity"] == 0.5
    assert_the_smallest_half_is_gone(tmp_path / "run", tmp_path / "out")


def test_prune_of_a_plain_network(answer: Answer, plain_run: Path, tmp_path: Path) -> None:
    words = ["prune", plain_run, "--sparsity", 0.5, "--criterion", "magnitude", "--out", tmp_path / "out"]
    assert answer(*words)["sparsity"] == 0.5
    assert_the_smallest_half_is_gone(plain_run, tmp_path / "out")


def test_a_run_of_python_knows_how_its_data_is_loaded(answer: Answer, mlp: Callable[..., Any], tmp_path: Path) -> None:
    data = load("digits", batch_size=200, validation_fraction=0.3, seed=5)
    fit(mlp(), data, settings=Settings(epochs=1), out=tmp_path / "run", progress=False)
    result = answer("evaluate", tmp_path / "run", "--split", "valid")
    assert (result["dataset"], result["split"]) == ("digits", "valid")
    export(load_model(tmp_path / "run").model, tmp_path / "export")
    [found] = reload([tmp_path / "export"], data.examples("valid").x)
    assert result["nll"] == pytest.approx(of_outputs(found.outputs, data.examples("valid").y)["nll"], rel=1e-6)


def test_prune_by_unit_with_batch_normalization_measured_anew(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    words = ["prune", tiny_run, "--sparsity", 0.5, "--granularity", "unit", "--aggregate", "norm"]
    result = answer(*words, "--recalibrate", "mean", "--out", tmp_path / "out")
    mask = load_model(tmp_path / "out").model.get_layer("dense_1").kernel_posterior.mask.numpy()
    assert (mask.all(0) | ~mask.any(0)).all()  # whole neurons
    assert result["sparsity"] >= 0.5
    assert result["granularity"] == "unit"


def test_a_sweep_by_unit_has_files_of_its_own(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    words = ["sweep", path, "--sparsity", 0.5, "--samples", 2, "--granularity", "unit", "--recalibrate"]
    (row,) = answer(*words)["rows"]
    assert (row["granularity"], row["recalibrated"]) == ("unit", True)
    assert {"sweep-unit-recalibrated.json", "sweep-unit-recalibrated.png"} <= set(Run.open(path).verify())
    assert not (path / "sweep.json").exists()


def test_a_sweep_in_few_bits_has_files_of_its_own(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for words, name in ((["int4"], "sweep-int4"), (["logits=int8"], "sweep-mixed")):
        (row,) = answer("sweep", path, "--sparsity", 0.5, "--samples", 2, "--precision", *words)["rows"]
        exported = [Run.open(path / place).manifest for place in row["exports"].values()]
        assert {layer.get("precision", "float32") for made in exported for layer in made["layers"].values()} >= {
            words[0].split("=")[-1]
        }
        assert {f"{name}.json", f"{name}.png"} <= set(Run.open(path).verify())
    assert not (path / "sweep.json").exists()


def test_a_sweep_hands_on_what_rounding_may_lose(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    words = ["sweep", path, "--sparsity", 0.5, "--samples", 2, "--precision", "auto", "--rounding-loss", 0.5]
    (row,) = answer(*words)["rows"]
    exported = [Run.open(path / place).manifest for place in row["exports"].values()]
    assert [made["rounding_loss"] for made in exported] == [0.5] * 2
    assert {"sweep-auto-0.5.json", "sweep-auto-0.5.png"} <= set(Run.open(path).verify())


def test_all_int8_means_weights_in_int8(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    made = answer("export", tiny_run, "--out", tmp_path / "served", "--format", "litert", "--all-int8", "--no-score")
    assert made["precision"] == "int8"
    assert {layer["precision"] for layer in made["layers"].values()} == {"int8"}


@pytest.mark.parametrize("word", ["layers", "twin"])
def test_a_run_says_how_its_weights_are_inferred_in_words_of_before_too(word: str) -> None:
    config = {"request": {"model": "mlp", word: "local"}, "data": {"name": "digits", "seed": 3}}
    assert facts_of(config) == {"network": "mlp", "inference": "local", "dataset": "digits", "seed": 3}


def test_sweep_measures_a_row_a_sparsity(swept: dict[str, Any]) -> None:
    rows = swept["rows"]
    assert [row["requested"] for row in rows] == [0.0, 0.9]
    assert [round(row["sparsity"], 2) for row in rows] == [0.0, 0.9]
    sampled = {f"sampled_{key}" for key in (*QUALITY, *COST, "epistemic", "aleatoric")}
    facts = {"network": "mlp", "inference": "flipout", "dataset": "digits", "seed": 0, "method": "snr"}
    for row in rows:
        assert {*QUALITY, *COST, *sampled, "nonzeros", "parameters", "prunable", "exports"} <= set(row)
        assert facts.items() <= row.items()
        assert set(row["latency_ms"]) == {"1", "32", "256"}
        assert all(ms > 0 for ms in row["latency_ms"].values())
        assert row["throughput"]["32"] == pytest.approx(32e3 / row["latency_ms"]["32"])
        assert row["nonzeros"] == row["prunable"] - round(row["requested"] * row["prunable"])
    assert rows[0]["accuracy"] > 0.15
    assert rows[1]["bytes"] < rows[0]["bytes"]


def test_sweep_leaves_its_results_in_the_run(swept: dict[str, Any], tiny_run: Path) -> None:
    run = Run.open(swept["path"])
    assert {"sweep.json", "sweep.png", *Run.open(tiny_run).manifest["files"]} <= set(run.verify())
    assert json.loads(run.read("sweep.json"))["rows"] == swept["rows"]
    assert run.read("sweep.png").startswith(b"\x89PNG")
    scores = swept["scores"]
    assert len(scores["edges_db"]) == len(scores["counts"]) + 1
    assert sum(scores["counts"]) <= 64 * 16 + 160
    assert len(scores["cuts_db"]) == 2
    assert sweep_table(swept).row_count == 2
    for row in swept["rows"]:
        for place in row["exports"].values():
            assert Run.open(place).verify()


def test_evaluate_of_an_export_repeats_its_row(answer: Answer, swept: dict[str, Any]) -> None:
    row = swept["rows"][1]
    result = answer("evaluate", row["exports"]["mean"])
    assert {key: result[key] for key in QUALITY} == pytest.approx({key: row[key] for key in QUALITY}, rel=1e-5)
    assert (result["dataset"], result["split"], result["predictive"]) == ("digits", "test", "mean")


def test_evaluate_of_a_run(answer: Answer, tiny_run: Path) -> None:
    words = ["evaluate", tiny_run, "--split", "valid", "--predictive", "sampled", "--samples", 3]
    result = answer(*words)
    assert {*QUALITY, "epistemic", "aleatoric", "sparsity", "nonzeros", "bytes"} <= set(result)
    assert (result["split"], result["predictive"], result["sparsity"]) == ("valid", "sampled", 0)
    assert answer("evaluate", tiny_run, "--predictive", "moments")["predictive"] == "moments"


def test_bench(answer: Answer, swept: dict[str, Any]) -> None:
    exports = list(swept["rows"][1]["exports"].values())
    result = answer("bench", *exports, "--batch", 1, 5, "--rounds", 3)
    assert {"processor", "cores", "system"} <= set(result["machine"])
    assert [(row["export"], row["batch"]) for row in result["rows"]] == [(e, b) for e in exports for b in (1, 5)]
    assert all(0 < row["latency_ms"] <= row["p95_ms"] for row in result["rows"])
    assert (result["inputs"], result["threads"]) == ("test split of digits", len(os.sched_getaffinity(0)))
    of_sweep = {key: swept["rows"][1][key] for key in QUALITY}
    assert {key: result["rows"][0][key] for key in QUALITY} == pytest.approx(of_sweep, rel=1e-5)


def test_bench_without_the_data_takes_random_inputs(
    answer: Answer, tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(tiny_model, tmp_path / "bare")
    words = ["bench", tmp_path / "bare", "--batch", 2, "--rounds", 2, "--figure", tmp_path / "picture.png"]
    result = answer(*words)
    assert result["inputs"] == "random"
    assert "accuracy" not in result["rows"][0]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr()
    assert "inputs: random" in said.out
    assert "nothing is scored: the run does not record how to load its data" in said.err


def test_labels_are_short_and_differ() -> None:
    assert labels_of([Path("x/a"), Path("y/b")]) == ["a", "b"]
    assert labels_of([Path("runs/x/a"), Path("runs/y/a")]) == ["x/a", "y/a"]
    assert labels_of([Path("a"), Path("x/a")]) == ["a", "x/a"]


def test_export_and_inspect(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "served"
    made = answer(
        "export", tiny_run, "--out", out, "--predictive", "sampled", "--samples", 3, "--seed", 5, "--no-score"
    )
    assert (made["samples"], made["draw_seed"], made["dataset"]) == (3, 5, "digits")
    assert made["seed"] == 0  # the training's
    seen = answer("inspect", out)
    assert (seen["verified"], seen["kind"]) == (len(made["files"]), "export")
    assert answer("inspect", tiny_run)["kind"] == "run"


def test_an_export_in_few_bits(
    answer: Answer, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = answer("export", tiny_run, "--out", tmp_path / "auto", "--precision", "auto")
    first, second = made["layers"]
    assert {layer["precision"] for layer in made["layers"].values()} <= {f"int{bits}" for bits in range(2, 9)}
    assert made["precision_cost"]["rounded"]["accuracy"] >= made["precision_cost"]["float32"]["accuracy"] - 0.003
    assert made["payload_bytes"] < made["bytes"]
    mixed = answer("export", tiny_run, "--out", tmp_path / "mixed", "--no-score", "--precision", f"{second}=int8")
    assert [layer["precision"] for layer in mixed["layers"].values()] == ["float32", "int8"]
    assert answer("evaluate", tmp_path / "auto")["accuracy"] > 0.3
    rows = answer("bench", tmp_path / "auto", tmp_path / "mixed", "--batch", 1, "--rounds", 1)["rows"]
    assert rows[1]["precision"] == "mixed"
    assert main(["inspect", str(tmp_path / "mixed")]) == 0
    said = capsys.readouterr().out
    assert f"{first}: " in said
    assert "removed, int8)" in said


def test_an_export_from_moments_and_one_of_settled_draws(answer: Answer, tiny_run: Path, tmp_path: Path) -> None:
    made = answer("export", tiny_run, "--out", tmp_path / "moments", "--predictive", "moments")
    assert made["predictive"] == "moments"
    assert {*QUALITY, "epistemic", "aleatoric"} <= set(made["scores"])
    distance = made["moments_vs_draws"]
    assert distance == Run.open(tmp_path / "moments").manifest["moments_vs_draws"]
    assert (distance["examples"], distance["draws"]) == (144, 200)
    assert distance["probability"] < 0.05  # .02 is what 200 draws leave of a probability of .9
    words = ["--predictive", "sampled", "--samples", 20, "--error-rate", 0.1, "--no-score"]
    made = answer("export", tiny_run, "--out", tmp_path / "settled", *words)
    assert (made["samples"], made["error_rate"]) == (20, 0.1)


def test_an_export_says_how_it_multiplies_and_by_which_costs(
    answer: Answer, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Where a stored entry costs next to nothing, sparse is always the faster form; measuring is not what is tested here.
    cheap = cost.Costs(sparse_call=1e-9, entry=1e-9, entry_each=1e-9, turn=1e-9, csr_call=1.0)
    monkeypatch.setattr(cost, "measure", lambda: cheap)
    file = tmp_path / "costs.json"
    made = answer("export", tiny_run, "--out", tmp_path / "measured", "--no-score", "--calibrate", "--costs", file)
    assert made["costs"] == asdict(cheap) == asdict(cost.read(file))
    assert {name: layer["form"] for name, layer in made["layers"].items()} == {"dense_1": "sparse", "logits": "sparse"}
    assert made["layers"]["dense_1"]["break_even"].keys() == {"1", "256"}
    again = answer("export", tiny_run, "--out", tmp_path / "read", "--no-score", "--costs", file)
    assert again["costs"] == made["costs"]
    shipped = answer("export", tiny_run, "--out", tmp_path / "shipped", "--no-score")
    assert (shipped["costs"], shipped["layers"]["dense_1"]["form"]) == (asdict(cost.Costs()), "dense")
    assert main(["export", str(tiny_run), "--out", str(tmp_path / "x"), "--no-score", "--costs", str(file)]) == 0
    said = capsys.readouterr()
    assert "sparse is faster, batch 256" in said.out
    assert "always" in said.out


def test_an_export_is_calibrated(
    answer: Answer, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--calibrate", "temperature", "--conformal", 0.8]
    made = answer("export", tiny_run, "--out", tmp_path / "sets", *words)
    assert made["calibration"]["after"]["nll"] <= made["calibration"]["before"]["nll"]
    assert made["conformal"]["level"] == 0.8
    assert 1 <= made["scores"]["set_size"] <= 10
    assert "set_coverage" in answer("evaluate", tmp_path / "sets")
    assert main(["export", str(tiny_run), "--out", str(tmp_path / "shown"), *map(str, words)]) == 0
    said = capsys.readouterr().out
    assert "conformal: holds the right answer with probability 0.8 or more (LAC, " in said
    assert "temperature " in said


def test_an_export_records_what_it_scores(
    answer: Answer, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer("prune", tiny_run, "--sparsity", 0.5, "--out", tmp_path / "pruned")
    made = answer("export", tmp_path / "pruned", "--out", tmp_path / "out")
    assert made == {"export": str(tmp_path / "out"), **Run.open(tmp_path / "out").manifest}
    assert set(Run.open(tmp_path / "out").verify()) == set(made["files"])
    scores = answer("evaluate", tmp_path / "out", "--split", "valid")
    assert {key: made["scores"][key] for key in QUALITY} == pytest.approx({key: scores[key] for key in QUALITY})
    assert (made["scores"]["split"], made["scores"]["examples"]) == ("valid", 144)
    assert set(made["latency_ms"]) == {"1", "32", "256"}
    assert (made["threads"], set(made["machine"])) == (
        len(os.sched_getaffinity(0)),
        {"processor", "cores", "system"},
    )
    last = Run.open(tiny_run).read_rows()[-1]
    assert made["before"] == {"split": "valid", "epoch": 2, "accuracy": last["val_accuracy"], "nll": last["val_nll"]}
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert f"scores on the valid split: accuracy {made['scores']['accuracy']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "the export is not scored: the run does not record how to load its data"),
        (
            {
                "request": {"dataset": "mnist", "data_dir": "/nowhere", "validation_fraction": 0.1},
                "data": {"batch_size": 9, "seed": 0, "fingerprint": ""},
            },
            "the export is not scored: dataset 'mnist' is not in /nowhere",
        ),
    ],
)
def test_an_export_without_data_at_hand_is_not_scored(
    mlp: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], said: str
) -> None:
    save_model(mlp(), tmp_path / "run", config=config)
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert "scores" not in Run.open(tmp_path / "out").manifest


@pytest.mark.parametrize("file_format", ["onnx", "litert"])
def test_another_format_is_exported_then_scored_and_timed(
    answer: Answer, tiny_run: Path, tmp_path: Path, file_format: str
) -> None:
    out = tmp_path / "served"
    made = answer("export", tiny_run, "--out", out, "--format", file_format, "--no-score")
    assert made["export_format"] == file_format
    assert answer("evaluate", out)["nll"] == pytest.approx(answer("evaluate", tiny_run)["nll"], rel=1e-4)
    (row,) = answer("bench", out, "--batch", 2, "--rounds", 2, "--threads", 1)["rows"]
    assert (row["format"], row["bytes"]) == (file_format, made["bytes"])
    assert row["payload_bytes"] == answer("evaluate", out)["payload_bytes"] == made["payload_bytes"] < made["bytes"]


def test_a_regression_from_training_to_table(
    answer: Answer, regression_run: Path, copied: Callable[[Path], Path]
) -> None:
    (row,) = answer("sweep", copied(regression_run), "--sparsity", 0.5, "--samples", 3)["rows"]
    assert {"rmse", "nll", "coverage", "noise_std", "sampled_weights_std"} <= set(row)
    assert 0 < row["rmse"] < 200


def test_a_sweep_of_a_plain_network_has_no_sampled_prediction(
    answer: Answer, plain_run: Path, copied: Callable[[Path], Path]
) -> None:
    (row,) = answer("sweep", copied(plain_run), "--sparsity", 0.5)["rows"]
    assert row["method"] == "magnitude"
    assert not any(key.startswith("sampled_") for key in row)


def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    brief = {"256": "16", "100": "1"}
    assert set(brief) <= set(demo._SETTINGS)
    monkeypatch.setattr(demo, "_SETTINGS", [brief.get(word, word) for word in demo._SETTINGS])
    monkeypatch.setattr(sweep, "_DEFAULT", [0.5])


def test_demo(answer: Answer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shortened(monkeypatch)
    assert len(answer("demo", "--out", tmp_path / "demo")["rows"]) == 1
    (tmp_path / "demo" / "stranger").write_text("from an earlier demo")
    monkeypatch.setattr(demo.sweep_command, "sweep_run", lambda *_: {"rows": []})
    answer("demo", "--out", tmp_path / "demo")
    assert not (tmp_path / "demo" / "stranger").exists()


def test_demo_replaces_only_demos(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tiny_run)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    Run.open(tiny_run).verify()


@pytest.mark.slow
def test_the_whole_demo_keeps_its_promise(answer: Answer, tmp_path: Path) -> None:
    rows = answer("demo", "--out", tmp_path / "demo")["rows"]
    assert rows[0]["accuracy"] > 0.9
    assert max(row["sparsity"] for row in rows if row["accuracy"] >= rows[0]["accuracy"] - 0.02) >= 0.9
    small = next(row for row in rows if row["requested"] == 0.9)
    assert small["bytes"] < rows[0]["bytes"] / 3
    assert small["latency_ms"]["256"] < rows[0]["latency_ms"]["256"]
    assert rows[0]["sampled_ece"] < 0.04  # a wide posterior had .06


def test_people_read_sentences(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["prune", str(tiny_run), "--sparsity", "0.5", "--out", str(tmp_path / "out")]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "removed 592 of 1184 weights (50.00 %)" in out
    assert "all match their SHA-256" in out
    assert f"next: tfp-bprune export {tmp_path / 'out'}" in out


def test_json_goes_into_a_file(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_run), "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["kind"] == "run"
    assert "all match" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_image_datasets_are_trained_on(answer: Answer, tmp_path: Path, name: str) -> None:
    folder = Path(os.environ.get("TFDS_DATA_DIR", "/nowhere"))
    if not (folder / name).is_dir():
        pytest.skip(f"{name} is not prepared: set TFDS_DATA_DIR to the folder that holds it")
    words = ["train", "--dataset", name, "--hidden", 32, "--epochs", 1, "--out", tmp_path / "run"]
    (row,) = answer(*words)["history"]
    # One epoch of a small network: far from good, but no longer guessing among ten classes.
    assert row["val_accuracy"] > 0.2
