"""Automatic relevance determination: weights that belong together share the scale of their prior, which is found, not given.

A unit's scale decides whether the unit is there: where the data want none of its weights, the scale follows them to 0, and
nothing holds it back, for the KL does not depend on the size of a group.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.layers.axes import axes_of_one, check_groups
from tfp_bprune.layers.prior import Normals, Prior, Variables, register_prior
from tfp_bprune.types import Groups, Json

_LEAST = 1e-30  # a variance; below it float32 has no room for products and quotients
_ROUNDS = 1


@register_prior
class ARDPrior(Prior):
    """Automatic relevance determination: weights of a group have the prior N(0, s^2), s at the optimum of the evidence lower bound.

    MacKay 1994 and Neal 1996, with the scales maximized out (empirical Bayes). For a group of J weights with posterior means mu
    and deviations sigma, the optimum is s^2 = mean(mu^2 + sigma^2), and there KL = J / 2 log s^2 - sum log sigma. This needs
    neither a draw nor a parameter. The KL is at least 0; it is 0 if all means are 0 and all deviations are equal, whatever
    their size. Pruned weights do not count. The evidence, by which units are removed, takes off what fitting the scales
    gains by itself.

    Args:
      groups: "input", the weights that read one input; "output", those that compute one output; or "both", N(0, s_i^2 t_j^2) with a
        scale for each input and each output, so that units can leave by either side. The two scales are found in turns, since
        each has a closed form given the other. Any scales give the KL from some prior, and these nearly the smallest one. A
        tensor without such an axis, such as a bias without inputs, is one group. The outputs of a depthwise kernel are its
        inputs. In a grouped convolution, an input is the one at this position in each group.

    Raises:
      BpruneError: `groups` is none of these.

    Example:
      model = bp.bayesianize(plain, prior=bp.ARDPrior(groups="both"))
    """

    kind = "ard"
    exact = True
    about_zero = True

    def __init__(self, *, groups: Groups = "both") -> None:
        self.groups = check_groups(groups)

    def get_config(self) -> Json:
        """The arguments as JSON values."""
        return {"kind": self.kind, "groups": self.groups}

    def found(self, q: Normals, variables: Variables) -> dict[str, Any]:
        """The variances s^2, and with "both" t^2, at the optimum; their shapes broadcast to that of the weight."""
        squares, groups = _Squares(q), q.sides.groups(self.groups)
        if len(groups) == 1:
            [axes] = groups.values()
            return {"s": squares.mean_by(axes)}
        read, made = groups["read"], groups["made"]
        t = squares.mean_by(made)  # exact with the first s, where the squares are products
        s = squares.mean_by(read, over=t)
        for _ in range(_ROUNDS):  # each turn lowers the KL
            t = squares.mean_by(made, over=s)
            s = squares.mean_by(read, over=t)
        return {"s": s, "t": t}

    def kl(self, q: Normals, sample: Any, variables: Variables) -> Any:
        """KL from the normal with the optimal scale; at the optimum the slope of the scale is 0 (envelope theorem)."""
        found = [tf.stop_gradient(part) for part in self._found(q, variables)]
        ratio = (tf.square(q.loc) + tf.square(q.scale)) * _inverse(found)
        return 0.5 * (_log(found) + ratio - 1) - q.log_scale

    def kl_parts(self, q: Normals, sample: Any, variables: Variables) -> Any:
        """Logarithms of the scales by group, and of the deviations by row: at the optimum the squares over the scales add up to
        the number of weights. XLA would take the logarithm of a group's scale for each of its weights."""
        left = tf.cast(q.mask, tf.float32)
        logs = [tf.math.log(part) * _sum_to(left, part.shape) for part in self._found(q, variables)]
        rows = tf.reduce_sum(left * q.log_scale, -1)
        return tf.concat([*(0.5 * tf.reshape(part, [-1]) for part in logs), -tf.reshape(rows, [-1])], 0)

    def pulls(self, q: Normals, epsilon: Any, variables: Variables) -> tuple[Any, Any]:
        """Those of the normal with the optimal scale."""
        precision = _inverse(self._found(q, variables))
        return precision * q.loc, precision * q.scale

    def log_density_at_zero(self, q: Normals, variables: Variables) -> Any:
        """log N(0 | 0, s^2) of each weight, minus its share of what fitting the scales gains by itself.

        A fitted scale makes weights more likely even if they are noise: by (F - 1 - log F) J / 2 nats, where J F is
        chi-squared. Subtracted are half of log J nats for a parameter estimated from J weights (Schwarz 1978), at least 1
        (Akaike 1974), so that evidence above 0 speaks for a group.
        """
        found, left = self._found(q, variables), tf.cast(q.mask, tf.float32)
        taken = sum(_share(_sum_to(left, part.shape)) for part in found)
        return -0.5 * (_log(found) + math.log(2 * math.pi)) - taken

    def deviation(self, q: Normals, variables: Variables) -> Any:
        """s of each weight."""
        return tf.exp(0.5 * _log(self._found(q, variables)))

    def _found(self, q: Normals, variables: Variables) -> list[Any]:
        found = variables if "s" in variables else self.found(q, variables)
        return [found[name] for name in ("s", "t") if name in found]


def _sum_to(values: Any, shape: Any) -> Any:
    """Sums over the axes of which `shape` has one entry."""
    return tf.reduce_sum(values, axes_of_one(shape), keepdims=True)


def _share(count: Any) -> Any:
    """Nats for each of `count` weights that a fitted scale costs."""
    count = tf.maximum(count, 1.0)
    return tf.maximum(0.5 * tf.math.log(count), 1.0) / count


def _inverse(found: list[Any]) -> Any:
    """1 / variance, of the product of what was found."""
    return 1 / tf.maximum(math.prod(found), _LEAST)


def _log(found: list[Any]) -> Any:
    """log variance."""
    return tf.maximum(sum(tf.math.log(part) for part in found), math.log(_LEAST))


class _Squares:
    """mu^2 + sigma^2 of the weights that are left, and its means over groups."""

    def __init__(self, q: Normals) -> None:
        self.axes = range(len(q.mask.shape))
        self.left = tf.cast(q.mask, tf.float32)
        self.values = tf.where(q.mask, tf.square(q.loc) + tf.square(q.scale), 0.0)

    def mean_by(self, axes: Collection[int], over: Any = None) -> Any:
        """For each entry of `axes` the mean, over the weights that are left, of the squares or their ratio to `over`."""
        others = [axis for axis in self.axes if axis not in axes]
        values = self.values if over is None else self.values / over
        counts = tf.reduce_sum(self.left, others, keepdims=True)
        mean = tf.reduce_sum(values, others, keepdims=True) / tf.maximum(counts, 1.0)
        return tf.maximum(mean, _LEAST)  # also where none is left
