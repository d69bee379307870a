"""Parts of a batch one after the other: the step of the whole batch, the KL counted once, one draw of the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.training.test_resume import Interrupt, assert_bit_identical
from tfp_bprune._keras import keras, tf
from tfp_bprune.data.splits import Splits, load
from tfp_bprune.files.runs import CONFIG, Run, json_to_bytes
from tfp_bprune.layers import noise, variational_layers
from tfp_bprune.training import Settings, fit
from tfp_bprune.training.accumulate import accumulating
from tfp_bprune.types import TrainingError

Build = Callable[..., Any]


@pytest.fixture(scope="module")
def small() -> Splits:
    """1,294 examples in batches of 37: those of 74 or 111 are not all of one size."""
    return load("digits", batch_size=37)


def trained(model: Any, data: Splits, parts: int, **options: Any) -> list[dict[str, Any]]:
    settings = Settings(epochs=2, kl="constant", accumulate=parts)
    return fit(model, data, settings=settings, progress=False, **options)


def assert_near(one: Any, other: Any) -> None:
    """Weights are equal to rounding, the last KL that a layer noted too."""
    for ours, theirs in zip(one.weights, other.weights, strict=True):
        a, b = (v.numpy().astype(float) for v in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5, err_msg=ours.name)


@pytest.mark.parametrize("layers", ["deterministic", "reparameterization"])
@pytest.mark.parametrize("optimizer", ["sgd", keras.optimizers.legacy.SGD])
def test_parts_learn_what_the_whole_batch_learns_under_the_same_draws(
    mlp: Build, small: Splits, layers: str, optimizer: Any
) -> None:
    whole, parts = mlp(layers), mlp(layers)
    large = load("digits", batch_size=111)
    made = [optimizer if isinstance(optimizer, str) else optimizer(0.01) for _ in range(2)]
    rows = trained(whole, large, 1, optimizer=made[0])
    again = trained(parts, small, 3, optimizer=made[1])
    assert "train_step" not in vars(parts)
    assert_near(whole, parts)
    for name in ("loss", "nll", "accuracy", "val_loss", "val_nll"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in again], rel=1e-4)
    assert rows.params["steps"] == again.params["steps"]  # type: ignore[attr-defined]


def test_flipout_without_its_noise_learns_the_same_and_with_masks(mlp: Build, small: Splits) -> None:
    whole, parts = mlp("flipout"), mlp("flipout")
    for model in (whole, parts):
        for layer in variational_layers(model):
            layer.kernel_posterior.rho_variable.assign(tf.fill(layer.kernel_posterior.shape, -60.0))
    trained(whole, small.merged(2), 1, optimizer="sgd", callbacks=[bp.GradualPruning(0.5, every=3)])
    trained(parts, small, 2, optimizer="sgd", callbacks=[bp.GradualPruning(0.5, every=3)])
    assert_near(whole, parts)


def test_parts_see_one_draw_of_weights_and_signs_of_their_own() -> None:
    counter, drawn, signs = tf.Variable(6, dtype=tf.int64), [], []
    for part in range(3):
        with noise.part(tf.constant(part)):
            step = noise.next_step(counter, "layer")
            drawn.append(noise.seed_pair(step, "draw").numpy().tolist())
            signs.append(noise.example_seed_pair(step, "signs").numpy().tolist())
    assert drawn == [drawn[0]] * 3
    assert len({tuple(seed) for seed in signs}) == 3
    assert int(counter) == 7
    # What is drawn without parts is what the first part draws.
    assert noise.example_seed_pair(counter, "signs").numpy().tolist() == signs[0]


def test_a_batch_of_fewer_examples_than_parts_is_taken(mlp: Build) -> None:
    x, y = np.random.default_rng(0).random((5, 8, 8, 1)), np.arange(5) % 3
    model = mlp("reparameterization")
    rows = fit(model, x, y, batch_size=2, settings=Settings(epochs=1, accumulate=7), progress=False)
    assert np.isfinite(rows[-1]["loss"])


def test_batches_of_a_dataset_are_joined(mlp: Build, digits: Splits) -> None:
    x, y = digits.examples("valid").x, digits.examples("valid").y
    dataset = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y)).batch(16)
    whole, parts = mlp("deterministic"), mlp("deterministic")
    fit(whole, dataset.unbatch().batch(48), settings=Settings(epochs=2), optimizer="sgd", progress=False)
    fit(parts, dataset, settings=Settings(epochs=2, accumulate=3), optimizer="sgd", progress=False)
    assert_near(whole, parts)


def test_a_variable_without_a_gradient_stays(digits: Splits) -> None:
    class Unused(keras.layers.Dense):
        def build(self, shape: Any) -> None:
            super().build(shape)
            self.unused = self.add_weight(name="unused", shape=(3,), initializer="ones")

    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), Unused(10)])
    trained(model, digits, 2, optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.1))  # it shrinks what has one
    assert model.layers[-1].unused.numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("shrinks", [False, True])
def test_a_training_in_parts_goes_on_to_the_same_bits(
    mlp: Build, digits: Splits, tmp_path: Path, shrinks: bool
) -> None:
    settings = Settings(epochs=4, learning_rate=0.01, accumulate=2)

    def run(out: str, *more: Any, resume: bool = False) -> None:
        pruning = bp.GradualPruning(0.6, granularity="unit", over=(0.1, 0.5), every=1)
        callbacks = [*more, *([pruning, bp.Shrink()] if shrinks else [])]
        model = mlp(prior="ard" if shrinks else None)
        fit(model, digits, settings=settings, out=tmp_path / out, resume=resume, callbacks=callbacks, progress=False)

    run("whole")
    with pytest.raises(InterruptedError):
        run("parts", Interrupt(epoch=2, batch=1))
    run("parts", resume=True)
    assert_bit_identical(tmp_path / "whole", tmp_path / "parts", times=False)
    config = Run.open(tmp_path / "parts").config
    assert config["settings"]["accumulate"] == 2
    assert config["data"]["batch_size"] == digits.batch_size


def test_a_run_of_before_goes_on(mlp: Build, digits: Splits, tiny_run: Path, copied: Callable[[Path], Path]) -> None:
    run = Run.open(copied(tiny_run))
    config = run.config
    del config["settings"]["accumulate"]
    with run.locked():
        run.commit({CONFIG: json_to_bytes(config)})
    settings = Settings(epochs=2, learning_rate=0.01)
    assert len(fit(mlp(hidden=(16,)), digits, settings=settings, out=run.path, resume=True, progress=False)) == 2


def test_what_cannot_be_taken_in_parts_is_refused(mlp: Build) -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    model = mlp()
    with (
        pytest.raises(TrainingError, match="Own has a train_step of its own"),
        accumulating(Own(model.inputs, model.outputs), 2),
    ):
        pass
    with pytest.raises(TrainingError, match=r"accumulate must be a whole number of batches, at least 1, got 0"):
        Settings(accumulate=0)
