"""Networks that compute in 16 bits: what of them does, what of them never does, and that runs and searches keep to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.cli.main import main, parser_of_all
from tfp_bprune.data.splits import Info, Splits
from tfp_bprune.files.runs import CONFIG, Run, json_to_bytes
from tfp_bprune.layers import GaussianOutput, variational_layers
from tfp_bprune.networks import build
from tfp_bprune.networks.build import NETWORKS
from tfp_bprune.storage import load_model
from tfp_bprune.training import compile_model
from tfp_bprune.tuning import tune
from tfp_bprune.types import BpruneError, Policy, RunError

MIXED = ("mixed_bfloat16", "mixed_float16")
ROUNDING = {"mixed_bfloat16": 2.0**-8, "mixed_float16": 2.0**-11}
TRAIN = ["train", "--hidden", "8", "--epochs", "1", "--validation-fraction", "0.2", "--batch-size", "400", "--out"]
TUNE: dict[str, Any] = {"method": "random", "trials": 1, "epochs": 1, "hidden": (4,)}


@pytest.fixture(autouse=True)
def _global_policy() -> Iterator[None]:
    """Keras's global policy is float32 before and after every test."""
    assert keras.mixed_precision.global_policy().name == "float32"
    yield
    left = keras.mixed_precision.global_policy().name
    keras.mixed_precision.set_global_policy("float32")
    assert left == "float32"


def policies_of(model: Any) -> dict[str, str]:
    return {layer.name: layer.dtype_policy.name for layer in model.layers}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("policy", get_args(Policy))
def test_all_layers_of_a_network_compute_in_its_policy_but_the_one_that_reads_raw_units(name: str, policy: Any) -> None:
    info = Info(name, "classification", (32, 32, 3), 10)
    options = {"hidden": (3,)} if name == "mlp" else {"width": 0.02}
    found = policies_of(build(name, info, policy=policy, options=options))
    assert (found.pop("inputs"), found.pop("rescaling")) == ("float32", "float32")
    assert set(found.values()) == {policy}


def test_a_network_of_its_own_policy_has_it_under_any_global_one_which_stays(mlp: Any) -> None:
    usual = mlp()
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        assert mlp(policy="float32").get_config() == usual.get_config()
        assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"
        under = mlp()
        with pytest.raises(BpruneError, match="one or more positive layer widths"):
            mlp(policy="mixed_float16", hidden=())
        assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert mlp(policy="mixed_bfloat16").get_config() == under.get_config() != usual.get_config()


@pytest.mark.parametrize(
    ("policy", "more"),
    [("float64", ""), ("float16", ""), ("bfloat16", ""), ("mixed_bflaot16", "; did you mean 'mixed_bfloat16'?")],
)
def test_other_policies_are_refused(mlp: Any, digits: Splits, tmp_path: Path, policy: Any, more: str) -> None:
    said = f"unknown policy '{policy}'.*: expected one of float32, mixed_bfloat16, mixed_float16"
    with pytest.raises(BpruneError, match=said) as error:
        mlp(policy=policy)
    assert more in str(error.value)
    with pytest.raises(BpruneError, match=said):
        tune("mlp", digits, tmp_path / "out", policy=policy)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("policy", MIXED)
def test_numbers_that_lie_far_from_0_are_not_rounded_to_16_bits(policy: Any) -> None:
    """Features of 5,000 +- 1 and targets of 2,000 +- 3: bfloat16 has steps of 32 and 8 there."""
    random = np.random.default_rng(0)
    x = (5000 + random.normal(size=(300, 4))).astype("float32")
    y = 2000 + 3 * np.tanh(x[:, 0] - 5000)
    info = bp.from_arrays((x, y), (x, y), batch_size=50).info
    wide, narrow = (
        build("mlp", info, layers="deterministic", policy=one, options={"hidden": (16,)}) for one in ("float32", policy)
    )
    expected, found = wide(x).numpy(), narrow(x)
    assert found.dtype == tf.float32
    spread = expected[:, 0].std()
    assert spread > 1
    assert np.abs(found[:, 0] - expected[:, 0]).max() < 8 * ROUNDING[policy] * spread
    np.testing.assert_array_equal(found[:, 1], expected[:, 1])  # the noise
    standardized = keras.Model(narrow.inputs, narrow.get_layer("logits").output)(x)
    assert standardized.dtype.name == policy.removeprefix("mixed_")
    np.testing.assert_allclose(
        found[:, 0], info.target_loc + info.target_scale * standardized.numpy().astype(float)[:, 0], rtol=3e-7
    )


@pytest.mark.parametrize("policy", MIXED)
def test_a_likelihood_computes_in_the_type_of_its_weights_also_once_it_was_stored(policy: str) -> None:
    layer = GaussianOutput(2000.0, 3.0, dtype=keras.mixed_precision.Policy(policy))
    for one in (layer, GaussianOutput.from_config(layer.get_config())):
        assert (one.compute_dtype, one.variable_dtype) == ("float32", "float32")
    assert GaussianOutput(dtype="float64").compute_dtype == "float64"


@pytest.mark.parametrize("task", ["classification", "binary", "regression"])
@pytest.mark.parametrize("layers", ["flipout", "reparameterization", "local"])
@pytest.mark.parametrize("policy", MIXED)
def test_the_kl_is_that_of_a_float32_network_and_the_likelihood_that_of_float64_numbers(
    policy: Any, layers: Any, task: Any
) -> None:
    """The same seed and the same step, so the same draw."""
    random = np.random.default_rng(1)
    x = random.normal(size=(64, 6)).astype("float32")
    y = {
        "classification": random.integers(0, 5, 64), "binary": random.integers(0, 2, 64),
        "regression": 300 + 100 * random.normal(size=64),
    }[task]  # fmt: skip
    data = bp.from_arrays((x, y), (x, y), batch_size=64, task=task)
    logged = []
    for one in ("float32", policy):
        model = build("mlp", data.info, layers=layers, policy=one, prior="normal", options={"hidden": (300,)})
        compile_model(model, data, settings=bp.Settings(kl="constant"))
        outputs = model(data.examples("train").x, training=True).numpy().astype(np.float64)
        losses = [loss for loss in model.losses if loss.dtype == tf.float32]
        assert len(losses) == len(model.losses) == len(list(variational_layers(model))) == 2
        kl = float(tf.add_n(losses))
        total = model.compiled_loss(
            tf.constant(data.examples("train").y),
            tf.constant(outputs, model.outputs[0].dtype),
            regularization_losses=losses,
        )
        assert total.dtype == tf.float32
        assert float(total) == pytest.approx(nll(task, data.examples("train").y, outputs) + kl, rel=1e-6)
        exact = sum(exact_kl(layer) for layer in variational_layers(model)) / data.train_size
        assert kl == pytest.approx(exact, rel=1e-5)
        logged.append((kl, outputs))
    assert logged[1][0] == pytest.approx(logged[0][0], rel=1e-6)
    wide, narrow = (outputs if task != "regression" else outputs[:, 0] / 100 for _, outputs in logged)
    assert 0 < np.abs(narrow - wide).max() < 8 * ROUNDING[policy] * np.abs(wide - wide.mean(0)).max()


def nll(task: str, y: np.ndarray, outputs: np.ndarray) -> float:
    """In float64, in nats an example."""
    if task == "classification":
        return float(np.mean(np.logaddexp.reduce(outputs, 1) - outputs[np.arange(len(y)), y]))
    if task == "binary":
        return float(np.mean(np.logaddexp(0, outputs[:, 0]) - y.ravel() * outputs[:, 0]))
    mean, std = outputs.T
    return float(np.mean(0.5 * ((y.ravel() - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)))


def exact_kl(layer: Any) -> float:
    """From N(0, 1), in float64."""
    q = layer.posteriors["kernel"]
    loc, rho = (one.numpy().astype(np.float64) for one in (q.loc_variable, q.rho_variable))
    scale = np.logaddexp(0, rho)
    return float(np.sum(0.5 * (loc**2 + scale**2 - 1) - np.log(scale)))


@pytest.mark.parametrize("policy", MIXED)
def test_a_draw_for_a_whole_batch_is_rounded_once(policy: Any) -> None:
    """The product with a one is the weight itself: the float32 draw, rounded to the nearest number of 16 bits."""
    drawn = []
    for dtype in ("float32", policy):
        layer = bp.layers.DenseReparameterization(
            400, use_bias=False, rho_init=-1.0, name="one", dtype=keras.mixed_precision.Policy(dtype)
        )
        layer.build((None, 100))
        drawn.append(layer(np.eye(100, dtype="float32")))
    np.testing.assert_array_equal(drawn[1].numpy(), tf.cast(drawn[0], drawn[1].dtype).numpy())


def test_a_run_says_its_policy_and_goes_on_with_it(tmp_path: Path, capsys: Any) -> None:
    for name, policy in (("usual", None), ("half", "mixed_bfloat16")):
        out = tmp_path / name
        assert main([*TRAIN, str(out), *(["--policy", policy] if policy else [])]) == 0
        assert Run.open(out).config["request"]["policy"] == (policy or "float32")
        assert policies_of(load_model(out).model)["dense_1"] == (policy or "float32")
        for named in ([], ["--policy", policy or "float32"]):
            assert main([*TRAIN, str(out), *named, "--resume"]) == 0
        capsys.readouterr()
        assert main([*TRAIN, str(out), "--policy", "mixed_float16", "--resume"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"was started with --policy {policy or 'float32'}, got mixed_float16: resume it as it was" in line
        assert main(["export", str(out), "--out", str(tmp_path / f"{name}-out"), "--no-score"]) == 0
        assert Run.open(tmp_path / f"{name}-out").manifest.get("trained_in") == policy


def test_a_run_of_before_there_was_a_choice_is_of_float32(tmp_path: Path, capsys: Any) -> None:
    assert main([*TRAIN, str(tmp_path)]) == 0
    run = Run.open(tmp_path)
    config = run.config
    del config["request"]["policy"]
    with run.locked():
        run.commit({CONFIG: json_to_bytes(config)})
    assert main([*TRAIN, str(tmp_path), "--resume"]) == 0
    assert main([*TRAIN, str(tmp_path), "--policy", "float32", "--resume"]) == 0
    capsys.readouterr()
    assert main([*TRAIN, str(tmp_path), "--policy", "mixed_bfloat16", "--resume"]) == 2
    assert "was started with --policy float32, got mixed_bfloat16" in capsys.readouterr().err


def test_a_run_under_a_global_policy_says_that_one(tmp_path: Path) -> None:
    """Which a module that is imported for a command may set."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        assert main([*TRAIN, str(tmp_path)]) == 0
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert Run.open(tmp_path).config["request"]["policy"] == "mixed_bfloat16"
    assert main([*TRAIN, str(tmp_path), "--resume"]) == 0


def test_a_tuning_keeps_its_policy_and_trains_with_it(tmp_path: Path, capsys: Any) -> None:
    data = bp.load("digits", batch_size=400, validation_fraction=0.2)
    asked = tmp_path / "half" / "settings.json"
    first = tune("mlp", data, tmp_path / "half", **TUNE, policy="mixed_float16")
    again = tune("mlp", data, tmp_path / "half", **TUNE)
    assert first["policy"] == again["policy"] == json.loads(asked.read_text())["policy"] == "mixed_float16"
    assert again["rows"] == first["rows"]
    with pytest.raises(RunError, match="differs in policy"):
        tune("mlp", data, tmp_path / "half", **TUNE, policy="float32")
    usual = tune("mlp", data, tmp_path / "usual", **TUNE)
    assert usual["policy"] == "float32"
    assert "policy" not in json.loads((tmp_path / "usual" / "settings.json").read_text())  # as of earlier versions
    assert usual["score"] != first["score"]
    with pytest.raises(RunError, match="differs in policy"):
        tune("mlp", data, tmp_path / "usual", **TUNE, policy="mixed_float16")
    words = ["tune", "--hidden", "4", "--method", "random", "--trials", "1", "--epochs", "1", "--batch-size", "400"]
    for name, policy in (("half", "mixed_float16"), ("usual", None)):
        capsys.readouterr()
        assert main([*words, "--validation-fraction", "0.2", "--out", str(tmp_path / name)]) == 0
        [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
        assert parser_of_all().parse_args(said.split()[2:]).policy == policy
