"""Dense and convolution layers with a distribution over their weights, on TFP's own layer classes.

Nine layers: Dense and Conv1D/2D/3D, each with the Flipout and the Reparameterization estimator, and Dense with local
reparameterization. What they add to tfp.layers: a mask by which weights can be removed for good, a scale-mixture
prior, one weight draw for forward pass and KL, a KL scaled once by 1/N, stateless noise, configs of JSON scalars that
survive every Keras format, and training steps at a fraction of the time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tfp_bprune._keras import keras, tf, tfp
from tfp_bprune.layers import divergence, noise
from tfp_bprune.layers.fused import Moment, Terms, terms
from tfp_bprune.layers.posterior import DEFAULT_RHO, MaskedNormal, add_masked_normal
from tfp_bprune.layers.prior import Prior, prior_from
from tfp_bprune.layers.tensorboard import show_masks
from tfp_bprune.types import Json

autocast_variable = keras.src.mixed_precision.autocast_variable
_LEAST_VARIANCE = 1e-24
_PACKAGE = "tfp_bprune"
_KERAS_ARGUMENTS = tuple(
    (f"{weight}_{name}", kind)
    for name, kind in (
        ("initializer", keras.initializers),
        ("regularizer", keras.regularizers),
        ("constraint", keras.constraints),
    )
    for weight in ("kernel", "bias")
)
show_masks()

# The classes that follow are mixed in before a Keras layer; to a type checker they are layers already.
_LayerPart: Any = keras.layers.Layer if TYPE_CHECKING else object


def _penalty(regularizer: Any, posterior: MaskedNormal) -> Any:
    return regularizer(posterior.loc)


@dataclass(frozen=True)
class Drawn:
    """The weights of one forward pass, in the type that the layer computes in; `step` keys its other noise."""

    step: Any
    kernel: Terms
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
    """What all Bayesian layers share; mixed in before a TFP layer class.

    Args:
      prior: a `ScaleMixturePrior` (default) or `NormalPrior`, or the config of one.
      rho_init: where rho starts; sigma = softplus(rho).
      bayesian_bias: whether the bias has a distribution too; by default it is an ordinary parameter.
      use_bias: whether there is a bias.
      own_prior_loc: whether the prior of each weight has a centre of its own, a weight that is not trained and starts
        at 0; `bayesianize(moped=...)` puts it at the trained weight.
      train_size: N, the training examples of the whole job; `set_train_size` can tell it later.
      kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: as in
        the plain Keras layer, of the means where a weight has a distribution. A regularizer is a penalty beside the KL.
      seed: with the layer's name it decides the initial values and all noise.

    A forward pass draws one weight tensor, for a batch of any size, and adds its share of the KL to the layer's losses,
    however often the layer is called in it: the branches of a siamese network see the same weights. A pass is what the
    outermost Keras call does, so two calls of a model are two draws.

    Weights, draws and KL are of at least float32, whatever the layer computes in; masks of Keras go through as they do
    through the plain layer.
    """

    kernel_posterior: MaskedNormal
    bias_posterior: MaskedNormal | None
    _passes_masks = False  # whether the plain Keras layer does

    def __init__(
        self,
        *args: Any,
        prior: Prior | Json | str | None = None,
        rho_init: float = DEFAULT_RHO,
        bayesian_bias: bool = False,
        use_bias: bool = True,
        own_prior_loc: bool = False,
        train_size: int | None = None,
        seed: int = 0,
        kernel_initializer: Any = None,
        kernel_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_initializer: Any = None,
        bias_regularizer: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args,
            kernel_posterior_fn=self._make_kernel_posterior,
            kernel_prior_fn=None,
            kernel_divergence_fn=None,
            bias_posterior_fn=None,
            bias_prior_fn=None,
            bias_divergence_fn=None,
            **kwargs,
        )
        self.prior = prior_from(prior)
        self.rho_init, self.seed = float(rho_init), int(seed)
        self.bayesian_bias, self.use_bias = bool(bayesian_bias), bool(use_bias)
        self.own_prior_loc = bool(own_prior_loc)
        self.train_size = None if train_size is None else int(train_size)
        given = (
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            bias_regularizer,
            kernel_constraint,
            bias_constraint,
        )
        for (name, kind), value in zip(_KERAS_ARGUMENTS, given, strict=True):
            setattr(self, name, kind.get(value))
        self.supports_masking = self._passes_masks
        self._held = _Held()

    def build(self, input_shape: Any) -> None:
        """Creates kernel, bias, and the three scalars that training keeps in the layer."""
        super().build(input_shape)
        self.bias, self.bias_posterior = None, None
        if self.use_bias and self.bayesian_bias:
            self.bias_posterior = self._masked_normal("bias", (self._outputs,))
        elif self.use_bias:
            start = self.bias_initializer or "zeros"
            self.bias = self.add_weight("bias", (self._outputs,), initializer=start, constraint=self.bias_constraint)
        self._add_penalties()
        self.noise_step = self.add_weight(
            name="noise_step", shape=(), dtype=tf.int64, initializer="zeros", trainable=False
        )
        scalar: Json = {"shape": (), "dtype": tf.float32, "trainable": False, "experimental_autocast": False}
        self.kl_schedule = self.add_weight(name="kl_schedule", initializer="ones", **scalar)
        self.last_kl = self.add_weight(name="last_kl", initializer="zeros", **scalar)

    def _add_penalties(self) -> None:
        """Has Keras add the regularizers of means and bias to every loss."""
        for name, regularizer in (("kernel", self.kernel_regularizer), ("bias", self.bias_regularizer)):
            posterior = self.posteriors.get(name)
            if regularizer is not None and posterior is not None:
                self.add_loss(partial(_penalty, regularizer, posterior))
            elif regularizer is not None and self.bias is not None:
                self.add_loss(partial(regularizer, self.bias))

    def _make_kernel_posterior(
        self, dtype: Any, shape: Any, name: str, trainable: bool, add_variable: Any
    ) -> MaskedNormal:
        return self._masked_normal("kernel", shape)

    def _masked_normal(self, name: str, shape: Any) -> MaskedNormal:
        seed = noise.derive(self.seed, self.name)
        initializer, constraint = (getattr(self, f"{name}_{what}") for what in ("initializer", "constraint"))
        return add_masked_normal(
            self.add_weight, name, shape, self.rho_init, seed, self.own_prior_loc, initializer, constraint
        )

    @property
    def posteriors(self) -> dict[str, MaskedNormal]:
        """The weight tensors that have a distribution, by name."""
        found = {"kernel": self.kernel_posterior}
        return found | {"bias": self.bias_posterior} if self.bias_posterior is not None else found

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The layer's output under one draw of its weights; inputs [batch, ..., channels]."""
        inputs = tf.cast(inputs, self.compute_dtype)
        if training is None:
            training = keras.backend.learning_phase()
        training = isinstance(training, bool | int) and bool(training)
        drawn = self._drawn(self._moment(inputs), training)
        outputs = self._apply_kernel(inputs, drawn.kernel, drawn.step)
        outputs = outputs if drawn.bias is None else self._add_bias(outputs, drawn.bias)
        return outputs if self.activation is None else self.activation(outputs)

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
        step = noise.next_step(self.noise_step, self.name)
        kernel = self._terms("kernel", moment, step, training)
        kl, bias = kernel.kl, self.bias
        if self.bias_posterior is not None:
            terms_of_bias = self._terms("bias", "deviation", step, training)
            bias, kl = terms_of_bias.loc + terms_of_bias.second, kl + terms_of_bias.kl
        self.last_kl.assign(kl)
        if self.train_size is not None or training:
            self.add_loss(divergence.scaled(kl, self.train_size or 0, self.kl_schedule, self.name))

        def computed(value: Any) -> Any:
            return None if value is None else tf.cast(value, self.compute_dtype)

        second = kernel.second if moment == "variance" else computed(kernel.second)  # variances underflow in float16
        return Drawn(step, Terms(computed(kernel.loc), second, kl), computed(bias))

    def _moment(self, inputs: Any) -> Moment:
        """What the estimator needs of the kernel besides its mean."""
        return "deviation"

    def _terms(self, name: str, moment: Moment, step: Any, training: bool) -> Terms:
        def seeds(stream: str) -> Any:
            return self._seed(step, f"{name}/{stream}")

        return terms(self.posteriors[name], self.prior, moment, seeds, every_value=not training)

    def _seed(self, step: Any, stream: str) -> Any:
        return noise.seed_pair(step, self.seed, self.name, stream)

    def get_config(self) -> Json:
        """The layer's arguments as JSON scalars."""
        skipped = (
            "kernel_posterior",
            "kernel_prior",
            "kernel_divergence",
            "bias_posterior",
            "bias_prior",
            "bias_divergence",
        )
        config = {key: value for key, value in super().get_config().items() if not key.startswith(skipped)}
        given = {name: kind.serialize(getattr(self, name)) for name, kind in _KERAS_ARGUMENTS if getattr(self, name)}
        return (
            config
            | given
            | {
                "prior": self.prior.get_config(),
                "rho_init": self.rho_init,
                "bayesian_bias": self.bayesian_bias,
                "use_bias": self.use_bias,
                "own_prior_loc": self.own_prior_loc,
                "train_size": self.train_size,
                "seed": self.seed,
            }
        )

    @classmethod
    def from_config(cls, config: Json) -> Any:
        """A new layer with the arguments in `config`."""
        return cls(**config)


class _ReparameterizationEstimator(_LayerPart):
    """One weight draw shared by the whole batch (Kingma and Welling 2014)."""

    def _apply_kernel(self, inputs: Any, kernel: Terms, step: Any) -> Any:
        return self._linear(inputs, kernel.loc + kernel.second)


class _FlipoutEstimator(_LayerPart):
    """One weight draw whose deviation from the mean is flipped by independent signs for each example.

    Wen et al. 2018 (arXiv 1803.04386), eq. 4: x W_mean + ((x * s) dW) * r with s, r in {-1, +1}. Each example sees a
    weight tensor of the right distribution, nearly independent of the other examples'.
    """

    def _apply_kernel(self, inputs: Any, kernel: Terms, step: Any) -> Any:
        mean = self._linear(inputs, kernel.loc)
        sign_in = self._signs(inputs, self._seed(step, "sign_in"))
        sign_out = self._signs(mean, self._seed(step, "sign_out"))
        return mean + self._linear(inputs * sign_in, kernel.second) * sign_out

    def _signs(self, like: Any, seed: Any) -> Any:
        """One sign for each example and channel of `like`, broadcast over positions."""
        shape, rank = tf.shape(like), len(like.shape)
        channel = 1 if getattr(self, "data_format", None) == "channels_first" else rank - 1
        extent = [shape[axis] if axis in (0, channel) else 1 for axis in range(rank)]
        signs = noise.signs(extent, seed, like.dtype)
        # Broadcasting against an unknown size would lose those of axes with one entry.
        return tf.ensure_shape(signs, [like.shape[axis] if axis in (0, channel) else 1 for axis in range(rank)])


class _LocalEstimator(_FlipoutEstimator):
    """Noise on the outputs instead of the weights: x mu + sqrt(x^2 sigma^2) epsilon, independent for each output.

    Kingma et al. 2015 (arXiv 1506.02557), eq. 6. Exact where each output of an example reads weights that no other
    output of it reads, as in a dense layer on vectors: outputs have the distribution that a weight draw for each
    example would give. Where positions share the weights (inputs of rank 3 and more) Flipout is used instead.
    """

    def _moment(self, inputs: Any) -> Moment:
        shared = len(self._inbound_nodes) > 1  # its calls see one draw, so none of them can draw its outputs instead
        return "variance" if len(inputs.shape) == 2 and not shared else "deviation"

    def _apply_kernel(self, inputs: Any, kernel: Terms, step: Any) -> Any:
        if self._moment(inputs) == "deviation":
            return super()._apply_kernel(inputs, kernel, step)
        mean = tf.matmul(inputs, kernel.loc)
        variance = tf.matmul(tf.square(tf.cast(inputs, kernel.second.dtype)), kernel.second)
        # The root has no gradient at 0, where a unit has no weight left.
        scale = tf.sqrt(variance + _LEAST_VARIANCE)
        noisy = scale * tf.cast(noise.normal(tf.shape(mean), self._seed(step, "outputs")), scale.dtype)
        return mean + tf.cast(noisy, mean.dtype)


class _Dense(Variational):
    _passes_masks = True

    @property
    def _outputs(self) -> int:
        return self.units

    def _linear(self, inputs: Any, kernel: Any) -> Any:
        return tf.tensordot(inputs, kernel, 1) if len(inputs.shape) > 2 else tf.matmul(inputs, kernel)

    def _add_bias(self, outputs: Any, bias: Any) -> Any:
        return tf.nn.bias_add(outputs, bias)


class _Conv(Variational):
    @property
    def _outputs(self) -> int:
        return self.filters

    def _linear(self, inputs: Any, kernel: Any) -> Any:
        return self._convolution_op(inputs, kernel)

    def _add_bias(self, outputs: Any, bias: Any) -> Any:
        if self.data_format == "channels_first":
            return outputs + tf.reshape(bias, (-1,) + (1,) * self.rank)
        return tf.nn.bias_add(outputs, bias)


_registered = keras.saving.register_keras_serializable(_PACKAGE)


@_registered
class DenseFlipout(_FlipoutEstimator, _Dense, tfp.layers.DenseFlipout):
    """Dense layer, Flipout estimator: inputs [batch, ..., in], outputs [batch, ..., units]."""


@_registered
class DenseReparameterization(_ReparameterizationEstimator, _Dense, tfp.layers.DenseReparameterization):
    """Dense layer, one weight draw a batch: inputs [batch, ..., in], outputs [batch, ..., units]."""


@_registered
class DenseLocalReparameterization(_LocalEstimator, _Dense, tfp.layers.DenseLocalReparameterization):
    """Dense layer, noise drawn for each output: inputs [batch, ..., in], outputs [batch, ..., units]."""


@_registered
class Conv1DFlipout(_FlipoutEstimator, _Conv, tfp.layers.Convolution1DFlipout):
    """1D convolution, Flipout estimator: inputs [batch, steps, channels]."""


@_registered
class Conv2DFlipout(_FlipoutEstimator, _Conv, tfp.layers.Convolution2DFlipout):
    """2D convolution, Flipout estimator: inputs [batch, rows, columns, channels]."""


@_registered
class Conv3DFlipout(_FlipoutEstimator, _Conv, tfp.layers.Convolution3DFlipout):
    """3D convolution, Flipout estimator: inputs [batch, planes, rows, columns, channels]."""


@_registered
class Conv1DReparameterization(_ReparameterizationEstimator, _Conv, tfp.layers.Convolution1DReparameterization):
    """1D convolution, one weight draw a batch: inputs [batch, steps, channels]."""


@_registered
class Conv2DReparameterization(_ReparameterizationEstimator, _Conv, tfp.layers.Convolution2DReparameterization):
    """2D convolution, one weight draw a batch: inputs [batch, rows, columns, channels]."""


@_registered
class Conv3DReparameterization(_ReparameterizationEstimator, _Conv, tfp.layers.Convolution3DReparameterization):
    """3D convolution, one weight draw a batch: inputs [batch, planes, rows, columns, channels]."""


LAYERS: dict[tuple[str, str], type] = {
    (kind, estimator): globals()[kind + suffix]
    for kind in ("Dense", "Conv1D", "Conv2D", "Conv3D")
    for estimator, suffix in (
        ("flipout", "Flipout"),
        ("reparameterization", "Reparameterization"),
        ("local", "LocalReparameterization" if kind == "Dense" else "Flipout"),
    )
}
"""Layer classes by kind and estimator; "local" is local reparameterization where it is exact and Flipout elsewhere."""


def variational_layers(model: Any) -> Iterator[Any]:
    """The Bayesian layers of `model`, nested models included, each once, in order."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, Variational):
            yield layer


def set_train_size(model: Any, train_size: int) -> None:
    """Tells every Bayesian layer N, the training examples of the whole job. The model's functions are traced anew."""
    for layer in variational_layers(model):
        layer.train_size = int(train_size)
    for function in ("train_function", "test_function", "predict_function"):
        setattr(model, function, None)
