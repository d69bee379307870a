"""Dense layers by an equation (`EinsumDense`) with a distribution over their weights, one for each estimator."""

from __future__ import annotations

from string import ascii_letters
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.layers.axes import Sides
from tfp_bprune.layers.estimators import Flipout, Reparameterization
from tfp_bprune.layers.kind import Flow, Kind, bayesian
from tfp_bprune.layers.variational import OnKeras
from tfp_bprune.types import Json


class EinsumDense(Kind):
    """outputs = einsum(equation, inputs, W) + b, as the projections of attention."""

    name = "EinsumDense"
    plain = keras.layers.EinsumDense
    arguments = ("equation", "bias_axes")

    def refusal(self, layer: Any) -> str:
        """Outputs have to begin as inputs do, with the examples: noise is theirs."""
        read, _, made = _letters(layer.equation)
        begins = layer.equation.startswith("...") or read[:1] == made[:1]
        return "" if begins else f"its outputs by {layer.equation!r} do not begin with the axis of the examples"

    def shared(self, layer: Any) -> Json:
        """The output's shape goes by another name in the layer."""
        return super().shared(layer) | {"output_shape": tuple(layer.partial_output_shape)}

    def linear(self, layer: Any, name: str, inputs: Any, kernel: Any) -> Any:
        """As the plain layer, but for equations that are a dense layer's.

        Of "...x,xy->...y" TensorFlow 2.18 makes wrong numbers on processors where oneDNN computes it.
        """
        if self.flow(layer) == "mixes":
            return tf.tensordot(inputs, kernel, 1)
        return super().linear(layer, name, inputs, kernel)

    def has_bias(self, layer: Any) -> bool:
        """Whether some axes have one."""
        return layer.bias_axes is not None

    def add_bias(self, layer: Any, outputs: Any, bias: Any) -> Any:
        """A bias of the shape that the equation gives it."""
        return outputs + bias

    def width(self, layer: Any) -> int:
        """The last axis of the outputs."""
        return int(layer.kernel.shape[-1])

    def fan_in(self, name: str, shape: tuple[int, ...]) -> int | None:
        """As Keras counts them: what is summed over is not known without the equation."""
        return None

    def sign_axes(self, layer: Any, name: str, rank_in: int, rank_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the equation sums over, and what the kernel alone brings."""
        read, kernel, made = _letters(layer.equation)
        from_end = [i - len(read) for i, letter in enumerate(read) if letter in kernel and letter not in made]
        to_end = [i - len(made) for i, letter in enumerate(made) if letter in kernel and letter not in read]
        left = layer.equation.startswith("...")
        starts = (rank_in, rank_out) if left else (len(read), len(made))
        return tuple(starts[0] + i for i in from_end), tuple(starts[1] + i for i in to_end)

    def sides(self, layer: Any, name: str, rank: int) -> Sides:
        """Of the kernel the axes that inputs have too, and those that outputs have too."""
        read, kernel, made = _letters(layer.equation)
        if name == "bias":
            return super().sides(layer, name, rank)
        of = (tuple(i for i, letter in enumerate(kernel) if letter in side) for side in (read, made))
        return Sides(*of)

    def flow(self, layer: Any) -> Flow:
        """Of an equation that is a dense layer's: "abc,cd->abd"."""
        read, kernel, made = _letters(layer.equation)
        dense = len(kernel) == 2 and read[-1] == kernel[0] and made == read[:-1] + kernel[1]
        plain_bias = layer.bias_axes is None or layer.bias_axes == made[-1:]
        return "mixes" if dense and plain_bias and not layer.equation.endswith("...") else "unknown"

    def resized(self, layer: Any, config: Json, inputs: int, outputs: int) -> Json:
        """With another last axis of the outputs."""
        return config | {"output_shape": [*config["output_shape"][:-1], outputs]}

    def moments(self, layer: Any) -> bool:
        """Unless a weight is read at several places of the inputs for one output, or examples have weights of their own."""
        read, kernel, made = _letters(layer.equation)
        alone = layer.equation.startswith("...") or made[:1] not in kernel
        return set(read) <= {*kernel, *made} and alone and not layer.equation.endswith("...")

    def common(self, layer: Any, name: str, inputs: Any, variance: Any, one: Any, other: Any) -> Any:
        """As in `Kind`, by the equation backwards."""
        read, kernel, made = _letters(layer.equation)
        if layer.equation.startswith("..."):
            free = [letter for letter in ascii_letters if letter not in read + kernel + made]
            more = "".join(free[: len(inputs.shape) - len(read)])
            read, made = more + read, more + made
        one, other = (tf.einsum(f"{read},{made}->{made[0]}{kernel}", inputs, slopes) for slopes in (one, other))
        return tf.reduce_sum(variance * one * other, list(range(1, len(one.shape))))


def _letters(equation: str) -> tuple[str, str, str]:
    """The axes of inputs, kernel and outputs, without those that "..." stands for."""
    given, made = equation.replace("...", "").replace(" ", "").split("->")
    read, kernel = given.split(",")
    return read, kernel, made


EINSUM = EinsumDense()


class _ByEquation(OnKeras):
    def compute_output_shape(self, input_shape: Any) -> Any:
        """As Keras's, with the sizes that the inputs have."""
        read, _, made = _letters(self.equation)
        sizes, given = list(super().compute_output_shape(input_shape)), list(tf.TensorShape(input_shape))
        known = dict(zip(read, given[-len(read) :] if self.equation.startswith("...") else given, strict=False))
        start = len(sizes) - len(made) if self.equation.startswith("...") else 0
        named = {start + i: known.get(letter) for i, letter in enumerate(made)}
        return tf.TensorShape([given[0], *(size or named.get(i) for i, size in enumerate(sizes[1:], 1))])


@bayesian(EINSUM, "flipout")
class EinsumDenseFlipout(Flipout, _ByEquation, keras.layers.EinsumDense):
    """Dense layer by an equation, Flipout estimator."""


@bayesian(EINSUM, "reparameterization")
class EinsumDenseReparameterization(Reparameterization, _ByEquation, keras.layers.EinsumDense):
    """Dense layer by an equation, one weight draw a batch."""
