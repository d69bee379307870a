"""A criterion: the information that a posterior holds of a weight in nats, less where its prior says as much."""

from __future__ import annotations

from typing import Any

import numpy as np

import tfp_bprune as bp


@bp.criterion("capacity")
def capacity(weights: Any) -> Any:
    """log(1 + mu^2 / sigma^2) / 2, the capacity of a channel of this ratio of signal to noise."""
    return 0.5 * np.log1p(np.square(weights.loc / np.where(weights.mask, weights.scale, 1.0)))
