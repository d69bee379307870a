"""What all layers with a distribution over their weights share, on tfp.layers' classes or on Keras's own.

What they add to tfp.layers: a mask by which weights can be removed for good, a scale-mixture prior, one weight draw for
forward pass and KL, a KL scaled once by 1/N, stateless noise, configs of JSON scalars that survive every Keras format, and
training steps at a fraction of the time.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers import divergence, noise
from tfp_bprune.layers.distribution import POSTERIORS, Moment, Posterior, Terms
from tfp_bprune.layers.kind import PER_WEIGHT, Kind, stem_of
from tfp_bprune.layers.notice import say_what_is_drawn
from tfp_bprune.layers.posterior import DEFAULT_RHO, MaskedNormal
from tfp_bprune.layers.prior import CentredPrior, Prior, prior_from
from tfp_bprune.layers.tensorboard import show_masks
from tfp_bprune.types import BpruneError, Json, check_number

autocast_variable = keras.src.mixed_precision.autocast_variable
_OF_KERAS = {"initializer": keras.initializers, "regularizer": keras.regularizers, "constraint": keras.constraints}
show_masks()

# The classes that follow are mixed in before a Keras layer; to a type checker they are layers already.
_LayerPart: Any = keras.layers.Layer if TYPE_CHECKING else object


def _penalty(regularizer: Any, posterior: Posterior) -> Any:
    return regularizer(posterior.loc)


def _asks_for_shapes() -> bool:
    """Whether Keras calls a layer of a functional model for the shape of its output alone, in a graph that it throws away.

    There a draw would be traced in vain, which takes most of the time of making, copying and loading a model.
    """
    return not tf.executing_eagerly() and tf.compat.v1.get_default_graph().name.endswith("_scratch_graph")


@dataclass(frozen=True)
class Drawn:
    """The weights of one forward pass, in the type that the layer computes in; `step` keys its other noise."""

    step: Any
    kernels: dict[str, Terms]
    bias: Any


class _Held(threading.local):
    """What a thread's last forward pass drew, and of which pass that was."""

    losses: Any = None
    place: Any = None
    drawn: Any = None

    def __deepcopy__(self, memo: Any) -> _Held:
        return _Held()

    def __reduce__(self) -> Any:
        return (_Held, ())


class Variational(_LayerPart):
    """Base class of all Bayesian layers; `OnTfp` or `OnKeras` mixes it in before a layer class of TFP or Keras.

    Args:
      prior: a `ScaleMixturePrior` (default), `NormalPrior` or other `Prior`, or the config of one.
      rho_init: initial rho; the standard deviation is sigma = softplus(rho).
      bayesian_bias: whether the bias has a distribution too; by default it is an ordinary parameter.
      own_prior_loc: whether the prior of each weight has a centre of its own, a variable that is not trained and starts at 0;
        `bayesianize(moped=...)` puts it at the trained weight.
      posterior: the family of posteriors, by its registered name; by default the one that the prior requires, or else
        independent normals.
      train_size: N, the number of training examples (of all workers together) by which the KL is divided; `set_train_size`
        can set it later.
      seed: together with the layer's name it determines the initial values and all noise.

    All other arguments are those of the plain Keras layer. Where a weight has a distribution, initializers, regularizers and
    constraints apply to its mean. A regularizer is a penalty in addition to the KL.

    A forward pass draws one weight tensor for the whole batch, and adds its KL to the layer's losses once, however often
    the layer is called in the pass: the branches of a siamese network see the same weights. A pass is one outermost Keras
    call, so two calls of a model are two draws.

    Weights, draws and KL are computed in at least float32, whatever the layer's policy is. Keras masks pass through as they do
    through the plain layer.

    Attributes:
      kind: the `Kind` of the layer.
      posteriors: the posteriors by weight name: the kernels, and "bias" if it has a distribution.
    """

    kind: ClassVar[Kind]
    posteriors: dict[str, Posterior]

    def __init__(
        self,
        *args: Any,
        prior: Prior | Json | str | None = None,
        rho_init: float = DEFAULT_RHO,
        bayesian_bias: bool = False,
        own_prior_loc: bool = False,
        posterior: str | None = None,
        train_size: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.prior = prior_from(prior)
        self.posterior = self._family(posterior)
        if own_prior_loc:
            CentredPrior(self.prior)  # which refuses some
        check_number("rho_init", rho_init)
        if not math.isfinite(rho_init):
            raise BpruneError(f"rho_init must be finite, got {rho_init}")
        check_number("seed", seed, whole=True)
        self.rho_init, self.seed = float(rho_init), int(seed)
        self.bayesian_bias, self.own_prior_loc = bool(bayesian_bias), bool(own_prior_loc)
        self.train_size = None if train_size is None else _checked_size(train_size)
        self._held = _Held()

    def _family(self, given: str | None) -> str:
        """The name of the family of the posteriors, which some priors say."""
        wanted = self.prior.family
        found = (wanted or MaskedNormal.kind) if given is None else given
        if POSTERIORS.named(found) and found != (wanted or found):
            raise BpruneError(
                f"layer {self.name!r}: prior {self.prior.kind!r} needs the posterior {wanted!r}, got {found!r}: leave posterior out"
            )
        return found

    def build(self, input_shape: Any) -> None:
        """Creates kernels, bias, and the three scalars that training keeps in the layer."""
        self.__dict__["posteriors"] = {}  # past Keras, which would track and wrap it
        self._add_weights(input_shape)
        self.noise_step = self.add_weight(
            name="noise_step", shape=(), dtype=tf.int64, initializer="zeros", **noise.of_each_replica()
        )
        scalar: Json = {"shape": (), "dtype": tf.float32, "trainable": False, "experimental_autocast": False}
        self.kl_schedule = self.add_weight(name="kl_schedule", initializer="ones", **scalar)
        self.last_kl = self.add_weight(name="last_kl", initializer="zeros", **scalar | noise.of_each_replica())
        self.built = True

    def _add_weights(self, input_shape: Any) -> None:
        """Creates kernels and bias, as `_add_posterior` and as `bias`."""
        raise NotImplementedError

    def _add_posterior(self, name: str, shape: Any) -> Posterior:
        """Creates the distribution of a kernel or of the bias."""
        seed = noise.derive(self.seed, self.name)
        stem, shape = stem_of(name), tuple(shape)
        initializer, regularizer, constraint = (getattr(self, f"{stem}_{what}", None) for what in PER_WEIGHT)
        options = {"loc_initializer": initializer, "loc_constraint": constraint}
        options |= {"fan_in": self.kind.fan_in(name, shape) if name != "bias" else None}
        posterior = POSTERIORS[self.posterior].create(self.add_weight, name, shape, self.rho_init, seed, **options)
        posterior.sides = self.kind.sides(self, name, len(shape))
        prior = CentredPrior(self.prior) if self.own_prior_loc else self.prior
        posterior.take(prior, self.add_weight, name, self.kind.axes(name))
        self.posteriors[name] = posterior
        if regularizer is not None:
            self.add_loss(partial(_penalty, regularizer, posterior))
        return posterior

    @property
    def bias_posterior(self) -> Posterior | None:
        """The distribution of the bias; None where it has none."""
        return self.posteriors.get("bias")

    @bias_posterior.setter
    def bias_posterior(self, posterior: Any) -> None:
        """What tfp.layers would put there is not wanted."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The layer's output under one draw of its weights; inputs [batch, ...] as the plain layer takes them."""
        if not self.kind.reads_indices:
            inputs = tf.cast(inputs, self.compute_dtype)
        if training is None:
            training = keras.backend.learning_phase()
        training = isinstance(training, bool | int) and bool(training)
        outputs = self._mean(inputs) if _asks_for_shapes() else self._sampled(inputs, training)
        activation = getattr(self, "activation", None)
        return outputs if activation is None else activation(outputs)

    def _sampled(self, inputs: Any, training: bool) -> Any:
        drawn, outputs = self._drawn(self._moment(inputs), training), inputs
        for name in self.kind.kernels:
            outputs = self._apply_kernel(name, outputs, drawn.kernels[name], drawn.step)
        return outputs if drawn.bias is None else self.kind.add_bias(self, outputs, drawn.bias)

    def _mean(self, inputs: Any) -> Any:
        """What is of the shape and type of a draw, without a bias."""
        for name in self.kind.kernels:
            inputs = self._linear(name, inputs, tf.cast(self.posteriors[name].loc, self.compute_dtype))
        return inputs

    def _linear(self, name: str, inputs: Any, kernel: Any) -> Any:
        return self.kind.linear(self, name, inputs, kernel)

    def _drawn(self, moment: Moment, training: bool) -> Drawn:
        """The weights of this forward pass: those that an earlier call in it drew, or new ones."""
        # Keras gives every layer a new list of losses when the outermost call begins.
        place = (moment, training, None if tf.executing_eagerly() else tf.compat.v1.get_default_graph())
        if self._held.losses is not self._eager_losses or self._held.place != place:
            self._held.losses, self._held.place = self._eager_losses, place
            with autocast_variable.enable_auto_cast_variables(None):
                self._held.drawn = self._draw(moment, training)
        return self._held.drawn

    def _draw(self, moment: Moment, training: bool) -> Drawn:
        """One draw of all weights; its KL goes into the losses."""
        say_what_is_drawn(training)
        step = noise.next_step(self.noise_step, self.name)
        kernels = {name: self._terms(name, moment, step, training) for name in self.kind.kernels}
        first, *others = [kernel.kl for kernel in kernels.values()]
        kl, bias = sum(others, first), self.bias
        if self.bias_posterior is not None:
            terms_of_bias = self._terms("bias", "deviation", step, training)
            bias, kl = terms_of_bias.loc + terms_of_bias.second, kl + terms_of_bias.kl
        self.last_kl.assign(kl)
        if self.train_size is not None or training:
            self.add_loss(divergence.scaled(kl, self.train_size or 0, self.kl_schedule, self.name))
        computed = {name: self._computed(moment, kernel) for name, kernel in kernels.items()}
        return Drawn(step, computed, None if bias is None else tf.cast(bias, self.compute_dtype))

    def _computed(self, moment: Moment, kernel: Terms) -> Terms:
        """The terms in the type that the layer computes in, but variances, which underflow in float16."""
        second = kernel.second if moment == "variance" else tf.cast(kernel.second, self.compute_dtype)
        return Terms(tf.cast(kernel.loc, self.compute_dtype), second, kernel.kl)

    def _moment(self, inputs: Any) -> Moment:
        """What the estimator needs of the kernels besides their means."""
        return "deviation"

    def _terms(self, name: str, moment: Moment, step: Any, training: bool) -> Terms:
        def seeds(stream: str) -> Any:
            return noise.seed_pair(step, self.seed, self.name, f"{name}/{stream}")

        return self.posteriors[name].terms(moment, seeds, every_value=not training)

    def _seed(self, step: Any, stream: str) -> Any:
        """That of noise which each example has for itself."""
        return noise.example_seed_pair(step, self.seed, self.name, stream)

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars; the posterior only where it is not the usual one."""
        family = {} if self.posterior == MaskedNormal.kind else {"posterior": self.posterior}
        return (
            super().get_config()
            | family
            | {
                "prior": self.prior.get_config(),
                "rho_init": self.rho_init,
                "bayesian_bias": self.bayesian_bias,
                "own_prior_loc": self.own_prior_loc,
                "train_size": self.train_size,
                "seed": self.seed,
            }
        )

    @classmethod
    def from_config(cls, config: Json) -> Any:
        """A new layer with the arguments in `config`."""
        return cls(**config)


class OnTfp(Variational):
    """Mixed in before a class of tfp.layers, of one kernel, which then keeps what the plain Keras layer does too.

    Args:
      use_bias: whether there is a bias.
      kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: as in
        the plain Keras layer.
    """

    def __init__(self, *args: Any, use_bias: bool = True, **kwargs: Any) -> None:
        of_keras = {
            f"{stem}_{what}": kwargs.pop(f"{stem}_{what}", None) for what in PER_WEIGHT for stem in ("kernel", "bias")
        }
        own: Json = dict.fromkeys(
            ("kernel_prior_fn", "kernel_divergence_fn", "bias_posterior_fn", "bias_prior_fn", "bias_divergence_fn")
        )
        super().__init__(*args, kernel_posterior_fn=self._make_kernel_posterior, **own, **kwargs)
        self.use_bias = bool(use_bias)
        for name, value in of_keras.items():
            setattr(self, name, _OF_KERAS[name.rpartition("_")[2]].get(value))
        self.supports_masking = self.kind.passes_masks

    def _add_weights(self, input_shape: Any) -> None:
        super(Variational, self).build(input_shape)
        self._add_bias()

    def _add_bias(self) -> None:
        self.bias = None
        if self.use_bias and self.bayesian_bias:
            self._add_posterior("bias", (self.kind.width(self),))
        elif self.use_bias:
            start = self.bias_initializer or "zeros"
            self.bias = self.add_weight(
                "bias",
                (self.kind.width(self),),
                initializer=start,
                constraint=self.bias_constraint,
                regularizer=self.bias_regularizer,
            )

    def _make_kernel_posterior(
        self, dtype: Any, shape: Any, name: str, trainable: bool, add_variable: Any
    ) -> Posterior:
        return self._add_posterior("kernel", shape)

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars, without functions that tfp.layers would marshal."""
        functions = tuple(
            f"{weight}_{what}" for weight in ("kernel", "bias") for what in ("posterior", "prior", "divergence")
        )
        config = {key: value for key, value in super().get_config().items() if not key.startswith(functions)}
        given: Json = {}
        for what in PER_WEIGHT:
            for stem in ("kernel", "bias"):
                value = getattr(self, f"{stem}_{what}")
                given |= {f"{stem}_{what}": _OF_KERAS[what].serialize(value)} if value else {}
        return config | given | {"use_bias": self.use_bias}


class OnKeras(Variational):
    """Mixed in before a layer of Keras, whose kernels get distributions as it creates them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Means start as posteriors do, where nothing else is said, and not as the plain layer's weights.
        kernels = () if self.kind.starts_as_plain else self.kind.kernels
        ours = {f"{stem_of(name)}_initializer": None for name in kernels}
        super().__init__(*args, **(ours | kwargs))

    def _add_weights(self, input_shape: Any) -> None:
        self.bias = None
        super(Variational, self).build(input_shape)

    def add_weight(self, name: Any = None, shape: Any = None, **options: Any) -> Any:
        """As Keras's; of a kernel, and of a bias that is to have one, its distribution, of which a layer has no use."""
        if name in self.kind.kernels:
            return self._add_posterior(name, shape)
        if name == "bias" and self.bayesian_bias:
            self._add_posterior(name, shape)
            return None
        return super().add_weight(name=name, shape=shape, **options)


def variational_layers(model: Any) -> Iterator[Any]:
    """The Bayesian layers of `model`, nested models included, each once, in order."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, Variational):
            yield layer


def _checked_size(train_size: Any) -> int:
    check_number("train_size", train_size, whole=True)
    if train_size < 1:
        raise BpruneError(f"train_size, the number of training examples, must be at least 1, got {train_size}")
    return int(train_size)


def set_train_size(model: Any, train_size: int) -> None:
    """Tells every Bayesian layer N, the training examples of the whole job. The model's functions are traced anew.

    Raises:
      BpruneError: it is no whole number above 0.
    """
    train_size = _checked_size(train_size)
    for layer in variational_layers(model):
        layer.train_size = train_size
    for function in ("train_function", "test_function", "predict_function"):
        setattr(model, function, None)
