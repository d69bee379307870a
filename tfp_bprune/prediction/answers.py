"""What is said of one output of a network: named answers from its numbers, or from draws of them.

Class outputs give `probabilities`, of the output's shape, and `entropy` in nats, of each example [batch], or position, or,
multilabel, of each label [batch, labels]; from draws also its two parts: `aleatoric`, the mean entropy over draws, and
`epistemic`, the mutual information between class and weights (Houlsby et al. 2011, arXiv 1112.5745; Depeweg et al. 2018,
arXiv 1710.07283, eq. 12). A binary output gives the probability of the second class.

Regression gives `mean`, [batch] for one target and [batch, targets] for several; "gaussian" also `noise_std`; from draws both
also `weights_std`, the standard deviation of the mean over draws, all in target units. The variance of a prediction is
noise_std^2 + weights_std^2: where the noise differs from draw to draw, `noise_std` is the root of its mean square.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.data.names import plain_name
from tfp_bprune.graphs.heads import Head
from tfp_bprune.types import ExportError

Outputs = dict[str, Any]
_LEAST = 2.0**-24  # which float16 has too; p log p of a smaller p is off by at most 2.2e-8


@dataclass(frozen=True)
class Answer:
    """What is said of one output.

    Attributes:
      head: what the output means.
      prefix: of the names of its answers.
      plain: whether it is for a runtime that has no x log x of its own.
    """

    head: Head
    prefix: str = ""
    plain: bool = False

    def of_mean(self, outputs: Any) -> Outputs:
        """From the network's outputs [batch, ...]."""
        raise NotImplementedError

    def centre(self, outputs: Any) -> Any:
        """From outputs of one draw, what deviations are measured from; None where nothing is."""
        return None

    @property
    def count(self) -> int:
        """How many parts there are."""
        raise NotImplementedError

    def parts(self, outputs: Any, centre: Any) -> list[Any]:
        """Of outputs [draws, batch, ...], tensors [draws, batch, ...] whose sums over draws are wanted."""
        raise NotImplementedError

    def of_sums(self, sums: list[Any], number: Any, centre: Any) -> Outputs:
        """From the sums over a number of draws, the same for all examples or [batch]."""
        raise NotImplementedError

    def rivals(self, outputs: Any) -> Any:
        """Probabilities [..., classes] of the classes of which one is in the lead."""
        raise NotImplementedError

    def named(self, outputs: Outputs) -> Outputs:
        """With the prefix of this output."""
        return {self.prefix + name: value for name, value in outputs.items()}


class Classes(Answer):
    """Of an output of probabilities or logits."""

    def of_mean(self, outputs: Any) -> Outputs:
        """As in `Answer`."""
        probabilities = self.head.finished(outputs)
        return {"probabilities": probabilities, "entropy": self.entropy(probabilities)}

    @property
    def count(self) -> int:
        """As in `Answer`."""
        return 2

    def parts(self, outputs: Any, centre: Any) -> list[Any]:
        """As in `Answer`."""
        probabilities = self.head.finished(outputs)
        return [probabilities, self.entropy(probabilities)]

    def of_sums(self, sums: list[Any], number: Any, centre: Any) -> Outputs:
        """As in `Answer`."""
        return self.of_draws(*(total / _like(number, total) for total in sums))

    def of_draws(self, probabilities: Any, aleatoric: Any) -> Outputs:
        """From mean probabilities and mean entropy."""
        total = self.entropy(probabilities)
        # The mutual information is not negative; rounding of two nearly equal entropies can be.
        epistemic = tf.maximum(total - aleatoric, 0.0)
        return {"probabilities": probabilities, "entropy": total, "aleatoric": aleatoric, "epistemic": epistemic}

    def entropy(self, probabilities: Any) -> Any:
        """Of the class, the two classes, or each label."""
        if self.head.task == "classification":
            return entropy(probabilities, self.plain)
        each = entropy_of_two(probabilities, self.plain)
        return each[..., 0] if self.head.task == "binary" else each

    def rivals(self, outputs: Any) -> Any:
        """Probabilities [..., classes] of the classes of which one is in the lead; of a binary output, both."""
        probabilities = self.head.finished(outputs)
        return (
            probabilities if self.head.task == "classification" else tf.concat([1 - probabilities, probabilities], -1)
        )


class Targets(Answer):
    """Of an output of means, perhaps with standard deviations behind them."""

    def of_mean(self, outputs: Any) -> Outputs:
        """As in `Answer`."""
        mean, noise_std = self.split(outputs)
        return {"mean": mean} | ({} if noise_std is None else {"noise_std": noise_std})

    def centre(self, outputs: Any) -> Any:
        """As in `Answer`: deviations from one draw keep the variance free of cancellation."""
        return self.split(outputs)[0]

    @property
    def count(self) -> int:
        """As in `Answer`."""
        return 2 if self.head.task == "regression" else 3

    def parts(self, outputs: Any, centre: Any) -> list[Any]:
        """As in `Answer`."""
        mean, noise_std = self.split(outputs)
        moved = mean - centre
        return [moved, tf.square(moved)] + ([] if noise_std is None else [tf.square(noise_std)])

    def of_sums(self, sums: list[Any], number: Any, centre: Any) -> Outputs:
        """As in `Answer`."""
        moved, square, *noise = (total / number for total in sums)
        variance = tf.maximum(square - tf.square(moved), 0.0) * (number / (number - 1))
        return self.of_moments(centre + moved, variance, *noise)

    def of_moments(self, mean: Any, variance: Any, noise_variance: Any = None) -> Outputs:
        """From the mean and variance of the means, and the mean variance of the noise."""
        noise = {} if noise_variance is None else {"noise_std": tf.sqrt(noise_variance)}
        return {"mean": mean, **noise, "weights_std": tf.sqrt(variance)}

    def split(self, outputs: Any) -> tuple[Any, Any]:
        """Means and, if there are any, standard deviations; each without the last axis where there is one target."""
        if self.head.task == "regression":
            return _squeezed(outputs), None
        mean, noise_std = tf.split(outputs, 2, -1)
        return _squeezed(mean), _squeezed(noise_std)


def answers_for(heads: Mapping[str, Head], plain: bool = False) -> list[Answer]:
    """An answer for each output; of several, by the name of each; `plain` as of `Answer`.

    Raises:
      ExportError: two outputs get one name.
    """
    prefixes = [f"{plain_name(name)}_" if len(heads) > 1 else "" for name in heads]
    refuse_repeated(prefixes, "outputs")
    kinds = [Classes if head.classifies else Targets for head in heads.values()]
    return [kind(head, prefix, plain) for kind, head, prefix in zip(kinds, heads.values(), prefixes, strict=True)]


def refuse_repeated(names: list[str], what: str) -> None:
    """Refuses names that are one name in a signature.

    Raises:
      ExportError: naming it.
    """
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ExportError(f"several {what} would be called {repeated[0]!r} in a signature: give each a name of its own")


def entropy(probabilities: Any, plain: bool = False) -> Any:
    """Entropy in nats over the last axis, with 0 log 0 = 0; `plain` as of `Answer`."""
    return tf.reduce_sum(_surprise(probabilities, plain), axis=-1)


def entropy_of_two(probabilities: Any, plain: bool = False) -> Any:
    """Entropy in nats of an event of each of the probabilities, and of their shape."""
    return _surprise(probabilities, plain) + _surprise(1.0 - probabilities, plain)


def _surprise(probabilities: Any, plain: bool) -> Any:
    """-p log p of each: where a converter would make comparisons and choices of it, of the least number that has a logarithm."""
    if plain:
        return probabilities * -tf.math.log(tf.maximum(probabilities, _LEAST))
    return -tf.math.xlogy(probabilities, probabilities)


def _squeezed(values: Any) -> Any:
    return values[..., 0] if values.shape[-1] == 1 else values


def _like(number: Any, total: Any) -> Any:
    """A number of draws for each example, laid against sums [batch, ...]."""
    if not tf.is_tensor(number):
        return number
    return tf.reshape(number, [-1, *[1] * (len(total.shape) - 1)])
