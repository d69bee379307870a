"""Bounds on statistics of random draws, so that a right program fails a test at most once in a million seeds.

The seeds are fixed, so a test that passes keeps passing; the rate says how little a bound owes to the choice of seed.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

FALSE_ALARM = 1e-6


def assert_mean(samples: np.ndarray, mean: np.ndarray | float, std: np.ndarray | float) -> None:
    """Holds the mean of `samples` [n, ...] to `mean` by the central limit theorem.

    Args:
      std: known standard deviation of one sample, or a bound on it. The false-alarm rate is shared by all entries.
    """
    n, entries = len(samples), samples[0].size
    z = stats.norm.isf(FALSE_ALARM / (2 * entries))
    error = np.abs(samples.mean(axis=0, dtype=np.float64) - mean)
    bound = z * np.asarray(std) / np.sqrt(n)
    assert np.all(error <= bound), f"mean off by up to {np.max(error / bound):.2f} times the bound"


def assert_normal_variance(samples: np.ndarray, mean: np.ndarray | float, variance: np.ndarray | float) -> None:
    """Holds the variance of independent normal `samples` [n, ...] with known `mean` to `variance`.

    Their squared deviations over the variance add up to a chi-squared variable of n degrees of freedom exactly.
    """
    n, entries = len(samples), samples[0].size
    ratio = np.mean(np.square(samples.astype(np.float64) - mean), axis=0) / variance
    low, high = stats.chi2.ppf([FALSE_ALARM / (2 * entries), 1 - FALSE_ALARM / (2 * entries)], n) / n
    assert np.all((ratio >= low) & (ratio <= high)), (
        f"variance is {ratio.min():.3f} to {ratio.max():.3f} times the exact one, outside [{low:.3f}, {high:.3f}]"
    )
