"""Multi-head attention whose four projections have distributions over their weights, one layer for each estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from tfp_bprune._keras import keras
from tfp_bprune.layers.einsum import EINSUM
from tfp_bprune.layers.kind import LAYERS, PER_WEIGHT, Flow, Kind, bayesian
from tfp_bprune.layers.posterior import DEFAULT_RHO
from tfp_bprune.layers.prior import Prior, prior_from
from tfp_bprune.types import Estimator, Json

_LayerPart: Any = keras.layers.Layer if TYPE_CHECKING else object
_OPTIONS = ("num_heads", "key_dim", "value_dim", "dropout", "use_bias", "output_shape", "attention_axes")
_OF_WEIGHTS = tuple(f"{weight}_{what}" for weight in ("kernel", "bias") for what in PER_WEIGHT)


class MultiHeadAttention(Kind):
    """softmax(Q K) V of projections of query, key and value, and a projection of what comes of it: four `EinsumDense`."""

    name = "MultiHeadAttention"
    plain = keras.layers.MultiHeadAttention
    kernels = {}  # noqa: RUF012
    parts = ("_query_dense", "_key_dense", "_value_dense", "_output_dense")

    def shared(self, layer: Any) -> Json:
        """Keras keeps its arguments under names of their own."""
        given = {key: getattr(layer, f"_{key}") for key in (*_OPTIONS, *_OF_WEIGHTS)}
        given |= {"activity_regularizer": layer.activity_regularizer}
        return {key: value for key, value in given.items() if value is not None}

    def has_bias(self, layer: Any) -> bool:
        """Whether the projections have one."""
        return bool(layer._use_bias)

    def flow(self, layer: Any) -> Flow:
        """Heads mix what they attend to."""
        return "unknown"

    def moments(self, layer: Any) -> bool:
        """A product of what is uncertain has no rule."""
        return False


ATTENTION = MultiHeadAttention()


class Composed(_LayerPart):
    """Mixed in before a Keras layer whose `parts` are layers with weights: those are Bayesian.

    Args:
      prior, rho_init, bayesian_bias, own_prior_loc, train_size, seed: as in `Variational`, for every part; a part's name is
        that of the layer and its own.
    """

    kind: ClassVar[Kind]
    estimator: ClassVar[Estimator]

    def __init__(
        self,
        *args: Any,
        prior: Prior | Json | str | None = None,
        rho_init: float = DEFAULT_RHO,
        bayesian_bias: bool = False,
        own_prior_loc: bool = False,
        train_size: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prior = prior_from(prior)
        self.bayesian: Json = {
            "rho_init": float(rho_init),
            "bayesian_bias": bool(bayesian_bias),
            "own_prior_loc": bool(own_prior_loc),
            "train_size": train_size,
            "seed": int(seed),
        }

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars."""
        built = [getattr(self, part) for part in self.kind.parts if hasattr(self, part)]
        known = {"train_size": built[0].train_size} if built else {}
        return super().get_config() | {"prior": self.prior.get_config()} | dict(self.bayesian) | known

    def _make_bayesian(self) -> None:
        """Puts Bayesian layers in the place of the parts that Keras has made, not built."""
        layer_class = LAYERS[EINSUM.name, self.estimator]
        for part in self.kind.parts:
            plain = getattr(self, part)
            arguments = EINSUM.shared(plain) | {"dtype": plain.dtype_policy, "name": f"{self.name}_{plain.name}"}
            setattr(self, part, layer_class(prior=self.prior, **arguments, **self.bayesian))


class _Attention(Composed):
    def _build_from_signature(self, query: Any, value: Any, key: Any = None) -> None:
        super()._build_from_signature(query, value, key)
        self._make_bayesian()


@bayesian(ATTENTION, "flipout")
class MultiHeadAttentionFlipout(_Attention, keras.layers.MultiHeadAttention):
    """Multi-head attention, Flipout estimator: query [batch, T, dim], value and key [batch, S, dim]."""

    estimator = "flipout"


@bayesian(ATTENTION, "reparameterization")
class MultiHeadAttentionReparameterization(_Attention, keras.layers.MultiHeadAttention):
    """Multi-head attention, one weight draw a batch: query [batch, T, dim], value and key [batch, S, dim]."""

    estimator = "reparameterization"
