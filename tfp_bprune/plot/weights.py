"""The weights of a network: their signal-to-noise ratios by layer, with what a pruning would cut, and what is gone of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfp_bprune.plot.style import BLUE, DISTINCT, GREY, axes_or_new
from tfp_bprune.types import DataError

_BINS = 100


def signal_to_noise(model: Any, *, sparsities: Sequence[float] = (0.5, 0.9), axes: Any = None) -> Any:
    """Stacked histogram of the signal-to-noise ratios |mu| / sigma of each layer, in dB; lines mark the cuts.

    Args:
      model: with Bayesian layers; removed weights are left out.
      sparsities: fractions of all weights, in (0, 1); everything to the left of a line is removed at its sparsity.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.

    Raises:
      DataError: a sparsity is not in (0, 1).
      PruneError: there is nothing to prune.
    """
    from tfp_bprune.pruning.scores import decibel
    from tfp_bprune.pruning.select import scores_of

    for part in sparsities:
        if not 0 < part < 1:
            raise DataError(f"sparsities must be in (0, 1), got {part}")
    scores = {name: one.ravel() for name, one in scores_of(model, criterion="snr").items()}
    everything = np.concatenate(list(scores.values()))
    kept = everything[(everything > 0) & np.isfinite(everything)]
    if not len(kept):
        raise DataError("no weight has a finite signal-to-noise ratio above 0: expected a Bayesian network")
    low, high = decibel(np.percentile(kept, [0.1, 99.9]))
    edges = np.linspace(low, high + 1e-9, _BINS + 1)
    axes, below = axes_or_new(axes), np.zeros(_BINS)
    for number, (name, one) in enumerate(scores.items()):
        values = one[(one > 0) & np.isfinite(one)]
        counts = np.histogram(np.clip(decibel(values), edges[0], edges[-1]), edges)[0]
        colour = DISTINCT[number % len(DISTINCT)]
        axes.stairs(
            below + counts,
            edges,
            baseline=below,
            fill=True,
            color=colour,
            alpha=0.75,
            label=name.removesuffix("/kernel"),
        )
        below = below + counts
    _cuts(axes, everything, sparsities, below.max(), (edges[0], edges[-1]))
    axes.set(xlabel="signal-to-noise ratio |mu| / sigma (dB)", ylabel="weights", ylim=(0, 1.12 * below.max()))
    axes.legend(frameon=False, fontsize=8)
    return axes


def _cuts(axes: Any, scores: np.ndarray, sparsities: Sequence[float], top: float, ends: tuple[float, float]) -> None:
    from tfp_bprune.pruning.scores import decibel

    for part, place in zip(sparsities, decibel(np.quantile(scores, sparsities)), strict=True):
        if ends[0] <= place <= ends[1]:
            axes.axvline(place, color="black", linewidth=1, linestyle="--")
            axes.annotate(
                f"{100 * part:g} %", (place, 1.03 * top), xytext=(3, 0), textcoords="offset points", fontsize=8
            )


def sparsity(report: Any, *, axes: Any = None) -> Any:
    """Fraction of removed weights in each layer, the first layer on top, with the number of weights left.

    Args:
      report: what `prune` returns, a pruned model, or the `layers` of an export's manifest.
      axes: Matplotlib axes; new ones by default.

    Returns:
      The axes.
    """
    counts = _counts_of(report)
    axes = axes_or_new(axes, 5.5, 1.2 + 0.32 * len(counts))
    places = np.arange(len(counts))
    parts = [100 * (1 - left / all_of) for _, left, all_of in counts]
    axes.barh(places, [100] * len(counts), color=GREY, alpha=0.2, height=0.7)
    axes.barh(places, parts, color=BLUE, height=0.7)
    for place, (_, left, _) in zip(places, counts, strict=True):
        axes.annotate(
            f"{left:,} left", (100, place), xytext=(4, 0), textcoords="offset points", fontsize=8, va="center"
        )
    axes.set_yticks(places, [name for name, _, _ in counts])
    axes.set(xlabel="weights removed (%)", xlim=(0, 100))
    axes.invert_yaxis()
    axes.yaxis.grid(False)
    return axes


def _counts_of(report: Any) -> list[tuple[str, int, int]]:
    """Name, weights left and all weights of each layer."""
    if hasattr(report, "layers") and all(hasattr(one, "prunable") for one in report.layers):
        return [(one.name.removesuffix("/kernel"), one.prunable - one.pruned, one.prunable) for one in report.layers]
    layers = report
    if not isinstance(report, Mapping):
        from tfp_bprune.exports.manifest import describe
        from tfp_bprune.graphs.convert import adopt

        layers = describe(adopt(report))["layers"]
    return [(name, about["nonzeros"], about["prunable"]) for name, about in layers.items()]
