"""A prior with variables: normals with a scale for each input, which is trained with the network."""

from __future__ import annotations

from typing import Any

import numpy as np

import tfp_bprune as bp
from tfp_bprune._keras import tf
from tfp_bprune.layers.names import of_part


@bp.register_prior
class Learned(bp.Prior):
    """N(0, s^2) with a trained scale s for each input; only its log density is defined."""

    kind = "learned"

    def get_config(self) -> Any:
        return {"kind": self.kind}

    def add_variables(self, add_weight: Any, name: str, shape: Any, axes: Any) -> Any:
        sides = tuple(
            size if axes.read is not None and axis == axes.read % len(shape) else 1 for axis, size in enumerate(shape)
        )
        return {"log_s": add_weight(name=of_part(name, "log_s"), shape=sides, initializer="zeros")}

    def log_density(self, w: Any, variables: Any) -> Any:
        log_s = variables["log_s"]
        return -0.5 * tf.square(w / tf.exp(log_s)) - log_s - 0.5 * np.log(2 * np.pi)
