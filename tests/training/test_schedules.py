"""KL schedules: their published formulas, their mean over an epoch, and the callback that applies them."""

from __future__ import annotations

import doctest
from fractions import Fraction

import numpy as np
import pytest

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import DenseFlipout
from tfp_bprune.training import KLSchedule, schedules
from tfp_bprune.training.schedules import ScaledCosine, kl_schedule, scale_for
from tfp_bprune.types import TrainingError


def test_doctests() -> None:
    result = doctest.testmod(schedules)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("name", ["constant", "blundell"])
@pytest.mark.parametrize("batches", [1, 2, 7, 600, 3000])
def test_an_epoch_counts_the_divergence_once(name: str, batches: int) -> None:
    factors = [kl_schedule(name, batches, epochs=2)(step) for step in range(batches, 2 * batches)]
    assert np.mean(factors) == pytest.approx(1, rel=1e-12)


def test_blundell_weights_are_the_papers() -> None:
    batches = 40
    for i in range(1, batches + 1):
        exact = Fraction(2 ** (batches - i), 2**batches - 1)  # of batch i of M
        assert kl_schedule("blundell", batches, epochs=1)(i - 1) / batches == pytest.approx(
            float(exact), rel=1e-12, abs=0
        )


def test_blundell_vanishes_in_single_precision() -> None:
    factors = [np.float32(kl_schedule("blundell", 600, epochs=1)(step)) for step in range(600)]
    assert factors[0] == pytest.approx(300)
    assert factors[100] > 0
    assert factors[170] == 0


def test_warmup_rises_to_one_over_its_part_of_the_epochs() -> None:
    factors = [kl_schedule("warmup", steps_per_epoch=5, epochs=4, warmup_part=0.5)(step) for step in range(15)]
    np.testing.assert_allclose(factors, [*np.arange(1, 11) / 10, *np.ones(5)])
    assert kl_schedule("warmup", steps_per_epoch=5, epochs=4, warmup_part=0.0)(0) == 1


def test_unknown_schedules_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"unknown KL schedule 'cosine': expected one of ") as caught:
        kl_schedule("cosine", 10, epochs=1)
    assert set(str(caught.value).split("one of ")[1].split(", ")) == {"constant", "warmup", "blundell"}


def test_the_callback_scales_the_divergence_of_every_step() -> None:
    layer = DenseFlipout(2, train_size=6, prior="normal")  # a normal prior: the KL has no noise
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(keras.optimizers.legacy.SGD(0.0), lambda y, prediction: 0.0 * prediction)
    x, losses = np.zeros((6, 3), np.float32), []
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    callback = KLSchedule(kl_schedule("warmup", steps_per_epoch=1, epochs=5, warmup_part=0.8), steps_per_epoch=1)
    model.fit(x, x[:, :2], batch_size=6, epochs=5, callbacks=[callback, record], verbose=0)
    np.testing.assert_allclose(losses, np.array([0.25, 0.5, 0.75, 1, 1]) * float(layer.last_kl) / 6, rtol=1e-5)


def test_the_learning_rate_rises_to_that_of_all_workers_and_falls_with_a_cosine() -> None:
    rate, alone = ScaledCosine(0.1, 100, scale=2, warmup=10), ScaledCosine(0.1, 100)
    steps = np.array([0, 5, 10, 50, 100])
    cosine = 0.05 * (1 + np.cos(np.pi * steps / 100))
    np.testing.assert_allclose([float(alone(tf.constant(step))) for step in steps], cosine, atol=1e-8)
    found = [float(rate(tf.constant(step))) for step in steps]
    np.testing.assert_allclose(found, cosine * [1, 1.5, 2, 2, 2], atol=1e-8)
    again = ScaledCosine.from_config(rate.get_config())
    assert float(again(tf.constant(5))) == found[1]


def test_workers_scale_the_learning_rate_as_asked() -> None:
    assert [scale_for(rule, 4) for rule in ("none", "root", "linear")] == [1, 2, 4]
    with pytest.raises(TrainingError, match="unknown learning-rate scaling 'cubic'"):
        scale_for("cubic", 4)  # type: ignore[arg-type]
