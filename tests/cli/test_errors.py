"""Expected errors: exit code 2, one line on standard error, nothing on standard output, no traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Refused
from tfp_bprune.cli.main import COMMANDS, main
from tfp_bprune.exports import export
from tfp_bprune.storage import save_model


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["prune"], "the following arguments are required: RUN, --out"),
        (["train", "--out", "x", "--epochs", "many"], "invalid int value: 'many'"),
        (["train", "--out", "x", "--layers", "evil"], "invalid choice: 'evil'"),
        (["sweep", "run", "--spars", "0.5"], "unrecognized arguments"),
    ],
)
def test_wrong_words(refused: Refused, words: list[str], message: str) -> None:
    line = refused(*words)
    assert message in line
    assert "--help" in line


@pytest.mark.parametrize(
    ("error", "said"),
    [(KeyError("x"), "KeyError: 'x'"), (ValueError(), "ValueError;"), (TypeError("a\nb"), "TypeError: a;")],
)
def test_what_nobody_foresaw_is_one_line_too(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("tfp_bprune.files.runs.Run.open", fails)
    with pytest.raises(type(error)):  # as the tests have it
        main(["inspect", str(tmp_path)])
    monkeypatch.delenv("TFP_BPRUNE_TRACEBACK")
    line = refused("inspect", tmp_path)
    assert said in line
    assert "TFP_BPRUNE_TRACEBACK=1" in line


@pytest.mark.parametrize("command", ["prune", "sweep"])
@pytest.mark.parametrize("sparsity", ["1.5", "-0.1", "1", "nan"])
def test_bad_sparsity(refused: Refused, tiny_run: Path, tmp_path: Path, command: str, sparsity: str) -> None:
    out = ["--out", tmp_path / "out"] if command == "prune" else []
    assert "sparsity must be in [0, 1)" in refused(command, tiny_run, *out, f"--sparsity={sparsity}")
    assert not (tmp_path / "out").exists()


def test_a_refused_sweep_leaves_the_exports_of_the_last_one(
    refused: Refused, tiny_run: Path, copied: Callable[[Path], Path]
) -> None:
    path = copied(tiny_run)
    (path / "exports").mkdir()
    (path / "exports" / "earlier").write_text("x")
    refused("sweep", path, "--sparsity", 0.5, 1.5)
    assert (path / "exports" / "earlier").exists()


def test_a_training_that_fails_says_one_line(refused: Refused, tmp_path: Path) -> None:
    words = "train --hidden 4 --epochs 3 --learning-rate 1e30 --out"
    assert "the loss became" in refused(*words.split(), tmp_path / "out")


def test_prune_wants_one_request(refused: Refused, tiny_run: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "give either sparsity or threshold" in refused("prune", tiny_run, *out, "--criterion", "snr")
    assert "give either" in refused("prune", tiny_run, *out, "--sparsity", 0.5, "--threshold", 1)


def test_a_plain_network_has_no_signal_to_noise(refused: Refused, plain_run: Path, tmp_path: Path) -> None:
    words = ["prune", plain_run, "--sparsity", 0.5, "--criterion", "snr", "--out", tmp_path / "out"]
    assert "use criterion='magnitude'" in refused(*words)


def arguments_of(command: str, path: Path, out: Path) -> list[object]:
    """The shortest complete command on a run or export."""
    extra = {"prune": ["--sparsity", 0.5, "--out", out], "export": ["--out", out]}
    return [command, path, *extra.get(command, [])]


READERS = ("prune", "sweep", "export", "evaluate", "bench", "inspect")


@pytest.mark.parametrize("command", READERS)
def test_a_missing_run(refused: Refused, tmp_path: Path, command: str) -> None:
    line = refused(*arguments_of(command, tmp_path / "nowhere", tmp_path / "out"))
    assert f"{tmp_path / 'nowhere'} holds no run" in line


@pytest.mark.parametrize("command", [c for c in READERS if c != "bench"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing", "manifest"])
def test_a_corrupted_run(
    refused: Refused, tiny_run: Path, copied: Callable[[Path], Path], tmp_path: Path, command: str, damage: str
) -> None:
    path = copied(tiny_run)
    (file,) = (path / "weights").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "manifest":
        (path / "manifest.json").write_text('{"format": 1, "fil')
    elif damage == "missing":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content[:-9] if damage == "truncated" else content)
    line = refused(*arguments_of(command, path, tmp_path / "out"))
    expected = {"truncated": "is truncated", "changed": "does not match its SHA-256", "missing": "cannot be read"}
    assert expected.get(damage, "cannot be read as JSON") in line
    assert not (tmp_path / "out").exists()


def test_a_missing_dataset(refused: Refused, tmp_path: Path) -> None:
    words = ["train", "--dataset", "mnist", "--data-dir", tmp_path / "data", "--out", tmp_path / "out"]
    line = refused(*words)
    assert f"dataset 'mnist' is not in {tmp_path / 'data'}" in line
    assert "tfds build mnist" in line
    assert "no dataset 'no_such_thing'" in refused("train", "--dataset", "no_such_thing", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train", "prune", "export"])
def test_an_existing_folder_is_not_written_into(refused: Refused, tiny_run: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    words = arguments_of(command, tiny_run, tmp_path) if command != "train" else ["train", "--out", tmp_path]
    assert str(tmp_path) in refused(*words)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prior-scales 1 2 3", "--prior scale_mixture takes 2 --prior-scales, got 3"),
        ("--prior normal --prior-scales 1 2", "--prior normal takes 1 --prior-scales, got 2"),
        ("--prior-scales 0.1 1", "scale1 must be a finite number above scale2"),
        ("--prior-scales 1 -1", "scale2 must be a positive number"),
        ("--prior-pi 1.5", "pi must be in (0, 1), got 1.5"),
        ("--prior normal --prior-pi 0.5", "prior 'normal' does not take"),
        ("--dataset digits --task regression", "dataset 'digits' is a classification"),
        ("--model transformer", "unknown network 'transformer'"),
        ("--hidden 0", "one or more positive layer widths"),
        ("--epochs 0", "must be positive"),
        ("--learning-rate nan", "must be positive"),
        ("--batch-size 0", "batch_size must be at least 1"),
        ("--validation-fraction 1", "validation_fraction must be in [0, 1)"),
        ("--layers dropout --dropout-rate 1", "rate must be in [0, 1)"),
        ("--dataset diabetes --noise 0", "noise must be positive"),
        ("--seed -1", "seed must be at least 0"),
        ("--sparsity 1", "sparsity must be in [0, 1), got 1.0"),
    ],
)
def test_wrong_settings_of_a_training(refused: Refused, tmp_path: Path, words: str, message: str) -> None:
    assert message in refused("train", *words.split(), "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_does_not_go_on_to_another_sparsity(refused: Refused, tmp_path: Path) -> None:
    words = ["train", "--hidden", "4", "--epochs", "1", "--out", str(tmp_path / "r")]
    assert main([*words, "--sparsity", "0.9"]) == 0
    message = refused(*words, "--sparsity", "0.8", "--resume")
    assert "was started with --sparsity 0.9, got 0.8: resume it as it was started, or choose another folder" in message


def test_wrong_settings_of_an_export_and_a_bench(refused: Refused, tiny_run: Path, tmp_path: Path) -> None:
    words = ["export", tiny_run, "--predictive", "sampled", "--samples", 1, "--out", tmp_path / "out"]
    assert "samples must be at least 2" in refused(*words)
    assert "--batch and --rounds must be positive" in refused("bench", tiny_run, "--rounds", 0)
    line = refused("bench", tiny_run, "--figure", "x.pdf")
    assert "--figure writes a PNG: expected a name that ends in .png, got x.pdf" in line
    assert "--threads must be positive" in refused("bench", tiny_run, "--threads", 0)
    assert "is a run: expected a folder written by `tfp-bprune export`" in refused("bench", tiny_run)
    words = ["export", tiny_run, "--float16", "--precision", "int8", "--out", tmp_path / "out"]
    assert "float16 and precision 'int8' contradict each other: leave float16 out" in refused(*words)
    export = ["export", tiny_run, "--out", tmp_path / "out", "--no-score", "--precision"]
    assert "--precision int9: expected auto, float32, float16, int8, " in refused(*export, "int9")
    assert "--precision int8 a=int4: expected one precision, or LAYER=P for each" in refused(*export, "int8", "a=int4")
    assert "precision names the layer 'a': expected of '" in refused(*export, "a=int4")


def test_an_export_is_not_begun_without_the_data_that_was_named(
    refused: Refused, tiny_model: Any, tmp_path: Path
) -> None:
    request = {"dataset": "mnist", "validation_fraction": 0.1}
    save_model(tiny_model, tmp_path / "run", config={"request": request, "data": {"batch_size": 9, "seed": 0}})
    line = refused("export", tmp_path / "run", "--out", tmp_path / "out", "--data-dir", tmp_path / "nowhere")
    assert f"'mnist' is not in {tmp_path / 'nowhere'}" in line
    assert not (tmp_path / "out").exists()


def test_a_bench_is_of_one_dataset_and_of_data_that_is_there(refused: Refused, tiny_model: Any, tmp_path: Path) -> None:
    request = {"dataset": "mnist", "validation_fraction": 0.1}
    for name in ("a", "b"):
        data = {"name": "mnist", "fingerprint": name, "batch_size": 100, "seed": 0}
        export(tiny_model, tmp_path / name, facts={"request": request, "data": data})
    line = refused("bench", tmp_path / "a", tmp_path / "b")
    assert "the exports were trained on 2 different datasets: expected one; run bench once for each" in line
    assert "'mnist' is not in" in refused("bench", tmp_path / "a", "--data-dir", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--error-rate 0.1", "error_rate is for sampled classification, got it for mean classification: leave it out"),
        ("--predictive moments --error-rate 0.1", "got it for moments classification"),
        ("--predictive sampled --error-rate 1", "error_rate must be in (0, 1), got 1.0"),
        ("--calibrate --format litert", "--calibrate is for --format savedmodel, got litert: leave it out"),
        (
            "--calibrate temperature --no-score",
            "--calibrate temperature takes the validation split, got --no-score too",
        ),
        ("--conformal 0.9 --no-score", "--conformal takes the validation split, got --no-score too"),
        ("--rounding-loss 0.5", "rounding_loss is what precision 'auto' may lose: leave it out with 'float32'"),
        ("--precision auto --rounding-loss 0", "rounding_loss must be a positive number of nats per weight, got 0.0"),
        ("--all-int8", "--all-int8 is for --format litert or onnx, got savedmodel: leave it out"),
        ("--costs c.json --format onnx", "--costs is for --format savedmodel, got onnx: leave it out"),
        ("--costs c.json --kernels dense", "--costs is for --kernels auto, got dense, which chooses nothing"),
        ("--costs nowhere.json", "nowhere.json holds no costs of products (FileNotFoundError): expected a file that"),
        ("--no-score --data-dir x", "--data-dir is the data to score on, got --no-score too: leave one of them out"),
        ("--format litert --kernels sparse", "LiteRT has no sparse products: expected kernels 'auto' or 'dense'"),
    ],
)
def test_what_an_export_cannot_combine(
    refused: Refused, tiny_run: Path, tmp_path: Path, words: str, message: str
) -> None:
    assert message in refused("export", tiny_run, "--out", tmp_path / "out", *words.split())
    assert not (tmp_path / "out").exists()


def test_an_answer_that_cannot_be_written(refused: Refused, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "cannot write" in refused("inspect", tiny_run, "--json", tmp_path / "file" / "x.json")


def process(*words: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys\nfrom tfp_bprune.cli.main import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as ended:\n    code = ended.code\n"
        "print('tensorflow' in sys.modules, file=sys.stderr)\nsys.exit(code)"
    )
    return subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)


def test_help_and_wrong_words_do_not_wait_for_tensorflow() -> None:
    for words, code in ((["--help"], 0), (["train", "--help"], 0), (["train", "--epochs", "many"], 2)):
        start = processor_seconds()
        result = process(*words)
        assert result.returncode == code
        assert result.stderr.splitlines()[-1] == "False"
        assert processor_seconds() - start < 3  # TensorFlow alone takes longer


def processor_seconds() -> float:
    """Of ended children: what else the machine does must not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: tfp-bprune {command}" in out
    assert f"  tfp-bprune {command}" in out.split("example:")[1]


def test_the_real_program_says_one_line_too(tmp_path: Path) -> None:
    # As a process of its own: what TensorFlow prints while it loads must not reach the user either.
    words = [
        sys.executable,
        "-m",
        "tfp_bprune.cli.main",
        "export",
        str(tmp_path / "none"),
        "--out",
        str(tmp_path / "x"),
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "TF_USE_LEGACY_KERAS")}
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"tfp-bprune export: {tmp_path / 'none'} holds no run (no manifest.json): "
        "expected a folder written by `tfp-bprune train` or `prune`\n"
    )
