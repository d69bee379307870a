"""What a sample can tell of a difference in accuracy between two networks that answered the same questions.

With n examples, of which one network loses `lost` that the other had right and gains `gained`, the drop in accuracy is
(lost - gained) / n; all that vary are the examples on which the two differ (McNemar 1947).
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

_SET_ASIDE = 1e-4  # no p-value is below it; a tenth of the error of the smallest part of a claim at 98 %
_GRID = 64
_STEPS = 40
_TAIL = 8.0  # standard deviations of the number of differing examples beyond which nothing counts


def score(lost: np.ndarray, gained: np.ndarray, n: int, drop: float) -> np.ndarray:
    """Standardized distance of the observed drop from `drop`, by the variance under it (Tango 1998, Stat. Med. 17, 891).

    Args:
      lost, gained: how many of `n` examples; any shape.
      drop: in (-1, 1), as a fraction.

    Returns:
      (lost - gained - n drop) / standard deviation; 0 where both are 0.
    """
    lost, gained = np.asarray(lost, np.float64), np.asarray(gained, np.float64)
    linear = -lost - gained + (2 * n - lost + gained) * drop
    root = np.sqrt(np.maximum(np.square(linear) + 8 * n * gained * drop * (1 - drop), 0))
    gains = np.maximum((root - linear) / (4 * n), 0)  # the restricted maximum likelihood of gaining an example
    variance = n * np.maximum(2 * gains + drop * (1 - drop), 0)
    distance = np.asarray(lost - gained - n * drop)
    return np.divide(distance, np.sqrt(variance), out=np.zeros_like(distance), where=variance > 1e-12)


def p_value(lost: int, gained: int, n: int, drop: float) -> float:
    """How likely a drop so far below `drop` is if the true one were `drop` or more: never understated.

    The tail of the score, summed exactly over the two counts and maximized over how often the networks differ, which is
    not known: over its 99.99 % interval, and the missing 0.01 % is added (Berger and Boos 1994, JASA 89, 1012).
    """
    if drop >= 1:
        return 0.0
    if lost - gained >= n * drop:
        return 1.0
    observed = float(score(np.array(lost), np.array(gained), n, drop))
    low, high = proportion(lost + gained, n, _SET_ASIDE)
    rates = np.geomspace(max(low, drop, 1e-9), max(high, drop, 2e-9), _GRID)
    differing = np.arange(_most(n, float(rates[-1])) + 1)
    limit = _limits(differing, n, drop, observed)
    return min(1.0, _SET_ASIDE + float(_tails(differing, limit, n, drop, rates).max()))


def _most(n: int, rate: float) -> int:
    return min(n, math.ceil(n * rate + _TAIL * math.sqrt(n * rate * (1 - rate)) + _TAIL))


def _limits(differing: np.ndarray, n: int, drop: float, observed: float) -> np.ndarray:
    """For each number of differing examples the most that can be lost with a score of at most `observed`; -1 for none."""
    low, high = np.full(len(differing), -1), differing.copy()
    while (low < high).any():  # the score rises with `lost`
        middle = (low + high + 1) // 2
        fits = score(middle, differing - middle, n, drop) <= observed + 1e-9
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def _tails(differing: np.ndarray, limit: np.ndarray, n: int, drop: float, rates: np.ndarray) -> np.ndarray:
    """For each rate of differing examples the chance of losing at most `limit` of them."""
    losing = np.minimum(1.0, (rates + drop) / (2 * rates))[:, None]
    return np.sum(stats.binom.pmf(differing, n, rates[:, None]) * stats.binom.cdf(limit, differing, losing), axis=1)


@functools.lru_cache(maxsize=1024)  # the search for a bound asks for one interval again and again, at 5 ms
def proportion(count: int, n: int, error: float) -> tuple[float, float]:
    """Both ends of the exact interval of a proportion (Clopper and Pearson 1934) that misses it with probability `error`."""
    found = stats.binomtest(count, n).proportion_ci(1 - error, method="exact")
    return float(found.low), float(found.high)


def crossing(beyond: Callable[[float], float], start: float, end: float, precision: float = 1e-9) -> float:
    """Where a monotone function goes through 0 on the way from `start`, where it is above, to `end`, where it is not.

    Returns:
      A place by at most `precision` past it, where the function is not above 0 any more.
    """
    root = float(optimize.brentq(beyond, start, end, xtol=precision / 2))
    return float(np.clip(root + math.copysign(precision / 2, end - start), min(start, end), max(start, end)))


def most(lost: int, gained: int, n: int, error: float) -> float:
    """The smallest drop, at least 0, that the sample rules out to be reached: an upper bound that fails with at most `error`."""
    least = max(0.0, (lost - gained) / n)
    if least == 0.0 and p_value(lost, gained, n, 0.0) <= error:
        return 0.0
    high = crossing(lambda drop: p_value(lost, gained, n, drop) - error, least, 1.0, 1e-5)
    # The tail is a sum over whole numbers and has small steps up on its way down: the last crossing is the bound.
    step = max(0.01 * high, 0.02 / n)
    above = [drop for drop in high + step * np.arange(_STEPS + 1) if p_value(lost, gained, n, drop) > error]
    return float(max(above)) + step if above else high


_BETS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.015)


def mean_p_value(values: np.ndarray, limit: float) -> float:
    """How likely values [n] in [-1, 1] so far below `limit` are if their true mean were `limit` or more: never understated.

    A bet on each value to be below the limit, in games that are fair or worse if it is not, gains a factor of more than 1 / p
    with a chance of at most p; betted is with seven fractions of what one has, a seventh of the stake each, so that none
    has to be known (Waudby-Smith and Ramdas 2024, JRSS B 86, 1, section 4). It needs no distribution but independence.
    """
    if limit >= 1:
        return 0.0
    if len(values) == 0 or float(np.mean(values)) >= limit:
        return 1.0
    gain = (1 - np.asarray(values, np.float64)) / (1 - limit) - 1
    with np.errstate(divide="ignore"):
        wealth = np.logaddexp.reduce([np.log1p(bet * gain).sum() for bet in _BETS]) - math.log(len(_BETS))
    return float(math.exp(min(0.0, -wealth)))


def most_of_mean(values: np.ndarray, error: float) -> float:
    """The smallest mean, at least 0, that the sample rules out to be reached: an upper bound that fails with at most `error`."""
    if mean_p_value(values, 0.0) <= error:
        return 0.0
    return crossing(lambda limit: mean_p_value(values, limit) - error, 0.0, 1.0)


def skewed_p_value(values: np.ndarray) -> float:
    """How likely a mean so far below 0 is if the true one were 0 or more.

    Student's t with a correction for skewness (Johnson 1978, JASA 73, 536): squared errors have a long tail to the right, of
    which a sample that lacks it would look too good. Approximate, for some dozens of values and more.
    """
    n, mean = len(values), float(np.mean(values))
    if n < 3 or mean >= 0:
        return 1.0
    moved = values - mean
    variance = float(np.sum(np.square(moved)) / (n - 1))
    if variance <= 0:
        return 1.0
    third = float(np.mean(moved**3))
    corrected = mean + third / (6 * variance * n) + third * mean**2 / (3 * variance**2)
    return float(stats.t.cdf(corrected * math.sqrt(n / variance), n - 1))


def enough(drop: float, error: float) -> int | None:
    """How many examples could show at most a drop of `drop` if the networks differed on none of them; None for no number."""
    if drop <= 0:
        return None
    many = 2
    while p_value(0, 0, many, drop) > error:
        many *= 2
    return bisect.bisect_left(range(many), True, lo=1, key=lambda n: p_value(0, 0, n, drop) <= error)


def area_p_value(area: float, pairs: float, limit: float) -> float:
    """How likely an area under the ROC of `area` or more is if the true one were `limit` or less: never understated.

    The area is a mean over permutations of means of as many independent pairs, values in [0, 1], as the smaller sample
    has, so Chernoff's bound for these holds for it: exp(-pairs KL(area || limit)) (Hoeffding 1963, JASA 58, 13, theorem 1
    and section 5a). No sample size is too small for it, and no area too near 1.
    """
    return 1.0 if area <= limit else math.exp(-pairs * _divergence(area, limit))


def least_area(area: float, pairs: float, error: float) -> float:
    """The largest area that the sample rules out to be the true one: a lower bound that fails with at most `error`."""
    return crossing(lambda limit: area_p_value(area, pairs, limit) - error, area, 0.0) if area > 0 else 0.0


def needed_area(limit: float, pairs: float, error: float) -> float:
    """The smallest area that so many pairs would have to show for `area_p_value` to be at most `error`; 1 if none would."""
    if area_p_value(1.0, pairs, limit) > error:
        return 1.0
    return crossing(lambda area: area_p_value(area, pairs, limit) - error, limit, 1.0)


def _divergence(p: float, q: float) -> float:
    """KL(p || q) of two Bernoulli distributions, nats."""
    return float(special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q))


def interval(lost: int, gained: int, n: int, error: float = 0.05) -> tuple[float, float]:
    """The drops that are within the two-sided score interval (Tango 1998); approximate, for reporting."""
    z = float(stats.norm.ppf(1 - error / 2))
    observed = (lost - gained) / n

    def beyond(drop: float, side: float) -> float:
        return float(score(np.array(lost), np.array(gained), n, drop)) - side * z

    edge = 1 - 1e-9
    low = optimize.brentq(beyond, -edge, observed, args=(1.0,)) if observed > -1 else -1.0
    high = optimize.brentq(beyond, observed, edge, args=(-1.0,)) if observed < 1 else 1.0
    return float(low), float(high)
