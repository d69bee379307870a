"""What a weight is worth, by criteria that anyone registers: lower scores are pruned first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tfp_bprune._registry import Registry
from tfp_bprune.layers import Scaled, Weights
from tfp_bprune.types import PruneError

Score = Callable[[Weights], np.ndarray]


@dataclass(frozen=True)
class Ranking:
    """A registered criterion.

    Attributes:
      name: the name that it is registered by.
      score: function from the weights of a tensor to an array of their shape; the lowest scores are removed first. For weights that
        are pruned already it may return anything.
      ends_at: weights that score below this are removed if no sparsity is given; None if the criterion cannot choose the sparsity.
        Without it, scores have to be at least 0.
      of_certain: whether weights without a distribution can be ranked.
      of_groups: whether a weight's score is that of a group it belongs to. A unit is then worth the best of its weights, on its
        incoming or its outgoing side, whichever is less. Other scores with an `ends_at` add up, and a unit is worth their mean.
    """

    name: str
    score: Score
    ends_at: float | None = None
    of_certain: bool = False
    of_groups: bool = False

    @property
    def least(self) -> float:
        """The least threshold that has a meaning."""
        return 0.0 if self.ends_at is None else -np.inf


CRITERIA: Registry[Ranking] = Registry("criterion")


def criterion(
    name: str, *, ends_at: float | None = None, of_certain: bool = False, of_groups: bool = False
) -> Callable[[Score], Score]:
    """Registers a function as a pruning criterion; a decorator: `@bp.criterion("name")`.

    The function takes the `Weights` of one tensor (arrays `loc`, `scale` and `mask`, and the `posterior` with its `prior`) and
    returns a score for each weight, in an array of the same shape. Weights with the lowest scores are removed first.

    Args:
      name: for `criterion=` and `--criterion`.
      ends_at: weights that score below this are removed if no sparsity is given; None if the criterion cannot choose the sparsity.
      of_certain: whether the function can also rank weights without a distribution.
      of_groups: whether the score of a weight is that of a group it belongs to; see `Ranking`.

    Raises:
      BpruneError: the name is taken by another function.
    """

    def register(score: Score) -> Score:
        CRITERIA.add(name, Ranking(name, score, ends_at, of_certain, of_groups), score)
        return score

    return register


def snr(loc: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Signal-to-noise ratio |mu| / sigma (Blundell et al. 2015, section 5.1; Graves 2011); any shape, no unit.

    A weight with sigma = 0 is certain: its ratio is infinite, or 0 where mu is 0 too. It is sigma that divides, not
    rho, which is negative for all sigma < 0.69.
    """
    loc, scale = np.abs(np.asarray(loc, np.float64)), np.asarray(0.0 if scale is None else scale, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((loc == 0) & (scale == 0), 0.0, loc / scale)


def magnitude(loc: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """|mu| (Han et al. 2015, arXiv 1506.02626); any shape. `scale` is not looked at."""
    return np.abs(np.asarray(loc, np.float64))


def decibel(ratio: np.ndarray) -> np.ndarray:
    """10 log10 of a signal-to-noise ratio; -inf for 0."""
    with np.errstate(divide="ignore"):
        return 10 * np.log10(ratio)


@criterion("snr")
def _by_snr(weights: Weights) -> np.ndarray:
    return snr(weights.loc, weights.scale)


@criterion("magnitude", of_certain=True)
def _by_magnitude(weights: Weights) -> np.ndarray:
    return magnitude(weights.loc)


@criterion("evidence", ends_at=0.0)
def evidence(weights: Weights) -> np.ndarray:
    """log p(0) - log q(0): by how many nats the log evidence falls when the weight goes, other weights being independent.

    The ratio of Savage and Dickey (Friston and Penny 2011, "Post hoc Bayesian model selection"; Beckers et al. 2022, arXiv
    2210.09134). Below 0 the model is better off without the weight.

    Raises:
      PruneError: the weights have no distribution, and so no prior.
    """
    if weights.posterior is None:
        raise PruneError("criterion 'evidence' needs posteriors and priors: plain weights have none, use 'magnitude'")
    return weights.posterior.log_prior_at_zero() - weights.posterior.log_density_at_zero()


@criterion("log_alpha", ends_at=3.0, of_groups=True)
def _by_log_alpha(weights: Weights) -> np.ndarray:
    """-log alpha = log (E z)^2 / Var z of the scales z of a weight's groups (Louizos et al. 2017): below 3 they are noise.

    Raises:
      PruneError: the weights share no scale.
    """
    if not isinstance(weights.posterior, Scaled):
        raise PruneError(
            "criterion 'log_alpha' needs weights that share scales, prior 'normal_jeffreys' or 'horseshoe': use 'evidence'"
        )
    return -weights.posterior.log_alpha()
