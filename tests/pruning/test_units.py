"""Units by the posterior of their group: their evidence, their order, and the table and picture of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import LAYERS, ARDPrior, Sides, weights_of
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.pruning import scores_of, units_table
from tfp_bprune.reports.units import units_figure

SEEDS, RELEVANT, INPUTS, OUTPUTS = 20, 4, 10, 8  # of one problem each


def network(prior: Any = "ard", sizes: tuple[int, ...] = (8, 6, 3)) -> Any:
    """Dense layers whose weights are of different sizes from unit to unit."""
    layers = [LAYERS["Dense", "flipout"](n, prior=prior, name=f"layer_{i}") for i, n in enumerate(sizes)]
    model = keras.Sequential([keras.Input((20,)), *layers])
    random = np.random.default_rng(0)
    for layer in layers:
        q = layer.posteriors["kernel"]
        size = np.exp(random.normal(0, 1.5, q.shape[-1]))
        q.assign(0.1 * size * random.normal(size=q.shape), np.exp(random.normal(-2.5, 0.1, q.shape)))
    return model


def by_hand(model: Any, layer: str, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """The evidence of each weight that makes a unit of a hidden layer, and of each that reads it."""
    names = [one.name for one in model.layers]
    following = names[names.index(layer) + 1]
    scores = scores_of(model, criterion="evidence")
    return scores[f"{layer}/kernel"][:, unit], scores[f"{following}/kernel"][unit]


def test_with_a_sparsity_units_go_by_their_evidence_per_weight_and_without_by_its_sign() -> None:
    model = network()
    found = scores_of(model, criterion="evidence", granularity="unit")
    sums = {}
    for layer, count in (("layer_0", 8), ("layer_1", 6)):
        for unit in range(count):
            weights = np.concatenate(by_hand(model, layer, unit))
            sums[layer, unit] = weights.sum()
            assert found[f"{layer}/kernel"][unit] == pytest.approx(weights.mean(), rel=1e-5)
    means = {key: found[f"{key[0]}/kernel"][key[1]] for key in sums}
    order = sorted(means, key=means.__getitem__)
    assert order != sorted(sums, key=sums.__getitem__)
    pruned = bp.prune(model, sparsity=0.3, criterion="evidence", granularity="unit")[0]
    left = {n: weights_of(pruned.get_layer(n))["kernel"].mask.any(0) for n in ("layer_0", "layer_1")}
    gone = [key for key in order if not left[key[0]][key[1]]]
    assert 1 < len(gone) < len(order)
    assert gone == order[: len(gone)]
    natural = bp.prune(model, threshold=0.0, criterion="evidence", granularity="unit")[0]
    for layer, unit in sums:
        assert weights_of(natural.get_layer(layer))["kernel"].mask[:, unit].any() == (sums[layer, unit] >= 0)


def test_the_table_says_of_each_unit_what_prune_goes_by_and_its_scale() -> None:
    model = network({"kind": "ard", "groups": "input"})
    model, _ = bp.prune(model, sparsity=0.3, granularity="unit")
    rows = units_table(model, inputs=True)
    assert [row["layer"] for row in rows] == ["layer_0/kernel"] * 8 + ["layer_1/kernel"] * 6 + [
        "layer_2/kernel"
    ] * 3 + ["layer_0/kernel"] * 20
    for criterion, key in (("evidence", "evidence"), ("snr", "snr")):
        scores = scores_of(model, criterion=criterion, granularity="unit", aggregate="norm")  # type: ignore[arg-type]
        np.testing.assert_allclose([row[key] for row in rows[:17]], np.concatenate(list(scores.values())), rtol=1e-6)
    kernels = [weights_of(layer)["kernel"] for layer in model.layers]
    for unit, row in enumerate(rows[:8]):
        assert row["removable"]
        assert row["weights"] == kernels[0].mask[:, unit].sum() + kernels[1].mask[unit].sum()
        scales = []
        for kernel, mine in ((kernels[0], np.s_[:, unit]), (kernels[1], np.s_[unit])):
            count = np.maximum(kernel.mask.sum(1, keepdims=True), 1)
            groups = (kernel.loc**2 + kernel.scale**2).sum(1, keepdims=True) / count  # the optimum of each input
            each = np.broadcast_to(groups, kernel.mask.shape)[mine][kernel.mask[mine]]
            scales.append(np.sqrt(each.mean()) if each.size else 0.0)
        assert row["scale"] == pytest.approx(min(scales), rel=1e-4)
    assert not any(row["removable"] for row in rows[14:17])
    assert units_table(network("scale_mixture"))[0]["scale"] is None


@pytest.mark.parametrize("prior", ["ard", "scale_mixture"])
def test_the_picture_is_drawn_of_every_network(prior: str) -> None:
    rows = units_table(network(prior, (3,) * 7) if prior == "ard" else network(prior))
    if prior == "ard":
        rows[:3] = [row | {"snr": 0.0, "scale": 0.0, "evidence": -1.0} for row in rows[:3]]
    assert units_figure(rows, "units").startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def regressions() -> tuple[MaskedNormal, np.ndarray]:
    """Linear regressions on orthogonal inputs, some of which say nothing, fitted under ARD; and F of each input.

    y = x w + noise of deviation 1 with x'x = n: least squares b has the variance 1 / n, and F = n mean(b^2) over the outputs is
    chi-squared over its degrees where w is 0. The lower bound depends on the data by b alone.
    """
    random, n = np.random.default_rng(0), 100
    w = np.zeros((SEEDS, INPUTS, OUTPUTS))
    w[:, :RELEVANT] = random.normal(size=(SEEDS, RELEVANT, OUTPUTS))
    b = (w + random.normal(size=w.shape) / np.sqrt(n)).reshape(-1, OUTPUTS).astype(np.float32)
    q = MaskedNormal(
        tf.Variable(0 * b), tf.Variable(0 * b - 1.5), tf.Variable(np.ones(b.shape, bool)), ARDPrior(groups="input")
    )
    q.sides = Sides((0,), (1,))
    optimizer = keras.optimizers.legacy.Adam(0.05)
    variables = [q.loc_variable, q.rho_variable]
    optimizer._create_all_weights(variables)

    @tf.function
    def fit() -> None:
        for _ in tf.range(400):
            with tf.GradientTape() as tape:
                terms = q.terms("variance", lambda stream: [1, 2])
                loss = terms.kl + 0.5 * n * tf.reduce_sum(tf.square(terms.loc - b) + terms.second)
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    fit()
    return q, n * np.square(b).mean(1)


def test_inputs_that_say_nothing_leave_and_the_others_stay_in_20_of_20_regressions(regressions: Any) -> None:
    q, ratio = regressions
    layer = LAYERS["Dense", "flipout"](OUTPUTS, prior={"kind": "ard", "groups": "input"}, name="line")
    model = keras.Sequential([keras.Input((SEEDS * INPUTS,)), layer])
    layer.posteriors["kernel"].assign(q.loc.numpy(), q.scale.numpy())
    relevant = np.tile(np.arange(INPUTS) < RELEVANT, SEEDS)
    evidence = np.array([row["evidence"] for row in units_table(model, inputs=True)[OUTPUTS:]])
    # At the optimum s^2 = (F - 1) / n where F > 1, and the evidence of a group by weight is (F - 1 - log F) / 2; else s and it
    # are 0: a scale that is fitted to noise does no harm, and what the fit is worth by itself is taken off.
    cost = np.log(OUTPUTS) / 2 / OUTPUTS
    exact = np.where(ratio > 1, (ratio - 1 - np.log(ratio)) / 2, 0) - cost
    np.testing.assert_allclose(evidence, exact, rtol=0.02, atol=0.01)
    # What noise reaches in one of a million runs of the test.
    most = stats.chi2.isf(1e-6 / (SEEDS * (INPUTS - RELEVANT)), OUTPUTS) / OUTPUTS
    threshold = (most - 1 - np.log(most)) / 2 - cost
    pruned = bp.prune(model, threshold=threshold, criterion="evidence", granularity="unit", inputs=True)[0]
    np.testing.assert_array_equal(weights_of(pruned.layers[-1])["kernel"].mask.any(1), relevant)


def test_without_a_threshold_few_inputs_stay_that_say_nothing(regressions: Any) -> None:
    """Evidence above 0 is rare for noise, as chi-squared says: at most so many in all but one of a million runs."""
    q, _ = regressions
    layer = LAYERS["Dense", "flipout"](OUTPUTS, prior={"kind": "ard", "groups": "input"}, name="line")
    model = keras.Sequential([keras.Input((SEEDS * INPUTS,)), layer])
    layer.posteriors["kernel"].assign(q.loc.numpy(), q.scale.numpy())
    pruned = bp.prune(model, threshold=0.0, criterion="evidence", granularity="unit", inputs=True)[0]
    left = weights_of(pruned.layers[-1])["kernel"].mask.any(1).reshape(SEEDS, INPUTS)
    assert left[:, :RELEVANT].all()
    worth = lambda f: OUTPUTS * (f - 1 - np.log(f)) - np.log(OUTPUTS)  # noqa: E731  twice the evidence of a group
    chance = stats.chi2.sf(OUTPUTS * optimize.brentq(worth, 1.0, 50.0), OUTPUTS)
    assert 0.02 < chance < 0.2
    assert left[:, RELEVANT:].sum() <= stats.binom.isf(1e-6, SEEDS * (INPUTS - RELEVANT), chance)
