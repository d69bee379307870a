"""Dense layers with a distribution over their weights, one for each estimator."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers.estimators import Flipout, Local, Reparameterization
from tfp_bprune.layers.kind import Kind, bayesian
from tfp_bprune.layers.variational import OnTfp


class Dense(Kind):
    """outputs = inputs W + b, W [in, out], for inputs [batch, ..., in]."""

    name = "Dense"
    plain = keras.layers.Dense
    raw = {  # noqa: RUF012
        tfp.layers.DenseFlipout: "flipout",
        tfp.layers.DenseReparameterization: "reparameterization",
        tfp.layers.DenseLocalReparameterization: "local",
        tfp.layers.DenseVariational: "reparameterization",
    }
    arguments = ("units",)
    is_matrix = True
    at_each_step = True
    passes_masks = True

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """A product with the last axis."""
        return tf.tensordot(inputs, kernel, 1) if len(inputs.shape) > 2 else tf.matmul(inputs, kernel)

    def width(self, layer: Any) -> int:
        """The units."""
        return int(layer.units)


DENSE = Dense()


@bayesian(DENSE, "flipout")
class DenseFlipout(Flipout, OnTfp, tfp.layers.DenseFlipout):
    """Dense layer, Flipout estimator: inputs [batch, ..., in], outputs [batch, ..., units]."""


@bayesian(DENSE, "reparameterization")
class DenseReparameterization(Reparameterization, OnTfp, tfp.layers.DenseReparameterization):
    """Dense layer, one weight draw a batch: inputs [batch, ..., in], outputs [batch, ..., units]."""


@bayesian(DENSE, "local")
class DenseLocalReparameterization(Local, OnTfp, tfp.layers.DenseLocalReparameterization):
    """Dense layer, noise drawn for each output: inputs [batch, ..., in], outputs [batch, ..., units]."""
