"""What a weight is worth: arrays in, arrays out. Lower scores are pruned first."""

from __future__ import annotations

import numpy as np


def snr(loc: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Signal-to-noise ratio |mu| / sigma (Blundell et al. 2015, section 5.1; Graves 2011); any shape, no unit.

    A weight with sigma = 0 is certain: its ratio is infinite, or 0 where mu is 0 too. It is sigma that divides, not
    rho, which is negative for all sigma < 0.69.
    """
    loc, scale = np.abs(np.asarray(loc, np.float64)), np.asarray(0.0 if scale is None else scale, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((loc == 0) & (scale == 0), 0.0, loc / scale)


def magnitude(loc: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """|mu| (Han et al. 2015, arXiv 1506.02626); any shape. `scale` is not looked at."""
    return np.abs(np.asarray(loc, np.float64))


def log_density_at_zero(loc: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """log q(0) = log N(0 | mu, sigma^2) in nats, for sigma > 0; any shape. High where 0 is a likely value of the weight."""
    loc, scale = np.asarray(loc, np.float64), np.asarray(scale, np.float64)
    return -0.5 * np.log(2 * np.pi) - np.log(scale) - 0.5 * np.square(loc / scale)


def decibel(ratio: np.ndarray) -> np.ndarray:
    """10 log10 of a signal-to-noise ratio; -inf for 0."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(ratio)


CRITERIA = {"snr": snr, "magnitude": magnitude}
