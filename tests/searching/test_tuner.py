"""Keras Tuner on Keras 2: the shim, and the three methods on a tiny budget."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tfp_bprune._keras import keras
from tfp_bprune.cli import tune as command
from tfp_bprune.cli.common import Parser
from tfp_bprune.cli.main import parser_of_all
from tfp_bprune.cli.train import _prior
from tfp_bprune.data.splits import Splits, from_arrays, load
from tfp_bprune.files.runs import unsealed
from tfp_bprune.tuning import hyper_model, keras_tuner, tune
from tfp_bprune.tuning.resuming import remove_unfinished
from tfp_bprune.tuning.tuner import _check_objective
from tfp_bprune.types import BpruneError, PriorName, RunError

_SHIM = """
import sys, types
import tfp_bprune
from tfp_bprune._keras import keras
stranger, child = types.ModuleType("keras"), types.ModuleType("keras.layers")
sys.modules["keras"], sys.modules["keras.layers"] = stranger, child
from tfp_bprune.trials._keras_tuner import keras_tuner
tuner = keras_tuner()
assert sys.modules["keras"] is stranger and sys.modules["keras.layers"] is child
assert [name for name in sys.modules if name.startswith("keras.")] == ["keras.layers"]
assert tuner.src.backend.keras.Model is keras.Model, tuner.src.backend.keras.Model
assert keras_tuner() is tuner
del sys.modules["keras"], sys.modules["keras.layers"]
print("as it was")
"""


def test_importing_keras_tuner_leaves_the_modules_as_they_were() -> None:
    result = subprocess.run([sys.executable, "-c", _SHIM], capture_output=True, text=True, check=False)
    assert (result.stdout, result.returncode) == ("as it was\n", 0), result.stderr


@pytest.mark.parametrize(("method", "trials"), [("random", 2), ("bayesian", 2), ("hyperband", None)])
def test_every_method_ends_and_goes_on(
    digits: Splits, tmp_path: Path, method: Any, trials: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    options: Any = {"method": method, "trials": trials or 0, "epochs": 2, "hidden": (4,)}
    result = tune("mlp", digits, tmp_path, **options, on_trial=seen.append)
    assert len(seen) == len(result["rows"]) >= 2
    assert result["score"] == min(row["score"] for row in result["rows"])
    assert set(result["best"]) == {
        "prior_pi",
        "prior_scale1",
        "prior_scale2",
        "initial_sigma",
        "learning_rate",
        "kl",
        "width",
    }
    assert unsealed((tmp_path / "tune.json").read_bytes(), "tune.json") == result
    capsys.readouterr()
    again = tune("mlp", digits, tmp_path, **options, on_trial=lambda row: pytest.fail("a trial was repeated"))
    assert capsys.readouterr().out == ""
    assert again["rows"] == result["rows"]
    with pytest.raises(RunError, match="differs in hidden, seed"):
        tune("mlp", digits, tmp_path, **options | {"hidden": (5,)}, seed=1)
    with pytest.raises(RunError, match="differs in data"):
        tune("mlp", load("digits", validation_fraction=0.3), tmp_path, **options)
    [oracle] = tmp_path.glob("*/oracle.json")
    oracle.write_bytes(oracle.read_bytes()[:40])
    with pytest.raises(RunError, match=r"oracle\.json cannot be read .*: delete the folder to search anew"):
        tune("mlp", digits, tmp_path, **options)


def test_what_a_kill_left_of_a_checkpoint_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left, outside = tmp_path / "random" / "trial_0" / "checkpoint_temp", tmp_path / "outside" / "x_temp"
    kept = [
        tmp_path / "random" / "trial_0" / "checkpoint.index",
        tmp_path / "random" / "other_temp" / "x",
        outside / "mine",
    ]
    for file in (*kept, left / "part-00000-of-00001.data-00000-of-00001.tempstate1"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    (tmp_path / "random" / "trial_1").symlink_to(tmp_path / "outside")  # links are not followed
    (tmp_path / "random" / "trial_0" / "y_temp").symlink_to(outside)
    remove_unfinished(tmp_path / "random")
    assert not left.exists()
    assert all(file.exists() for file in kept)
    remove_unfinished(tmp_path / "nowhere")


def test_networks_without_a_prior_are_refused(digits: Splits) -> None:
    with pytest.raises(BpruneError, match="has no prior to tune"):
        hyper_model("mlp", digits, layers="dropout")
    with pytest.raises(BpruneError, match="unknown method"):
        tune("mlp", digits, Path("unused"), method="grid")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"hidden": (0,)}, "hidden widths must be at least 1, got 0"),
        (
            {"objective": "val_mse"},
            "unknown objective 'val_mse' of a classification: expected one of val_loss, val_nll",
        ),
        ({"network": "nosuch"}, "unknown network 'nosuch'"),
        ({"prior": "flat"}, "unknown prior 'flat' to tune: expected one of scale_mixture, normal, ard"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_the_first_trial(
    digits: Splits, tmp_path: Path, options: Any, message: str
) -> None:
    with pytest.raises(BpruneError, match=message):
        tune(**{"network": "mlp", "data": digits, "out": tmp_path / "out"} | options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prior", get_args(PriorName))
def test_every_prior_is_tuned_and_the_command_trains_with_what_was_found(digits: Splits, prior: Any) -> None:
    values = keras_tuner().HyperParameters()
    model = hyper_model("mlp", digits, hidden=(4,), prior=prior).build(values)
    arguments = parser_of_all().parse_args(["tune", "--prior", prior, "--out", "tuned"])
    result = {"layers": "flipout", "policy": "float32", "best": values.values}
    words = command._command(arguments, result).split()
    assert "--policy" not in words
    asked = vars(parser_of_all().parse_args(words[1:]))
    found = model.get_layer("dense_1").prior.get_config()
    assert found["kind"] == prior
    for name, value in _prior(asked).items():
        assert found[name] == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
    assert {name for name in values.values if name.startswith("prior_")} == {
        f"prior_{name}" for name in _prior(asked) if name != "kind"
    }


def test_the_command_trains_in_the_policy_of_the_search(digits: Splits) -> None:
    values = keras_tuner().HyperParameters()
    hyper_model("mlp", digits, hidden=(4,)).build(values)
    arguments = parser_of_all().parse_args(["tune", "--out", "tuned"])
    result = {"layers": "flipout", "policy": "mixed_bfloat16", "best": values.values}
    asked = vars(parser_of_all().parse_args(command._command(arguments, result).split()[1:]))
    assert (asked["policy"], asked["layers"]) == ("mixed_bfloat16", "flipout")


def test_a_promoted_candidate_keeps_its_schedule(digits: Splits) -> None:
    """The second round of a candidate goes on where the first ended: its KL does not fall back."""
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(float(self.model.get_layer("dense_1").kl_schedule))

    hyper, values = hyper_model("mlp", digits, epochs=8, hidden=(4,)), keras_tuner().HyperParameters()
    model = hyper.build(values)
    hyper.fit(values, model, epochs=2, callbacks=[Watch()])
    hyper.fit(values, model, epochs=4, initial_epoch=2, callbacks=[Watch()])
    assert seen == sorted(seen)
    assert seen[2 * digits.steps - 1] < 1 == seen[-1]


_STRANGER = """
import keras, keras_tuner as stranger
import tfp_bprune
from tfp_bprune.tuning import keras_tuner
try:
    keras_tuner()
except tfp_bprune.types.BpruneError as error:
    print(error)
"""


def test_a_tuner_of_another_keras_is_refused() -> None:
    result = subprocess.run([sys.executable, "-c", _STRANGER], capture_output=True, text=True, check=False)
    assert result.stdout.startswith("keras_tuner was imported for another Keras: replace"), result.stderr


@pytest.mark.parametrize(
    ("task", "objective"), [("regression", "val_mse"), ("multilabel", "val_accuracy"), ("binary", "val_loss")]
)
def test_objectives_are_those_of_the_task(task: Any, objective: str) -> None:
    x = np.arange(80.0).reshape(40, 2)
    y = {"regression": x[:, 0], "multilabel": np.ones((40, 3), int), "binary": x[:, 0] > 40}[task]
    data = from_arrays((x, y), (x, y), task=task)
    _check_objective(objective, data)
    other = "val_accuracy" if task == "regression" else "val_mse"
    with pytest.raises(BpruneError, match=f"unknown objective '{other}' of a {task}"):
        _check_objective(other, data)


def test_the_command_takes_the_objective_of_a_regression(tmp_path: Path) -> None:
    parser = Parser()
    command.add_arguments(parser)
    assert parser.parse_args(["--objective", "val_mse", "--out", str(tmp_path)]).objective == "val_mse"
