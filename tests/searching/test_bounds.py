"""Bounds on a drop in accuracy, by enumeration of everything that a sample can show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tfp_bprune.claims import bounds

N = 20


def every_outcome(n: int) -> list[tuple[int, int]]:
    return [(lost, gained) for lost in range(n + 1) for gained in range(n + 1 - lost)]


def chance(outcomes: list[tuple[int, int]], n: int, drop: float, rate: float) -> np.ndarray:
    """Probability of each outcome where a part `rate` of the examples differs and accuracy falls by `drop`."""
    lose, gain = (rate + drop) / 2, (rate - drop) / 2
    table = [[lost, gained, n - lost - gained] for lost, gained in outcomes]
    return stats.multinomial.pmf(table, n, [lose, gain, 1 - lose - gain])


@pytest.mark.parametrize("drop", [0.0, 0.05, 0.15])
def test_a_budget_that_is_broken_is_shown_to_hold_no_more_often_than_the_level_allows(drop: float) -> None:
    outcomes = every_outcome(N)
    found = np.array([bounds.p_value(lost, gained, N, drop) for lost, gained in outcomes])
    for rate in np.linspace(max(drop, 0.02), 0.95, 12):
        for error in (0.01, 0.05, 0.2):
            assert chance(outcomes, N, drop, rate)[found <= error].sum() <= error


def test_without_any_difference_the_p_value_is_the_chance_of_none() -> None:
    # The likeliest way to see no example differ although 1 % of accuracy is lost: none is gained.
    assert bounds.p_value(0, 0, 300, 0.01) == pytest.approx(0.99**300 + 0.0001, rel=1e-3)


def test_the_bound_is_where_the_p_value_crosses_the_error() -> None:
    bound = bounds.most(12, 5, 1000, 0.05)
    assert bounds.p_value(12, 5, 1000, bound + 1e-4) <= 0.05 < bounds.p_value(12, 5, 1000, bound - 1e-4)
    assert 0.007 < bound < 0.03
    assert bounds.most(0, 40, 1000, 0.05) == 0.0


def test_more_losses_and_fewer_examples_tell_less() -> None:
    assert bounds.p_value(3, 2, 2000, 0.005) < bounds.p_value(6, 2, 2000, 0.005) < bounds.p_value(9, 2, 2000, 0.005)
    assert bounds.most(3, 0, 4000, 0.05) < bounds.most(3, 0, 1000, 0.05)
    assert bounds.p_value(60, 0, 1000, 0.05) == 1.0


@pytest.mark.parametrize("drop", [-0.05, 0.0, 0.1])
def test_intervals_cover_about_as_often_as_they_say(drop: float) -> None:
    outcomes = every_outcome(N)
    ends = np.array([bounds.interval(lost, gained, N) for lost, gained in outcomes])
    inside = (ends[:, 0] <= drop + 1e-12) & (drop - 1e-12 <= ends[:, 1])
    cover = [chance(outcomes, N, drop, rate)[inside].sum() for rate in np.linspace(0.25, 0.9, 8)]
    assert min(cover) > 0.90  # approximate: the score interval of so few examples
    assert np.mean(cover) > 0.93


def test_the_interval_is_turned_around_when_the_networks_are() -> None:
    low, high = bounds.interval(30, 12, 500)
    assert bounds.interval(12, 30, 500) == pytest.approx((-high, -low), abs=1e-9)
    assert low < 18 / 500 < high


def test_the_interval_of_a_proportion_is_exact() -> None:
    low, high = bounds.proportion(3, 20, 0.1)
    assert stats.binom.sf(2, 20, low) == pytest.approx(0.05)
    assert stats.binom.cdf(3, 20, high) == pytest.approx(0.05)
    assert bounds.proportion(0, 20, 0.1)[0] == 0.0
    assert bounds.proportion(20, 20, 0.1)[1] == 1.0


def test_the_bound_is_the_last_crossing_where_the_tail_has_steps() -> None:
    bound = bounds.most(6, 6, 96, 0.2)
    assert bounds.p_value(6, 6, 96, 0.0329) <= 0.2 < bounds.p_value(6, 6, 96, 0.03395)  # down, and up again
    assert bound > 0.03395
    assert all(bounds.p_value(6, 6, 96, drop) <= 0.2 for drop in np.linspace(bound, 0.2, 40))


def test_as_many_examples_as_are_enough_are_just_enough() -> None:
    found = bounds.enough(0.005, 0.045)
    assert found is not None
    assert bounds.p_value(0, 0, found, 0.005) <= 0.045 < bounds.p_value(0, 0, found - 1, 0.005)
    assert bounds.enough(0.0, 0.05) is None


@pytest.mark.parametrize(("inside", "outside", "limit"), [(96, 240, 0.95), (96, 240, 0.99), (1000, 1000, 0.998)])
def test_an_area_at_its_limit_is_shown_to_be_above_no_more_often_than_the_level_allows(
    inside: int, outside: int, limit: float
) -> None:
    """Exactly, where each example inside is either below all outside or, with probability 1 - limit, above all.

    The normal approximation says yes in 13 to 38 % of the samples.
    """
    below = np.arange(inside + 1)
    area = below / inside
    shown = np.array([bounds.area_p_value(a, min(inside, outside), limit) <= 0.05 for a in area])
    assert stats.binom.pmf(below, inside, limit)[shown].sum() <= 0.05
    bound = bounds.least_area(0.999, min(inside, outside), 0.05)
    assert bounds.area_p_value(0.999, min(inside, outside), bound) == pytest.approx(0.05, rel=1e-2)
    needed = bounds.needed_area(0.9, inside, 0.05)
    assert bounds.area_p_value(needed, inside, 0.9) == pytest.approx(0.05, rel=1e-2)


def test_an_area_of_one_is_shown_by_enough_pairs() -> None:
    assert bounds.area_p_value(1.0, 100, 0.95) == pytest.approx(0.95**100)
    assert bounds.area_p_value(0.9, 100, 0.95) == 1.0
    assert bounds.area_p_value(0.9, 100, 0.0) == 0.0


def binomial_limit(rate: float, samples: int) -> int:
    """So many of the samples are reached with a chance of 1e-6 at most, if each is with a chance of `rate`."""
    return int(stats.binom.isf(1e-6, samples, rate))


@pytest.mark.parametrize("limit", [0.02, 0.1])
def test_a_broken_limit_of_a_mean_is_shown_to_hold_no_more_often_than_the_level_allows(limit: float) -> None:
    """Just at the limit: examples of five questions that are lost together, or one by one, or gained."""
    rng, samples = np.random.default_rng(0), 2000
    for values, chances in (
        ([0.0, 1.0], [1 - limit, limit]),
        ([0.0, 0.2], [1 - 5 * limit, 5 * limit]),
        ([-0.4, 0.0, 0.4], [0.2, 0.6 - 2.5 * limit, 0.2 + 2.5 * limit]),
    ):
        shown = sum(bounds.mean_p_value(rng.choice(values, 300, p=chances), limit) <= 0.05 for _ in range(samples))
        assert shown <= binomial_limit(0.05, samples)


def test_the_mean_of_what_never_differs_is_shown_by_a_few_hundred_examples() -> None:
    assert bounds.mean_p_value(np.zeros(1000), 0.005) < 0.05 < bounds.mean_p_value(np.zeros(500), 0.005)
    assert bounds.mean_p_value(np.zeros(9), 0.0) == 1  # nothing is below 0
    assert bounds.mean_p_value(np.full(9, 0.2), 0.1) == 1
    values = np.where(np.arange(2000) % 50 == 0, 0.5, 0.0)  # a mean of .01
    most = bounds.most_of_mean(values, 0.05)
    assert 0.01 < most < 0.02
    assert bounds.mean_p_value(values, most) <= 0.05 < bounds.mean_p_value(values, most - 2e-5)


@pytest.mark.parametrize("n", [60, 1000])
@pytest.mark.parametrize("error", [0.05, 0.01])
def test_a_grown_rmse_is_shown_to_hold_about_as_often_as_the_level_allows(n: int, error: float) -> None:
    """Just at the limit, normal errors, those of the pruned network with some of their own; the test is approximate: a third
    more often than said is borne, and two thirds at the far tail of small samples."""
    rng, samples, limit = np.random.default_rng(0), 4000, 0.05
    whole = rng.normal(size=(samples, n))
    pruned = whole + np.sqrt((1 + limit) ** 2 - 1) * rng.normal(size=(samples, n))
    beyond = np.square(pruned) - (1 + limit) ** 2 * np.square(whole)
    shown = sum(bounds.skewed_p_value(row) <= error for row in beyond)
    assert shown <= binomial_limit(error * (4 / 3 if error > 0.01 or n > 60 else 5 / 3), samples)
    assert shown >= error * samples / 4  # nor is it far too careful


def test_a_long_tail_to_the_right_is_corrected_for() -> None:
    # Johnson 1978, eq. 2.5 with mu = 0: a sample that may lack the tail of its law looks better than it is.
    values = np.random.default_rng(0).exponential(size=40) - 1.35
    mean, s2 = values.mean(), values.var(ddof=1)
    third = np.mean((values - mean) ** 3)
    expected = stats.t.cdf((mean + third / (6 * s2 * 40) + third * mean**2 / (3 * s2**2)) / np.sqrt(s2 / 40), 39)
    found = bounds.skewed_p_value(values)
    assert found == pytest.approx(expected)
    assert found > stats.ttest_1samp(values, 0, alternative="less").pvalue


def test_squares_that_never_grow_are_shown() -> None:
    assert bounds.skewed_p_value(np.zeros(100)) == 1
    assert bounds.skewed_p_value(np.ones(100)) == 1
    errors = np.square(np.random.default_rng(0).normal(size=100))
    assert bounds.skewed_p_value(errors - 1.05**2 * errors) < 1e-4
