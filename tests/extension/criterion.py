"""A criterion: the information in nats that a posterior holds about a weight."""

from __future__ import annotations

from typing import Any

import numpy as np

import tfp_bprune as bp


@bp.criterion("capacity")
def capacity(weights: Any) -> Any:
    """log(1 + mu^2 / sigma^2) / 2, the capacity of a channel with this signal-to-noise ratio."""
    return 0.5 * np.log1p(np.square(weights.loc / np.where(weights.mask, weights.scale, 1.0)))
