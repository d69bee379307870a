"""Draws in as few passes as there can be, and no longer than an example takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.bounds import FALSE_ALARM
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import Conv2DFlipout, DenseFlipout, noise
from tfp_bprune.prediction import Predictor
from tfp_bprune.prediction.draws import total, total_until_settled
from tfp_bprune.prediction.passes import Draws

L = keras.layers


def predicted(model: Any, x: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    predictor = Predictor(model, "sampled", task="classification", from_logits=True, **options)
    return {name: value.numpy() for name, value in predictor.predict(tf.constant(x)).items()}


def dense(*hidden: int) -> Any:
    layers = [DenseFlipout(units, activation="relu", rho_init=-1.0) for units in hidden]
    return keras.Sequential([keras.Input((6,)), *layers, DenseFlipout(3, rho_init=-1.0)])


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 7, 500, 5000])
@pytest.mark.parametrize("samples", [2, 30])
def test_every_draw_is_counted_once(batched: bool, batch: int, samples: int) -> None:
    """The sums tell each draw's number, whether blocks divide the number of draws or not."""

    def run(index: Any, count: Any, rows: Any) -> Any:
        tf.debugging.assert_equal(rows is None, True)
        numbers = tf.cast(tf.range(index, index + count), tf.float32)
        return tf.tile(numbers[:, None, None], [1, batch, 2])

    @tf.function
    def sums() -> Any:
        return total(run, lambda drawn: [drawn, tf.ones_like(drawn[..., 0])], samples, batched, batch)

    first, counts = sums()
    np.testing.assert_array_equal(first, np.full((batch, 2), sum(range(samples))))
    np.testing.assert_array_equal(counts, np.full(batch, samples))


def test_draws_at_once_are_distributed_like_draws_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = dense(8), np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    samples = 4000
    batched = predicted(model, x, samples=samples)["probabilities"]
    monkeypatch.setattr(Draws, "batched", False)
    single = predicted(model, x, samples=samples)
    # A probability has a variance of at most p (1 - p); two means of 4,000 each, 15 entries at once.
    p = single["probabilities"]
    z = stats.norm.isf(FALSE_ALARM / (2 * p.size))
    assert (np.abs(batched - p) <= z * np.sqrt(2 * p * (1 - p) / samples)).all()
    assert not np.array_equal(batched, p)


ALPHA, EXAMPLES, MOST = 0.1, 2000, 400


def bernoulli(lead: float, seed: int) -> Any:
    """Draws that are all for one class or all for the other: as spread as draws can be, class 0 ahead by `lead`."""

    def run(index: Any, count: Any, rows: Any) -> Any:
        # The noise goes by example, not by its place among those that are left.
        uniform = tf.random.stateless_uniform([count, EXAMPLES], noise.seed_pair(index, seed, "draws"))
        uniform = uniform if rows is None else tf.gather(uniform, rows, axis=1)
        first = tf.cast(uniform < (1 + lead) / 2, tf.float32)
        return tf.stack([first, 1 - first], -1)

    return run


def settled(run: Any, batched: bool) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of draws."""

    @tf.function
    def sums() -> Any:
        (first,), counts = total_until_settled(run, lambda drawn: [drawn], lambda drawn: [drawn], MOST, batched, ALPHA)
        return first, counts

    first, counts = sums()
    return first.numpy(), counts.numpy()


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("lead", [0.0, -0.02])
def test_settled_in_error_no_more_often_than_allowed(lead: float, batched: bool) -> None:
    sums, counts = settled(bernoulli(lead, 3), batched)
    early = counts < MOST
    # Level classes: any that settles is in error. Else those that settle for class 0, which is behind.
    wrong = early if lead == 0 else early & (sums[:, 0] > sums[:, 1])
    # Examples are independent and each wrong with a probability of at most ALPHA, so their number is at most binomial.
    assert wrong.sum() <= stats.binom.isf(FALSE_ALARM, EXAMPLES, ALPHA)
    assert wrong.any()  # it would be no test of draws that never settle


@pytest.mark.parametrize("batched", [False, True])
def test_sums_are_of_as_many_draws_as_are_counted(batched: bool) -> None:
    sums, counts = settled(bernoulli(0.4, 5), batched)
    np.testing.assert_array_equal(sums.sum(1), counts)
    assert len(set(counts)) > 5
    assert counts.min() >= 2
    early = counts < MOST
    # Class 0 leads; the class bet on is that of the first draw, the other one in 30 % of examples, which then goes on.
    assert 0.65 < early.mean() < 0.75
    # Who bets on a class that is ahead by bets that won has that class lead in the sum.
    assert (np.abs(sums[early, 0] - sums[early, 1]) > 0).all()


def test_a_bet_that_no_draw_has_a_part_in_settles_more_and_errs_no_more_often() -> None:
    @tf.function
    def sums(run: Any) -> Any:
        def parts(drawn: Any) -> list[Any]:
            return [drawn]

        leads = [tf.tile([[0.6, 0.4]], [EXAMPLES, 1])]
        (first,), counts = total_until_settled(run, parts, parts, MOST, True, ALPHA, leads)
        return first, counts

    first, counts = (value.numpy() for value in sums(bernoulli(0.4, 5)))
    np.testing.assert_array_equal(first.sum(1), counts)
    assert (counts < MOST).mean() > 0.95  # by the first draw 70 %
    early = sums(bernoulli(0.0, 3))[1].numpy() < MOST  # level classes: any that settles is in error
    assert early.any()
    assert early.sum() <= stats.binom.isf(FALSE_ALARM, EXAMPLES, ALPHA)


def test_clear_examples_are_settled_at_the_first_look_and_unclear_ones_get_all_draws() -> None:
    def run(index: Any, count: Any, rows: Any) -> Any:
        every = tf.constant([[0.98, 0.01, 0.01], [0.4, 0.4, 0.2], [0.02, 0.97, 0.01]])
        chosen = every if rows is None else tf.gather(every, rows)
        return tf.tile(chosen[None], [count, 1, 1])

    sums, counts = settled(run, True)
    np.testing.assert_array_equal(counts, [12, MOST, 12])
    np.testing.assert_allclose(sums[0], 12 * np.array([0.98, 0.01, 0.01]), rtol=1e-5)


def skipping() -> Any:
    """The inputs are read again behind the first draw."""
    inputs = keras.Input((6,))
    return keras.Model(inputs, DenseFlipout(3, rho_init=-1.0)(L.Add()([inputs, DenseFlipout(6)(inputs)])))


def convolution_first() -> Any:
    layers = [L.Reshape((2, 3, 1)), Conv2DFlipout(2, 2, rho_init=-1.0), L.Flatten(), DenseFlipout(3, rho_init=-1.0)]
    body = keras.Sequential([keras.Input((2, 3, 1)), *layers[1:]])
    return keras.Sequential([keras.Input((2, 3, 1)), *body.layers])


@pytest.mark.parametrize("make", [lambda: dense(8, 8), skipping, convolution_first])
def test_networks_are_settled_example_by_example(make: Any) -> None:
    keras.backend.reset_uids()  # initial weights go by layers' names, which go by what was built before
    model = make()
    last = model.layers[-1].kernel_posterior.loc_variable
    last.assign(4 * last)  # so that some examples are settled soon and others never
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(60, 6)) * rng.choice([0.3, 12.0], (60, 1))).astype(np.float32)
    x = x.reshape(60, *model.input_shape[1:])
    outputs = predicted(model, x, samples=100, seed=1, error_rate=0.05)  # all bet on the class of the first draw
    assert outputs["draws"].min() < outputs["draws"].max() == 100
    np.testing.assert_allclose(outputs["probabilities"].sum(1), 1, rtol=1e-5)
    every = predicted(model, x, samples=400)["probabilities"]
    # Probabilities of an example that had all 100 draws: within 6 standard errors, which are at most 0.05 and 0.025.
    whole = outputs["draws"] == 100
    assert (
        np.abs(outputs["probabilities"] - every)[whole] < 6 * 0.056 * np.sqrt(every * (1 - every) * 4)[whole] + 1e-3
    ).all()


@pytest.mark.parametrize("bayesian", [1, 2])
def test_what_comes_before_the_first_draw_is_computed_once(bayesian: int) -> None:
    layers: list[Any] = [L.Dense(32, "relu"), L.Dense(16, "relu"), DenseFlipout(8, activation="relu"), DenseFlipout(3)]
    model = keras.Sequential([keras.Input((6,)), *layers[: 2 + bayesian]])
    graph = Predictor(model, "sampled", 50, task="regression").predict.get_concrete_function().graph.as_graph_def()
    products = [node.op for node in graph.node].count("MatMul")
    bodies = [[n.op for n in f.node_def].count("MatMul") for f in graph.library.function if "body" in f.signature.name]
    # A mean and a variance for each Bayesian layer; of the first, on certain inputs, once for all draws.
    later = 2 * (bayesian - 1) + (bayesian - 1)
    assert max(bodies) <= later
    assert products >= 2 + 2


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("options", [{}, {"error_rate": 0.05}])
def test_an_ordinary_network_answers_as_if_it_were_drawn(batch: int, options: dict[str, Any]) -> None:
    model = keras.Sequential([keras.Input((6,)), L.Dense(3)])
    x = np.random.default_rng(0).normal(size=(batch, 6)).astype(np.float32)
    outputs = predicted(model, x, samples=7, **options)
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(model(x)), rtol=1e-5)
    np.testing.assert_allclose(outputs["epistemic"], 0, atol=1e-6)


def test_an_example_that_is_no_number_is_settled_and_leaves_the_others_alone() -> None:
    model, x = dense(8), np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    x[2, 1] = np.nan
    outputs = predicted(model, x, samples=30, error_rate=0.05)
    assert outputs["draws"][2] == 12
    for value in outputs.values():
        assert np.isfinite(np.delete(value, 2, 0)).all()
    assert np.isnan(outputs["probabilities"][2]).all()


def test_the_draw_that_chose_the_class_bets_nothing() -> None:
    # Certain draws: one bet makes the wealth (1.3 + 1.6 + 1.9) / 3 = 1.6 > 1 / .7, but none is placed by the first draw.
    certain = tf.constant([[[1.0, 0.0]]])  # [draws, examples, classes]
    _, counts = total_until_settled(
        lambda index, count, rows: tf.tile(certain, [count, 1, 1]), lambda one: [one], lambda one: [one], 10, False, 0.7
    )
    assert counts.numpy().tolist() == [2]
