"""A dataset: two rings of points, one around the other."""

from __future__ import annotations

from typing import Any

from sklearn.datasets import make_circles

import tfp_bprune as bp


@bp.dataset("rings")
def rings() -> Any:
    """Points [n, 2] of the outer ring (class 0) and of the inner one (class 1); the same whenever it is called."""
    x, y = make_circles(600, noise=0.1, factor=0.4, random_state=0)
    x = x.astype("float32")
    return (x[100:], y[100:]), (x[:100], y[:100])
