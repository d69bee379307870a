"""A regression on one input as a curve with its bands."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune.plot.style import BLUE, ORANGE, axes_or_new
from tfp_bprune.types import DataError


def bands(x: Any, said: Any, *, data: Any = None, level: float = 0.95, axes: Any = None) -> Any:
    """The predicted mean over `x`, with two bands: the uncertainty of the weights alone, and the interval that contains targets.

    Args:
      x: x values [n] or [n, 1], in any order.
      said: the `Prediction` at these: `mean`, and `weights_std` and `noise_std` if it has them.
      data: (x, y) of examples to show as points.
      level: probability of the intervals, for normal distributions.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.

    Raises:
      DataError: an x value is not one number, or there are not as many as predictions.
    """
    from scipy import stats

    places = np.asarray(x, float)
    places = places[:, 0] if places.ndim == 2 and places.shape[1] == 1 else places
    mean = np.asarray(said.mean, float)
    if places.ndim != 1 or mean.shape != places.shape:
        raise DataError(
            f"bands need one number per example: got x of shape {np.shape(x)} and means of shape {mean.shape}"
        )
    axes, order, reach = axes_or_new(axes), np.argsort(places), stats.norm.ppf((1 + level) / 2)
    places, mean = places[order], mean[order]
    weights, whole = said.outputs.get("weights_std"), said.std[order] if _has_deviations(said) else None
    if whole is not None and "noise_std" in said.outputs:
        axes.fill_between(
            places,
            mean - reach * whole,
            mean + reach * whole,
            color=BLUE,
            alpha=0.15,
            linewidth=0,
            label=f"target, {100 * level:g} %",
        )
    if weights is not None:
        spread = reach * weights[order]
        axes.fill_between(
            places,
            mean - spread,
            mean + spread,
            color=BLUE,
            alpha=0.35,
            linewidth=0,
            label=f"mean over weights, {100 * level:g} %",
        )
    axes.plot(places, mean, color=BLUE, linewidth=1.5, label="mean")
    if data is not None:
        axes.plot(np.ravel(data[0]), np.ravel(data[1]), ".", color=ORANGE, markersize=4, label="examples")
    axes.set(xlabel="input", ylabel="target")
    axes.legend(frameon=False, fontsize=8)
    return axes


def _has_deviations(said: Any) -> bool:
    return bool({"noise_std", "weights_std"} & set(said.outputs))
