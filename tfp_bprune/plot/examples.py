"""Images that a network is surest and least sure of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfp_bprune.plot.said import answers_of
from tfp_bprune.plot.style import WRONG
from tfp_bprune.types import DataError, class_names_of


def examples(
    x: Any,
    said: Any,
    y: Any = None,
    *,
    by: str = "epistemic",
    count: int = 6,
    class_names: Sequence[Any] | None = None,
    axes: Any = None,
) -> Any:
    """Images with the least uncertain predictions in the upper row, the most uncertain in the lower; wrong predictions in red.

    Args:
      x: images [n, height, width] or [n, height, width, channels].
      said, y: as in `reliability`; without `y` no prediction is marked.
      by: the uncertainty, as in `risk_coverage`.
      count: number of images in each row.
      class_names: names of the classes, in their order; numbers by default.
      axes: Matplotlib axes, an array [2, count]; new ones by default.

    Returns:
      The axes [2, count].

    Raises:
      DataError: `x` holds no images, not as many as predictions, or fewer than are to be shown; or the number of names is not
        the number of classes.
    """
    images, answers = np.asarray(x), answers_of(said, y)
    images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    if images.ndim not in (3, 4) or len(images) != len(answers.probabilities):
        raise DataError(
            f"got examples {np.shape(x)} for {len(answers.probabilities)} answers: expected an image for each"
        )
    values, names = answers.uncertainty(by), class_names_of(class_names, answers.probabilities.shape[1])
    if len(values) < 2 * count:
        raise DataError(f"{len(values)} examples are fewer than two rows of {count}: expected a smaller count")
    order = np.argsort(values, kind="stable")
    panels = _new(count) if axes is None else np.asarray(axes)
    if panels.shape != (2, count):
        raise DataError(f"axes are of shape {panels.shape}: expected (2, {count})")
    for panel, i in zip(panels.flat, [*order[:count], *order[-count:]], strict=True):
        _show(panel, images[i], (images.min(), images.max()))
        _title(panel, answers, i, names)
        unit = "" if by == "confidence" else " nats"
        panel.set_xlabel(f"{values[i]:.3g}{unit}", fontsize=8)
    name = "1 - confidence" if by == "confidence" else by
    panels[0, 0].set_ylabel(f"surest\n({name})", fontsize=8)
    panels[1, 0].set_ylabel(f"least sure\n({name})", fontsize=8)
    return panels


def _new(count: int) -> Any:
    from matplotlib import pyplot as plt

    return plt.subplots(2, count, figsize=(1.35 * count + 0.6, 3.6), layout="constrained", squeeze=False)[1]


def _show(axes: Any, image: np.ndarray, limits: tuple[float, float]) -> None:
    low, high = limits
    if image.ndim == 3:  # colours, which Matplotlib wants from 0 to 1
        axes.imshow((image - low) / max(high - low, 1e-12))
    else:
        axes.imshow(image, cmap="gray_r", vmin=low, vmax=high)
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def _title(axes: Any, answers: Any, i: int, names: Sequence[Any]) -> None:
    answer = int(answers.probabilities[i].argmax())
    if answers.labels is None or answers.labels[i] == answer:
        axes.set_title(str(names[answer]), fontsize=9)
    else:
        axes.set_title(f"{names[answer]} (is {names[int(answers.labels[i])]})", fontsize=9, color=WRONG)
