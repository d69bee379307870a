"""Keras Tuner on Keras 2: the shim, and the three methods on a tiny budget."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tfp_bprune.data import Splits
from tfp_bprune.search import hyper_model, tune
from tfp_bprune.types import BpruneError, RunError

_SHIM = """
import sys, types
import tfp_bprune
from tfp_bprune._keras import keras
stranger, child = types.ModuleType("keras"), types.ModuleType("keras.layers")
sys.modules["keras"], sys.modules["keras.layers"] = stranger, child
from tfp_bprune.search._keras_tuner import keras_tuner
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
def test_every_method_ends_and_goes_on(digits: Splits, tmp_path: Path, method: Any, trials: int | None) -> None:
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
    assert json.loads((tmp_path / "tune.json").read_text()) == result
    again = tune("mlp", digits, tmp_path, **options, on_trial=lambda row: pytest.fail("a trial was repeated"))
    assert again["rows"] == result["rows"]
    with pytest.raises(RunError, match="another hidden, seed"):
        tune("mlp", digits, tmp_path, **options | {"hidden": (5,)}, seed=1)


def test_networks_without_a_prior_are_refused(digits: Splits) -> None:
    with pytest.raises(BpruneError, match="has no prior to tune"):
        hyper_model("mlp", digits, twin="dropout")
    with pytest.raises(BpruneError, match="unknown method"):
        tune("mlp", digits, Path("unused"), method="grid")  # type: ignore[arg-type]
