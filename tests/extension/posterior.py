"""A posterior that is a product: a normal scale of each output times a normal weight (w = z v)."""

from __future__ import annotations

from typing import Any

import tfp_bprune as bp
from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.names import of_part
from tfp_bprune.layers.posterior import log_scale_of, rho_of, scale_of


@bp.register_posterior
class Product(bp.Posterior):
    """w = z v: a scale z of each output and a weight v, both normal."""

    kind = "product"

    def __init__(self, parts: Any, mask: Any) -> None:
        super().__init__(mask)
        self._parts = parts

    @classmethod
    def create(cls, add_weight: Any, name: str, shape: Any, rho_init: float, seed: int, **_: Any) -> Any:
        units = (1,) * (len(shape) - 1) + (shape[-1],)
        starts = {"loc": ("glorot_uniform", shape), "rho": (keras.initializers.Constant(rho_init), shape)}
        starts |= {"z_loc": ("ones", units), "z_rho": (keras.initializers.Constant(rho_init), units)}
        parts = {p: add_weight(name=of_part(name, p), shape=s, initializer=i) for p, (i, s) in starts.items()}
        mask = add_weight(name=of_part(name, "mask"), shape=shape, initializer="ones", dtype=tf.bool, trainable=False)
        return cls(parts, mask)

    @property
    def parts(self) -> Any:
        return self._parts

    @property
    def loc(self) -> Any:
        return tf.where(self.mask, self._parts["z_loc"] * self._parts["loc"], 0.0)

    @property
    def scale(self) -> Any:
        (mu_z, mu_v), (s_z, s_v) = self._means(), self._scales()
        variance = tf.square(mu_z * s_v) + tf.square(s_z * mu_v) + tf.square(s_z * s_v)
        return tf.where(self.mask, tf.sqrt(variance), 0.0)

    def sample_centred(self, seed: Any) -> Any:
        (mu_z, mu_v), (s_z, s_v) = self._means(), self._scales()
        first, second = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        z = mu_z + s_z * tf.random.stateless_normal(mu_z.shape, first)
        v = mu_v + s_v * tf.random.stateless_normal(mu_v.shape, second)
        return tf.where(self.mask, z * v - mu_z * mu_v, 0.0)

    def kl(self, sample: Any) -> Any:
        """KL of v from N(0, 1); z has no prior."""
        (_, mu), (_, scale) = self._means(), self._scales()
        each = 0.5 * (tf.square(mu) + tf.square(scale) - 1) - log_scale_of(self._parts["rho"])
        return tf.reduce_sum(tf.where(self.mask, each, 0.0))

    def assign(self, loc: Any, scale: Any = None) -> None:
        self._parts["loc"].assign(loc / self._parts["z_loc"].numpy())
        if scale is not None:
            self._parts["rho"].assign(rho_of(scale))

    @property
    def resting(self) -> Any:
        return [(self._parts["loc"], 0.0), (self._parts["rho"], -5.0), *super().resting]

    def _means(self) -> Any:
        return tf.convert_to_tensor(self._parts["z_loc"]), tf.convert_to_tensor(self._parts["loc"])

    def _scales(self) -> Any:
        return scale_of(self._parts["z_rho"]), scale_of(self._parts["rho"])
