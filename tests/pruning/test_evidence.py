"""The evidence as a criterion: exact in a conjugate model, comparable between priors, with an end of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.layers import LAYERS, NormalPrior, weights_of
from tfp_bprune.pruning.dead import remove_dead
from tfp_bprune.pruning.scores import CRITERIA, criterion
from tfp_bprune.pruning.select import scores_of
from tfp_bprune.types import PruneError

Build = Callable[..., Any]


def one_layer(loc: Any, scale: Any, prior: Any = None, **options: Any) -> Any:
    layer = LAYERS["Dense", "flipout"](np.shape(loc)[1], prior=prior, use_bias=False, name="line", **options)
    model = keras.Sequential([keras.Input((len(loc),)), layer])
    layer.posteriors["kernel"].assign(np.asarray(loc, np.float32), np.asarray(scale, np.float32))
    return model


@pytest.mark.parametrize("centre", [0.0, 0.3])
def test_the_score_is_the_change_of_the_log_evidence_of_a_conjugate_linear_model(centre: float) -> None:
    # Orthogonal columns: the exact posterior is of independent normals. y = x w + noise, w_i ~ N(centre, tau^2).
    random, n, noise, tau = np.random.default_rng(0), 40, 0.5, 0.7
    x = np.linalg.qr(random.normal(size=(n, 5)))[0] * 3
    y = x @ [1.0, 0.0, -0.3, 0.05, 2.0] + noise * random.normal(size=n)
    precision = 1 / tau**2 + (x**2).sum(0) / noise**2
    loc = (centre / tau**2 + x.T @ y / noise**2) / precision

    def log_evidence(columns: list[int]) -> float:
        z = x[:, columns]
        covariance = noise**2 * np.eye(n) + tau**2 * z @ z.T
        return float(stats.multivariate_normal.logpdf(y, z.sum(1) * centre, covariance))

    whole = log_evidence([0, 1, 2, 3, 4])
    lost = [whole - log_evidence([j for j in range(5) if j != i]) for i in range(5)]
    model = one_layer(loc[:, None], precision[:, None] ** -0.5, NormalPrior(tau, centre))
    np.testing.assert_allclose(scores_of(model, criterion="evidence")["line/kernel"][:, 0], lost, rtol=1e-4, atol=1e-4)
    pruned, report = bp.prune(model)
    mask = weights_of(pruned.layers[-1])["kernel"].mask[:, 0]
    np.testing.assert_array_equal(mask, np.array(lost) >= 0)
    assert report.requested == {"criterion": "evidence"}


def test_the_density_of_a_prior_around_a_weight_is_taken_at_0() -> None:
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, name="line")])
    plain.layers[0].set_weights([np.array([[2.0], [0.01]], np.float32)])
    model = bp.bayesianize(plain, moped=0.1)
    expected = [stats.norm.logpdf(0, w, 1) - stats.norm.logpdf(0, w, 0.1 * w) for w in (2.0, 0.01)]
    np.testing.assert_allclose(scores_of(model, criterion="evidence")["line/kernel"][:, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_what_is_left_is_better_kept_and_lies_on_a_path(mlp: Build, granularity: Any) -> None:
    model = mlp()
    for layer in model.layers:
        for q in getattr(layer, "posteriors", {}).values():
            random = np.random.default_rng(q.shape[-1])
            size = random.choice([0.0005, 1.0], q.shape, p=[0.7, 0.3])
            if granularity == "unit":
                size = np.ones(q.shape)
                size[: len(size) // 2] = size[:, : q.shape[-1] // 2] = 0.0005
            q.assign(size * random.normal(size=q.shape).astype(np.float32), np.full(q.shape, 0.001, np.float32))
    pruned, report = bp.prune(model, granularity=granularity)
    assert 0.3 < report.sparsity < 0.95
    assert remove_dead(pruned) == 0
    if granularity == "weight":
        left = {n: s[s != 0] for n, s in scores_of(pruned, criterion="evidence").items()}
        assert all((s >= 0).all() for s in left.values())
        gone = scores_of(model, criterion="evidence")
        assert report.pruned >= sum(int((s < 0).sum()) for s in gone.values())
    second = bp.prune(pruned, granularity=granularity)[1]
    assert second.pruned == report.pruned


def test_thresholds_may_be_negative_and_ranks_are_those_of_the_scores(mlp: Build) -> None:
    model = mlp()
    scores = np.concatenate([s.ravel() for s in scores_of(model, criterion="evidence").values()])
    cut = float(np.sort(scores)[len(scores) // 3])
    assert cut != 0
    assert bp.prune(model, threshold=cut, criterion="evidence")[1].pruned == int((scores < cut).sum())
    assert bp.prune(model, sparsity=0.5, criterion="evidence")[1].pruned == round(0.5 * len(scores))
    with pytest.raises(PruneError, match="threshold must be a number"):
        bp.prune(model, threshold=float("nan"), criterion="evidence")


def test_a_certain_weight_is_kept_unless_it_is_0() -> None:
    model = one_layer([[0.2], [0.3], [0.0]], [[0.1], [0.1], [0.1]])
    rho = model.layers[-1].posteriors["kernel"].rho_variable
    rho.assign([[-5.0], [-300.0], [-300.0]])  # sigma underflows
    scores = scores_of(model, criterion="evidence")["line/kernel"][:, 0]
    assert np.isfinite(scores[0])
    assert (scores[1], scores[2]) == (np.inf, -np.inf)
    np.testing.assert_array_equal(weights_of(bp.prune(model)[0].layers[-1])["kernel"].mask[:, 0], [True, True, False])


@pytest.mark.parametrize("granularity", ["weight", "unit"])
def test_gradual_pruning_without_a_schedule_ends_where_the_evidence_does(
    mlp: Build, digits: Any, granularity: Any
) -> None:
    model = mlp(rho_init=-6.0)  # as narrow as the prior's narrow part: what stays small is better gone
    if granularity == "unit":
        for name, small in (("dense_1", np.arange(12) < 5), ("logits", np.arange(12)[:, None] < 5)):
            q = model.get_layer(name).posteriors["kernel"]
            q.assign(np.where(small, 1e-4, q.loc.numpy()))
    callback = bp.GradualPruning(every=4, granularity=granularity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what goes at the end
        bp.fit(model, digits, settings=bp.Settings(epochs=3), callbacks=[callback], progress=False)
    again = bp.prune(model, granularity=granularity)[1]
    assert 0.1 < (callback.sparsity or 0) < 0.95
    assert again.sparsity == pytest.approx(callback.sparsity)


def test_without_a_schedule_a_criterion_has_to_end_by_itself(mlp: Build, digits: Any) -> None:
    with pytest.raises(PruneError, match="criterion 'snr' cannot choose the sparsity"):
        bp.GradualPruning(criterion="snr")
    with pytest.raises(PruneError, match="no prior"):
        bp.fit(mlp("deterministic"), digits, callbacks=[bp.GradualPruning()], progress=False)


def test_what_has_no_prior_is_refused(mlp: Build) -> None:
    with pytest.raises(PruneError, match="no prior"):
        bp.prune(mlp("deterministic"), criterion="evidence", sparsity=0.5)


def test_a_criterion_from_outside_ranks_weights_and_units(mlp: Build) -> None:
    @criterion("variance")
    def variance(weights: Any) -> Any:
        return np.square(weights.scale)

    try:
        model = mlp()
        for granularity in ("weight", "unit"):
            assert bp.prune(model, sparsity=0.5, criterion="variance", granularity=granularity)[1].sparsity >= 0.5
        with pytest.raises(PruneError, match="cannot choose the sparsity"):
            bp.prune(model, criterion="variance")
    finally:
        CRITERIA.remove("variance")
