"""One body, five kinds of layers: the same architecture with any of them.

An architecture asks a `LayerFactory` for its layers and never says which kind they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from tfp_bprune._keras import keras
from tfp_bprune.layers import LAYERS, Kind, Prior, StatelessDropout, kind_of, noise
from tfp_bprune.layers.posterior import DEFAULT_RHO
from tfp_bprune.types import BpruneError, Estimator, Json, Layers


@dataclass(frozen=True)
class LayerFactory:
    """Makes the layers of a network.

    Attributes:
      layers: "flipout", "reparameterization" or "local" (Bayesian), "deterministic" or "dropout" (ordinary).
      prior, rho_init, bayesian_bias, train_size: as in `layers.Variational`.
      dropout_rate: for "dropout" only.
      seed: determines the initial values and the noise of every layer.
    """

    layers: Layers = "flipout"
    prior: Prior | Json | str | None = None
    rho_init: float = DEFAULT_RHO
    bayesian_bias: bool = False
    train_size: int | None = None
    dropout_rate: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layers not in get_args(Layers):
            raise BpruneError(f"unknown layers {self.layers!r}: expected one of {', '.join(get_args(Layers))}")

    @property
    def bayesian(self) -> bool:
        """Whether the weights of these layers are distributions."""
        return self.layers in get_args(Estimator)

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
        """Dropout where `layers` is "dropout", nothing elsewhere."""
        if self.layers != "dropout":
            return lambda x: x
        return StatelessDropout(self.dropout_rate, seed=self.seed, name=name)

    def _layer(self, kind: str, name: str, **arguments: Any) -> Any:
        if not self.bayesian:
            start = keras.initializers.HeNormal(seed=noise.derive(self.seed, name) % 2**31)
            return getattr(keras.layers, kind)(name=name, kernel_initializer=start, **arguments)
        return LAYERS[kind, self.layers](
            name=name,
            prior=self.prior,
            rho_init=self.rho_init,
            bayesian_bias=self.bayesian_bias,
            train_size=self.train_size,
            seed=self.seed,
            **arguments,
        )


@dataclass(frozen=True)
class KindsOf(LayerFactory):
    """Tells what kinds of layers an architecture asks for; makes none, but tensors of the shapes of their outputs.

    Attributes:
      found: the kinds, in the order in which layers are asked for.
    """

    layers: Layers = "deterministic"
    found: list[Kind] = field(default_factory=list)

    def _layer(self, kind: str, name: str, **arguments: Any) -> Any:
        layer = getattr(keras.layers, kind)(name=name, **arguments)
        known = kind_of(layer)
        assert known is not None
        self.found.append(known)
        return lambda x: keras.Input(layer.compute_output_shape(x.shape)[1:], name=name)


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1.

    Raises:
      BpruneError: width is not positive.
    """
    if not width > 0:
        raise BpruneError(f"width must be positive, got {width}")
    return max(1, round(channels * width))


def widths_of(name: str, usual: tuple[int, ...], width: float, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """The units of each layer of the network `name`: `sizes`, or the `usual` ones times `width`.

    Raises:
      BpruneError: sizes of another number of layers, or below 1; a width that is not positive.
    """
    if sizes is None:
        return tuple(scaled(units, width) for units in usual)
    if len(sizes) != len(usual) or min(sizes) < 1:
        raise BpruneError(f"sizes of {name} must be {len(usual)} positive numbers of units, got {list(sizes)}")
    return tuple(sizes)
