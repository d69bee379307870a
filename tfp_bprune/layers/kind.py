"""A kind of layer whose weights can be distributions: everything that the package knows of it, in one declaration.

A kind is one class of Keras, the class of tfp.layers that computes the same, if there is one, and this package's class for
each estimator. To add one: declare a `Kind`, and its layers with `bayesian`; nothing else of the package changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune._registry import Registry
from tfp_bprune.layers import shared
from tfp_bprune.layers.axes import Axes, Sides
from tfp_bprune.types import Estimator, Json

PACKAGE = "tfp_bprune"
PER_WEIGHT = ("initializer", "regularizer", "constraint")
Arrays = Mapping[str, np.ndarray]
Flow = Literal["mixes", "keeps", "unknown"]
Layer = TypeVar("Layer", bound=type)


class Kind:
    """One kind of layer.

    A layer of a kind reads its inputs through its kernels, one after the other, each linear in its inputs and in itself;
    then come the bias and the activation. What is said here holds for the plain layer and for this package's alike, and
    methods take either as `layer`.

    Attributes:
      name: of the kind, and of its layers without the estimator.
      plain: Keras's class.
      raw: classes of tfp.layers, and which estimator each is.
      kernels: the axes of each kernel, by the attribute that holds it in the plain layer, in the order in which they are
        applied.
      parts: attributes of the plain layer that hold layers of other kinds, in which all its weights are; it has no kernels
        of its own then.
      arguments: those of the plain layer's constructor, and attributes of the layer, that its other kinds take too.
      is_matrix: whether a vector is multiplied by the one kernel [in, out], so that no two outputs of an example read the
        same weight, and the product may be sparse.
      at_each_step: whether inputs with further axes in front are read as if each entry of these were an example.
      reads_indices: whether inputs are whole numbers that stand for one-hot vectors.
      passes_masks: whether masks of Keras go through the plain layer.
      starts_as_plain: whether means start as the plain layer's weights do where nothing else is said, and not as those of
        other posteriors.
      prefers: the estimator of a network with such layers where none is named (`usual_estimator`); None leaves it to others.
    """

    name: ClassVar[str]
    plain: ClassVar[type]
    raw: ClassVar[Mapping[type, Estimator]] = {}
    kernels: ClassVar[Mapping[str, Axes]] = {"kernel": Axes()}
    parts: ClassVar[tuple[str, ...]] = ()
    arguments: ClassVar[tuple[str, ...]] = ()
    is_matrix = False
    at_each_step = False
    reads_indices = False
    passes_masks = False
    starts_as_plain = False
    prefers: ClassVar[Estimator | None] = None

    # What the layer computes

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """The inputs through one kernel, without bias: linear in both.

        Args:
          layer: built.
          name: the kernel's.
          inputs: [batch, ...], of the type of `kernel`, or whole numbers where `reads_indices`.
          kernel: of the kernel's shape; any values, as those of a draw, or squares.

        By default the plain layer's own call with that kernel in the place of its weight, without bias and activation.
        """
        return self.called(layer, inputs, {name: kernel})

    def called(self, layer: Any, inputs: Any, others: Json) -> Any:
        """The plain layer's call without bias and activation, with other values for some of the layer's attributes."""
        off = {"use_bias": False, "bias": None, "activation": None}
        return self.plain.call(_WithOther(layer, others | off), inputs)  # type: ignore[attr-defined]

    def add_bias(self, layer: Any, outputs: Any, bias: Any) -> Any:
        """The outputs and the bias, along the axis of the channels."""
        if getattr(layer, "data_format", None) == "channels_first":
            return outputs + tf.reshape(bias, (-1,) + (1,) * (len(outputs.shape) - 2))
        return tf.nn.bias_add(outputs, bias) if len(bias.shape) == 1 else outputs + bias

    def refusal(self, layer: Any) -> str:
        """Why the plain `layer` cannot be Bayesian, in a few words; empty where it can."""
        return ""

    def width(self, layer: Any) -> int:
        """How many output channels there are, each with its bias."""
        return int(layer.filters)

    def positions(self, layer: Any, outputs: int) -> int:
        """How often an example multiplies each weight, where the layer makes `outputs` positions: once for each."""
        return outputs

    def has_bias(self, layer: Any) -> bool:
        """Whether there is a bias."""
        return bool(getattr(layer, "use_bias", False))

    def fan_in(self, name: str, shape: tuple[int, ...]) -> int | None:
        """How many weights of a kernel of `shape` one output reads; None for all but those of the last axis."""
        return None

    def sign_axes(self, layer: Any, name: str, rank_in: int, rank_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of a kernel's inputs and outputs along which Flipout's signs differ, the batch aside.

        Those of the inputs are summed over, those of the outputs come from the kernel: only there does a pair of signs make
        of one draw of the weights another.
        """
        first = getattr(layer, "data_format", None) == "channels_first"
        read = () if self.reads_indices else (1 if first else rank_in - 1,)
        return read, (1 if first else rank_out - 1,)

    def moments(self, layer: Any) -> bool:
        """Whether means and variances are carried through it: no number of an output reads a weight twice, so that squares of
        the weights carry variances; and what positions share is what `common` says. By default of a kernel [..., in, out]."""
        return self.kernels == Kind.kernels

    def groups(self, layer: Any, name: str) -> int:
        """Into how many groups channels fall, each output reading those of its group through a kernel alone."""
        return 1

    def common(self, layer: Any, name: str, inputs: Any, variance: Any, one: Any, other: Any) -> Any:
        """The covariance that noise on a kernel gives two sums of an example's outputs, as it enters at every position.

        Of each weight it is the variance times, for either sum, that of the slopes times what the weight reads.

        Args:
          inputs: [batch, ...].
          variance: of the weights, of the kernel's shape.
          one, other: factors of the outputs in either sum, of the outputs' shape.

        Returns:
          [batch].
        """
        return shared.common(self, layer, name, inputs, variance, one, other)

    def axes(self, name: str) -> Axes:
        """Those of a kernel, or of the bias."""
        return Axes(read=None, made=-1) if name == "bias" else self.kernels[name]

    def sides(self, layer: Any, name: str, rank: int) -> Sides:
        """Whose weights are whose: what priors over groups go by. Of the bias each entry is of an output of its own.

        Args:
          name, rank: of a kernel, or of the bias, and how many axes it has.
        """
        return Sides(made=tuple(range(rank))) if name == "bias" else Sides.of(self.axes(name), rank)

    # How channels flow, where the last axis holds them

    def flow(self, layer: Any) -> Flow:
        """Whether each output channel depends on several input channels ("mixes"), on the one that it belongs to ("keeps"),
        or whether that cannot be followed ("unknown")."""
        return "mixes" if getattr(layer, "data_format", "channels_last") == "channels_last" else "unknown"

    def connects(self, layer: Any, left: Arrays) -> np.ndarray:
        """Which outputs an input reaches, given which weights are `left` of each kernel.

        Returns:
          [in, out] of a layer that mixes; [out] of one that keeps, where each output has its own input.
        """
        [name] = left
        return self.by_channel(name, left[name]).any(0)

    def carried(self, layer: Any, locs: Arrays) -> np.ndarray:
        """What inputs that are 1 at all positions add to each output, borders aside; shapes as of `connects`."""
        [name] = locs
        return self.by_channel(name, locs[name].astype(np.float64)).sum(0)

    def by_channel(self, name: str, kernel: np.ndarray) -> np.ndarray:
        """A kernel as [positions, in, out], or, where no axis is of outputs alone, as [positions, out]."""
        axes = self.kernels[name]
        assert axes.read is not None
        if axes.made is None:
            return np.moveaxis(kernel, axes.read, -1).reshape(-1, kernel.shape[axes.read])
        moved = np.moveaxis(kernel, (axes.read, axes.made), (-2, -1))
        return moved.reshape(-1, *moved.shape[-2:])

    def spread(self, name: str, shape: tuple[int, ...], read: np.ndarray, made: np.ndarray) -> np.ndarray:
        """Which weights of a kernel of `shape` belong to input channels `read` [in] and output channels `made` [out].

        Returns:
          Of the kernel's number of axes, to be broadcast against it; booleans.
        """
        axes, found = self.kernels[name], np.ones((1,) * len(shape), bool)
        for axis, channels in ((axes.read, read), (axes.made, made)):
            if axis is not None:
                sides = [1] * len(shape)
                sides[axis] = shape[axis]
                found = found & along(channels, shape[axis]).reshape(sides)
        return found

    def takes_constants(self, layer: Any) -> bool:
        """Whether an input that is constant at all positions adds a constant: zero padding breaks it at the borders."""
        return getattr(layer, "padding", "valid") == "valid"

    def resized(self, layer: Any, config: Json, inputs: int, outputs: int) -> Json:
        """The config of the layer with as many input and output channels."""
        sizes = {key: outputs for key in ("units", "filters") if key in config}
        return config | sizes

    # What Keras keeps of a layer

    def shared(self, layer: Any) -> Json:
        """The constructor's arguments that the layer has in common with those of its other kinds."""
        return {key: getattr(layer, key) for key in self.all_arguments() if getattr(layer, key, None) is not None}

    def all_arguments(self) -> tuple[str, ...]:
        """`arguments`, and what Keras takes for every kernel and for the bias: initializer, regularizer, constraint."""
        stems = [*map(stem_of, self.kernels), "bias"]
        return (*self.arguments, "activity_regularizer", *(f"{stem}_{what}" for stem in stems for what in PER_WEIGHT))


class _WithOther:
    """A layer with other values for some attributes, to one who only reads them."""

    def __init__(self, layer: Any, others: Json) -> None:
        self._layer = layer
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def stem_of(name: str) -> str:
    """How Keras calls a kernel in the arguments that are for it: "depthwise" of "depthwise_kernel"."""
    return name.removesuffix("_kernel")


def along(channels: np.ndarray, size: int) -> np.ndarray:
    """A number of each channel for each entry of an axis of `size`, of which every channel has as many, side by side."""
    return np.repeat(channels, size // len(channels))


_DECLARED: Registry[type] = Registry("layer")
_BY_CLASS: dict[type, Kind] = {}
LAYERS: dict[tuple[str, str], type] = {}
"""Layer classes by kind and estimator; "local" is local reparameterization where it is exact and Flipout elsewhere."""


def bayesian(kind: Kind, estimator: Estimator) -> Callable[[Layer], Layer]:
    """Declares the decorated class as the layer of a kind for an estimator, for Keras's formats too.

    Raises:
      BpruneError: there is one already.

    Example:
      @bayesian(DENSE, "flipout")
      class DenseFlipout(Flipout, OnTfp, tfp.layers.DenseFlipout): ...
    """

    def declare(layer: Layer) -> Layer:
        LAYERS[kind.name, estimator] = _DECLARED.add(f"{kind.name}.{estimator}", layer, layer)
        if estimator == "flipout":
            LAYERS.setdefault((kind.name, "local"), layer)
        _BY_CLASS.update({layer: kind, kind.plain: kind})
        layer.kind = kind  # type: ignore[attr-defined]
        made: Layer = keras.saving.register_keras_serializable(PACKAGE)(layer)
        return made

    return declare


def kind_of(layer: Any) -> Kind | None:
    """The kind of a layer, plain, of tfp.layers or Bayesian; None for any other, a user's subclass of Keras's among them."""
    found = _BY_CLASS.get(type(layer)) or getattr(type(layer), "kind", None)
    if found is not None:
        return found if isinstance(found, Kind) else None
    return next((kind for kind in kinds() if isinstance(layer, tuple(kind.raw))), None)


def usual_estimator(found: Iterable[Kind]) -> Estimator:
    """The estimator of a network with layers of the kinds `found` where none is named.

    It is one for the whole network: what the first kind prefers that prefers any, if there are layers of all kinds for it; else
    Flipout.
    """
    found = list(found)
    wanted = (kind.prefers for kind in found if kind.prefers is not None)
    return next((one for one in wanted if all((kind.name, one) in LAYERS for kind in found)), "flipout")


def kinds() -> Iterator[Kind]:
    """All kinds that are declared."""
    return iter(dict.fromkeys(_BY_CLASS.values()))
