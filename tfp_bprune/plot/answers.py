"""Class answers beside the truth: reliability, risk against coverage, uncertainty by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune.plot.said import answers_of
from tfp_bprune.plot.style import BLUE, GREY, ORANGE, axes_or_new
from tfp_bprune.types import class_names_of

_UNITS = {"confidence": "1 - confidence"}


def reliability(said: Any, y: Any = None, *, bins: int = 15, axes: Any = None, label: str | None = None) -> Any:
    """Reliability diagram: accuracy by confidence in equal bins, with exact 95 % intervals; on the diagonal the two are equal.

    Grey bars show the fraction of examples in each bin (Guo et al. 2017, arXiv 1706.04599, figure 1).

    Args:
      said: an `Evaluation`; or a `Prediction`, or probabilities [n, classes], with `y`.
      y: the true classes [n].
      bins: number of bins of confidence.
      axes: Matplotlib axes; new ones by default.
      label: name in the legend, which also shows the expected calibration error.

    Returns:
      The axes.

    Raises:
      DataError: there are no predicted classes, or no true ones.
    """
    from scipy import stats

    answers, axes = answers_of(said, y), axes_or_new(axes, 4.4, 4.2)
    confidence, right = answers.probabilities.max(1), answers.right
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    held = np.bincount(place, minlength=bins)
    filled = np.flatnonzero(held)
    means = np.bincount(place, confidence, bins)[filled] / held[filled]
    hits = np.bincount(place, right, bins)[filled]
    ends = np.array(
        [stats.binomtest(int(k), int(n)).proportion_ci(0.95) for k, n in zip(hits, held[filled], strict=True)]
    )
    accuracy = hits / held[filled]
    error = np.abs(np.stack([accuracy - ends[:, 0], ends[:, 1] - accuracy]))
    gap = float(np.abs(np.bincount(place, right - confidence, bins)).sum() / len(right))
    edges = np.linspace(0, 1, bins + 1)
    if not axes.patches:  # of the first series alone
        axes.stairs(held / held.sum(), edges, fill=True, color=GREY, alpha=0.3)
        axes.plot([0, 1], [0, 1], "--", color="black", linewidth=0.8)
    name = f"{label}, ECE {gap:.3f}" if label else f"accuracy (ECE {gap:.3f})"
    line = axes.errorbar(means, accuracy, error, fmt="o-", capsize=2, markersize=4, linewidth=1.2, label=name)
    if label is None:
        line[0].set_color(BLUE)
        for part in (*line[1], *line[2]):
            part.set_color(BLUE)
    axes.set(
        xlabel="confidence (probability of the answer)",
        ylabel="accuracy; grey: part of the examples",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    return axes


def risk_coverage(said: Any, y: Any = None, *, by: str = "entropy", axes: Any = None, label: str | None = None) -> Any:
    """Error rate among the most certain predictions (risk), against the fraction of examples answered (coverage).

    Geifman and El-Yaniv 2017.

    Args:
      said, y, axes: as in `reliability`.
      by: what ranks the predictions: "entropy", "epistemic", "aleatoric" or "confidence".
      label: name in the legend, which also shows the area under the curve.

    Returns:
      The axes.

    Raises:
      DataError: there are no predicted classes, no true ones, or no such uncertainty.
    """
    from tfp_bprune.evaluation.uncertainty import risk_coverage as curve

    answers, axes = answers_of(said, y), axes_or_new(axes)
    coverage, risk = curve(answers.uncertainty(by), answers.right)
    name = f"{label or by}, AURC {float(risk.mean()):.4f}"
    axes.plot(100 * coverage, 100 * risk, linewidth=1.4, label=name)
    axes.set(
        xlabel="coverage: examples answered, surest first (%)", ylabel="risk: errors among them (%)", xlim=(0, 100)
    )
    axes.set_ylim(bottom=0, auto=True)  # so that a further series has room
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return axes


def by_class(
    said: Any, y: Any = None, *, by: str = "entropy", class_names: Sequence[Any] | None = None, axes: Any = None
) -> Any:
    """Uncertainty of the predictions by true class: boxes of the middle half, lines from 5 % to 95 %, wrong predictions as points.

    Args:
      said, y, axes: as in `reliability`.
      by: the uncertainty, as in `risk_coverage`.
      class_names: names of the classes, in their order; numbers by default.

    Returns:
      The axes.

    Raises:
      DataError: as in `risk_coverage`; or the number of names is not the number of classes.
    """
    answers = answers_of(said, y)
    classes = answers.probabilities.shape[1]
    names = class_names_of(class_names, classes)
    axes = axes_or_new(axes, max(4.5, 1.5 + 0.45 * classes), 3.6)
    values, right = answers.uncertainty(by), answers.right
    groups = [values[answers.truth == k] for k in range(classes)]
    boxes = axes.boxplot(
        groups, positions=range(classes), whis=(5, 95), showfliers=False, widths=0.6, patch_artist=True
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#c9d9ea", edgecolor=BLUE)
    for line in boxes["medians"]:
        line.set_color(BLUE)
    wrong = ~right
    rng = np.random.default_rng(0)  # apart from each other, not from what they are
    axes.plot(
        answers.truth[wrong] + rng.uniform(-0.2, 0.2, wrong.sum()),
        values[wrong],
        "x",
        color=ORANGE,
        markersize=4,
        label="wrong answer",
    )
    axes.set_xticks(
        range(classes), [str(name) for name in names], rotation=0 if max(len(str(n)) for n in names) < 5 else 45
    )
    unit = _UNITS.get(by, f"{by} (nats)")
    axes.set(xlabel="true class", ylabel=unit)
    axes.set_ylim(bottom=0, auto=True)  # so that a further series has room
    if wrong.any():
        axes.legend(frameon=False, fontsize=8)
    return axes
