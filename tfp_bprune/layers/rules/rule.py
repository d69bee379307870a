"""What the package knows of a layer whose weights, if it has any, are not pruned: one rule for each class, in one table.

To add a layer: declare a `LayerRule`, or one of the ready ones, for its class with `rule_for`; nothing else changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune._registry import Registry
from tfp_bprune.types import Json

Channels = Sequence[np.ndarray]
Meaning = Literal["same", "linear", "other"]
Erf = Callable[[Any], Any]
Match = Callable[[Any, Any], tuple[Any, Any, Any]]
Declared = TypeVar("Declared")


class Spread(NamedTuple):
    """Mean and variance of numbers, tensors [batch, ...] of one shape; the variance is None where they are certain."""

    mean: Any
    variance: Any = None

    @property
    def some_variance(self) -> Any:
        """The variance, zeros where there is none."""
        return tf.zeros_like(self.mean) if self.variance is None else self.variance


class LayerRule:
    """What is known of the layers of a class; as it stands, nothing: that is safe, and holds for classes without a rule.

    A rule holds no state. Methods get the `layer`, built, of the class itself or of one made from it that leaves its
    computation alone; a class with a method of its own in the place of the base's has no rule until it gets one. Nothing
    of what a rule says is kept but in what is made by it: a pruned model, a smaller one, a traced export.

    Channels are the last axis. All is said of a call outside training, where nothing else is.

    Attributes:
      by_example: whether it treats the examples of a batch one by one, so that draws can lie beside each other as examples;
        Keras's own layers are known to.
      sized: whether its config or weights say how many channels it has: it is then made anew by `resized` for fewer, and of
        each of its weights stay the entries, along the last axis, of the output channels that stay.
      meaning: what it makes of logits or of means at the end of a network: the "same" numbers, perhaps elsewhere, numbers
        that are "linear" in them, or "other" ones.
      overridable: methods that a class made from the layer's may have of its own, since the rule asks what they say.
    """

    by_example: ClassVar[bool] = False
    sized: ClassVar[bool] = False
    meaning: ClassVar[Meaning] = "other"
    overridable: ClassVar[frozenset[str]] = frozenset()

    # Channels: pruning by unit, dead units, smaller networks

    def channels(self, layer: Any, inputs: Channels, shape: tuple[int | None, ...]) -> Channels | None:
        """Which input channels each output channel depends on.

        Args:
          inputs: [in] for each input: numbers, of any meaning, that stand for its channels.
          shape: of the output, with the batch.

        Returns:
          Arrays [out], of the numbers of `inputs`: channel i of the output depends on channel i of each of these and on no
          other, and a channel that is wanted wants all of them. None where that is not so: all channels have to stay then.
        """
        return None

    def constant(self, layer: Any, values: np.ndarray, training: bool) -> np.ndarray:
        """What output channels are whose inputs have one value for all examples and positions.

        Args:
          values: [n, out], arranged as the n arrays that `channels` gives; NaN where a channel varies.
          training: whether the layer was called with training=True.

        Returns:
          [out]; NaN where a channel varies, or where it is not known: borders that are padded make a constant vary.
        """
        return np.full(values.shape[1], np.nan)

    def resized(self, layer: Any, config: Json, kept: np.ndarray) -> Json:
        """The config of a `sized` layer of which the output channels `kept` [out], booleans, stay."""
        return config

    def places(self, layer: Any, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """Where the numbers of the inputs are in the output, of a layer that moves them or looks at each by itself.

        Args:
          inputs: tensors [1, ...] of numbers that stand for places; 0 for none.

        Returns:
          Tensors of the output's shape with the same numbers: a number of the output depends on those places that any of
          them has where it is, and on no other. None where it depends on more, or that is not known.
        """
        return None

    # Numbers by themselves

    def is_elementwise(self, layer: Any) -> bool:
        """Whether it is one function of each number by itself, so that shape and order of its input do not matter."""
        return False

    def matched(self, layer: Any, erf: Erf) -> Match | None:
        """Of a layer that is a function of each number by itself, its moments for normal numbers.

        Args:
          erf: the error function where the export runs.

        Returns:
          From tensors (mean, variance) to (mean, variance, mean slope), all of one shape; the mean slope is
          cov(function(z), z) / variance. None of other layers.
        """
        return None

    # Means and variances

    def moments(self, layer: Any, inputs: Sequence[Spread]) -> Spread | None:
        """Mean and variance of the outputs, given those of independent inputs of which one at least is uncertain.

        Positions (all axes but the first and last) of a channel may be taken to share the noise of the weights that made
        them, as pooling does: the variance of their mean is their mean variance.

        Returns:
          The outputs, of which the mean has TensorFlow's gradient by the means of the inputs; by it noise is followed back.
          None where it is not known: the export is refused by the layer's name.
        """
        return None

    def masked_moments(self, layer: Any, inputs: Spread, mask: Any) -> Spread | None:
        """The same of a layer that heeds the Keras mask of its input, [batch, positions]."""
        return None


_RULES: Registry[LayerRule] = Registry("rule of a layer")
_BY_CLASS: dict[type, LayerRule] = {}
_NOTHING = LayerRule()
# Methods that a class may have of its own and still compute what its base does.
_HARMLESS = {"__init__", "build", "get_config", "from_config", "compute_output_shape", "compute_mask"}


def rule_for(*classes: type) -> Callable[[Declared], Declared]:
    """Declares the decorated `LayerRule` class, or the rule itself, for layers of these classes.

    Raises:
      BpruneError: another rule is declared for one of them.

    Example:
      @rule_for(ChannelShuffle)
      class _Shuffled(LayerRule): ...

      rule_for(HardClip)(Elementwise)
    """

    def declare(rule: Declared) -> Declared:
        made: Any = rule() if isinstance(rule, type) else rule
        ready = type(made).__module__.startswith(__name__.rpartition(".")[0])
        for one in classes:
            name = re.sub("[<>]", "", f"{one.__module__}.{one.__qualname__}")
            _BY_CLASS[one] = _RULES.add(name, made, one if ready else type(made))
        return rule

    return declare


def ruled() -> set[type]:
    """The classes for which a rule is declared."""
    return set(_BY_CLASS)


def rule_of(layer: Any) -> LayerRule:
    """The rule of a layer; one that knows nothing where there is none for what it computes."""
    classes = type(layer).__mro__
    base = next((one for one in classes if one in _BY_CLASS), None)
    if base is None:
        return _NOTHING
    rule = _BY_CLASS[base]
    harmless = _HARMLESS | rule.overridable
    own = [pair for one in classes[: classes.index(base)] for pair in vars(one).items() if pair[0] not in harmless]
    computes = any(hasattr(base, name) and (callable(value) or isinstance(value, property)) for name, value in own)
    return _NOTHING if computes else rule
