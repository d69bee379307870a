"""Policies of mixed precision: masters and KL in float32, losses scaled for float16, resume, prune and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.exports.test_precision import outputs_of
from tests.training.test_resume import Interrupt, assert_bit_identical
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits
from tfp_bprune.layers import variational_layers
from tfp_bprune.training import Settings, fit
from tfp_bprune.training.rate import ScaledAdam, SettableAdam


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def policy(request: Any) -> str:
    return str(request.param)


def network(digits: Splits, policy: Any, layers: Any = "flipout") -> Any:
    return bp.build("convnet", digits.info, layers=layers, policy=policy, options={"width": 0.1})


@pytest.mark.parametrize("layers", ["flipout", "reparameterization", "local", "deterministic"])
def test_masters_and_kl_are_float32_and_the_network_learns(policy: str, digits: Splits, layers: str) -> None:
    model = network(digits, policy, layers)
    kls: list[Any] = []
    rows = fit(model, digits, settings=Settings(epochs=6, learning_rate=0.01), progress=False)
    assert all(w.dtype in (tf.float32, tf.bool, tf.int64) for w in model.weights)
    model(np.zeros((1, 8, 8, 1), "float32"), training=True)
    kls = [loss.dtype for loss in model.losses]
    assert kls == [tf.float32] * len(list(variational_layers(model)))
    assert model.outputs[0].dtype == policy.removeprefix("mixed_")
    assert rows[-1]["val_accuracy"] > 0.6  # .1 by chance
    assert isinstance(model.optimizer, ScaledAdam if policy == "mixed_float16" else SettableAdam)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_training_goes_on_to_the_same_bits(policy: str, digits: Splits, tmp_path: Path, accumulate: int) -> None:
    settings = Settings(epochs=4, learning_rate=0.01, accumulate=accumulate)

    def run(out: str, *callbacks: Any, resume: bool = False) -> Any:
        keras.backend.clear_session()
        plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_nll", patience=0, min_delta=10)
        model = network(digits, policy)
        fit(
            model,
            digits,
            settings=settings,
            out=tmp_path / out,
            resume=resume,
            callbacks=[plateau, *callbacks],
            progress=False,
        )
        return model

    run("whole")
    with pytest.raises(InterruptedError):
        run("parts", Interrupt(epoch=2, batch=1))
    run("parts", resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts")


def test_parts_of_a_batch_learn_at_the_rate_that_was_asked_for(policy: str, digits: Splits) -> None:
    """Where losses are scaled, gradients of parts are scaled back once; Adam alone would not tell."""
    moved = []
    for accumulate in (1, 2):
        keras.backend.clear_session()
        model = network(digits, policy, "deterministic")
        before = [weight.numpy() for weight in model.trainable_weights]
        settings = Settings(epochs=1, kl="constant", accumulate=accumulate)
        fit(model, digits, settings=settings, optimizer=keras.optimizers.SGD(0.01), progress=False)
        moved.append(max(np.abs(w.numpy() - b).max() for w, b in zip(model.trainable_weights, before, strict=True)))
    assert 0.3 < moved[1] / moved[0] < 1.2  # half as many steps


def test_the_scale_of_losses_is_part_of_a_checkpoint(digits: Splits, tmp_path: Path) -> None:
    from tfp_bprune.graphs.slots import optimizer_variables

    model = network(digits, "mixed_float16")
    fit(model, digits, settings=Settings(epochs=1), progress=False)
    names = [v.name for v in optimizer_variables(model)]
    assert names[-2].startswith("current_loss_scale")
    assert names[-1].startswith("good_steps")
    assert int(optimizer_variables(model)[-1]) > 0
    assert float(model.optimizer.lr) == pytest.approx(0.0, abs=1e-6)  # the end of the cosine


def test_a_trained_network_is_pruned_and_exported(policy: str, digits: Splits, tmp_path: Path) -> None:
    model = network(digits, policy)
    fit(
        model,
        digits,
        settings=Settings(epochs=3, learning_rate=0.01),
        progress=False,
        callbacks=[bp.GradualPruning(0.5)],
    )
    pruned, _ = bp.prune(model, sparsity=0.8)
    bp.export(pruned, tmp_path / "export")
    x = digits.examples("valid").x[:50]
    found = outputs_of(tmp_path / "export", x.astype("float32"))
    ours = tf.nn.softmax(tf.cast(bp.strip(pruned)(x.astype("float32")), tf.float32)).numpy()
    assert np.abs(found["probabilities"] - ours).max() < 0.05  # of 8 and 11 bits


def test_a_regression_in_two_bytes_has_its_likelihood_in_float32(policy: Any) -> None:
    x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
    y = 300 + 100 * x[:, 0]  # whose squares leave float16
    data = bp.from_arrays((x, y), (x[:20], y[:20]), batch_size=50)
    model = bp.build("mlp", data.info, policy=policy, options={"hidden": (16,)})
    rows = fit(model, data, settings=Settings(epochs=20, learning_rate=0.01), progress=False)
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert rows[-1]["nll"] < rows[0]["nll"]
