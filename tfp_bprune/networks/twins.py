"""One body, four twins: the same architecture with the layers of each kind of network.

An architecture asks a `Twins` for its layers and never says which kind they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from tfp_bprune._keras import keras
from tfp_bprune.layers import LAYERS, NormalPrior, ScaleMixturePrior, StatelessDropout, noise
from tfp_bprune.layers.posterior import DEFAULT_RHO
from tfp_bprune.types import BpruneError, Estimator, Json, Twin


@dataclass(frozen=True)
class Twins:
    """Makes the layers of one twin.

    Attributes:
      twin: "flipout", "reparameterization" and "local" are Bayesian; "deterministic" and "dropout" are ordinary.
      prior, rho_init, bayesian_bias, train_size: as in `layers.Variational`.
      dropout_rate: for the dropout twin alone.
      seed: decides initial values and noise of every layer.
    """

    twin: Twin = "flipout"
    prior: NormalPrior | ScaleMixturePrior | Json | str | None = None
    rho_init: float = DEFAULT_RHO
    bayesian_bias: bool = False
    train_size: int | None = None
    dropout_rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.twin not in get_args(Twin):
            raise BpruneError(f"unknown twin {self.twin!r}: expected one of {', '.join(get_args(Twin))}")

    @property
    def bayesian(self) -> bool:
        """Whether the weights of this twin are distributions."""
        return self.twin in get_args(Estimator)

    def dense(self, units: int, name: str, activation: str | None = None) -> Any:
        """A dense layer of `units` outputs."""
        return self._layer("Dense", name, units=units, activation=activation)

    def conv2d(
        self,
        filters: int,
        kernel_size: int,
        name: str,
        activation: str | None = None,
        strides: int = 1,
        padding: str = "same",
        use_bias: bool = True,
    ) -> Any:
        """A two-dimensional convolution of `filters` outputs."""
        return self._layer(
            "Conv2D",
            name,
            filters=filters,
            kernel_size=kernel_size,
            activation=activation,
            strides=strides,
            padding=padding,
            use_bias=use_bias,
        )

    def dropout(self, name: str) -> Callable[[Any], Any]:
        """Dropout in the dropout twin, nothing in the others."""
        if self.twin != "dropout":
            return lambda x: x
        return StatelessDropout(self.dropout_rate, seed=self.seed, name=name)

    def _layer(self, kind: str, name: str, **arguments: Any) -> Any:
        if not self.bayesian:
            start = keras.initializers.HeNormal(seed=noise.derive(self.seed, name) % 2**31)
            return getattr(keras.layers, kind)(name=name, kernel_initializer=start, **arguments)
        return LAYERS[kind, self.twin](
            name=name,
            prior=self.prior,
            rho_init=self.rho_init,
            bayesian_bias=self.bayesian_bias,
            train_size=self.train_size,
            seed=self.seed,
            **arguments,
        )


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1.

    Raises:
      BpruneError: width is not positive.
    """
    if not width > 0:
        raise BpruneError(f"width must be positive, got {width}")
    return max(1, round(channels * width))
