"""Bayesian layers of tfp.layers, read as this package's: which class they become, and what their distributions are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tfp_bprune._keras import tf, tfp
from tfp_bprune.layers import LAYERS, NormalPrior, kinds
from tfp_bprune.types import BpruneError, Json

_tfd = tfp.distributions
_DIAGONAL = (
    tf.linalg.LinearOperatorDiag,
    tf.linalg.LinearOperatorIdentity,
    tf.linalg.LinearOperatorScaledIdentity,
)
# Methods that say what a layer computes; a class of a user's that has its own is another layer than its base.
_COMPUTATIONS = frozenset(
    (
        "build",
        "call",
        "__call__",
        "_linear",
        "_add_bias",
        "_apply_kernel",
        "_convolution_op",
        "_apply_variational_kernel",
        "_apply_variational_bias",
    )
)


@dataclass(frozen=True)
class Values:
    """Mean and deviation of a weight tensor, of its shape; no deviation where it is a point."""

    loc: np.ndarray
    scale: np.ndarray | None


def adopted(layer: Any, shared: Json) -> Any:
    """This package's layer, not built, for one of tfp.layers with the arguments `shared`; `copy_posterior` does the rest.

    Raises:
      BpruneError: the layer computes something of its own, or its posterior is not a product of normals.
    """
    kind, estimator, base = _class_of(layer)
    refuse_own_computation(layer, base)
    bias = _posteriors(layer)["bias"]
    prior, centred = _prior(layer)
    ours: Json = {"prior": prior, "own_prior_loc": centred, "use_bias": bias is not None}
    ours |= {"bayesian_bias": bias is not None and bias.scale is not None}
    return LAYERS[kind, estimator](**(shared | ours))


def copy_posterior(old: Any, new: Any) -> None:
    """Gives `new`, the built layer that `old` was adopted as, posterior, bias, and the centres of its prior.

    Raises:
      BpruneError: the posterior is not a product of normals.
    """
    found = _posteriors(old)
    for name, posterior in new.posteriors.items():
        posterior.assign(found[name].loc, found[name].scale)
    if new.bias is not None:
        new.bias.assign(found["bias"].loc)
    if new.own_prior_loc:
        centres = _split(old, _values(old, old._prior))
        for name, posterior in new.posteriors.items():
            posterior.prior.around(centres[name].loc, posterior.prior_variables)


def refuse_own_computation(layer: Any, base: type) -> None:
    """Refuses a layer whose class computes something else than `base`, which it was made from.

    Raises:
      BpruneError: naming layer and method.
    """
    classes = type(layer).__mro__[: type(layer).__mro__.index(base)]
    for method in sorted(_COMPUTATIONS & {name for owner in classes for name in vars(owner)}):
        raise BpruneError(
            f"layer {layer.name!r} ({type(layer).__name__}) has its own {method}, so its mean is not that of a "
            f"{base.__name__}: expected a layer that computes what its base does"
        )


def _class_of(layer: Any) -> tuple[str, str, type]:
    """Kind and estimator of a layer, and the class of tfp.layers that it is made from."""
    for kind in kinds():
        for base, estimator in kind.raw.items():
            if isinstance(layer, base):
                return kind.name, estimator, base
    raise BpruneError(
        f"layer {layer.name!r} is a {type(layer).__name__}: expected one of tfp.layers' dense and convolution layers"
    )


def _posteriors(layer: Any) -> dict[str, Any]:
    """`Values` of kernel and bias; None where there is no bias."""
    if isinstance(layer, tfp.layers.DenseVariational):
        values = _values(layer, layer._posterior)
        if values is None:
            raise _not_normal(layer, layer._posterior(_inputs(layer, 0.0)))
        return _split(layer, values)
    kernel, bias = _normal(layer.kernel_posterior), layer.bias_posterior
    if kernel is None:
        raise _not_normal(layer, layer.kernel_posterior)
    values = None if bias is None else _normal(bias) or _point(bias)
    if bias is not None and values is None:
        raise _not_normal(layer, bias)
    return {"kernel": kernel, "bias": values}


def _not_normal(layer: Any, posterior: Any) -> BpruneError:
    name = getattr(posterior, "name", type(posterior).__name__)
    return BpruneError(f"layer {layer.name!r} has the posterior {name!r}: expected independent normals")


def _prior(layer: Any) -> tuple[NormalPrior | None, bool]:
    """The prior where it is normals of one scale, else None for the default; and whether each has a centre of its own."""
    together = isinstance(layer, tfp.layers.DenseVariational)
    values = _values(layer, layer._prior) if together else _normal(layer.kernel_prior)
    if values is None or values.scale is None or len(np.unique(values.scale)) > 1:
        return None, False
    scale, centres = float(values.scale.flat[0]), np.unique(values.loc)
    if len(centres) == 1:
        return NormalPrior(scale, float(centres[0])), False
    return (NormalPrior(scale), True) if together else (None, False)


def _normal(distribution: Any) -> Values | None:
    """`Values` of independent normals; None of any other distribution."""
    inner = _within(distribution)
    diagonal = isinstance(inner, _tfd.MultivariateNormalLinearOperator) and isinstance(inner.scale, _DIAGONAL)
    if not isinstance(inner, _tfd.Normal) and not diagonal:
        return None
    mean, scale = (np.asarray(value) for value in (distribution.mean(), distribution.stddev()))
    return Values(*np.broadcast_arrays(mean, scale))


def _point(distribution: Any) -> Values | None:
    certain = isinstance(_within(distribution), _tfd.Deterministic | _tfd.VectorDeterministic)
    return Values(np.asarray(distribution.mean()), None) if certain else None


def _within(distribution: Any) -> Any:
    """The distribution of each number, out of what makes one of many of it."""
    distribution = getattr(distribution, "tensor_distribution", distribution)
    wrapped = isinstance(distribution, _tfd.Independent | _tfd.Sample)
    return _within(distribution.distribution) if wrapped else distribution


def _values(layer: Any, make: Any) -> Values | None:
    """`Values` of the weights of a DenseVariational, kernel and bias in one vector; None if they are no normals.

    Raises:
      BpruneError: they depend on the inputs.
    """
    at = [_normal(make(_inputs(layer, number))) for number in (0.0, 1.0)]
    if at[0] is None or at[1] is None:
        return None
    same = (np.array_equal(getattr(at[0], part), getattr(at[1], part)) for part in ("loc", "scale"))
    if not all(same) or at[0].loc.size != _sizes(layer)[0] + _sizes(layer)[1]:
        raise BpruneError(
            f"layer {layer.name!r} has distributions that depend on its inputs: expected one normal for each weight"
        )
    return at[0]


def _inputs(layer: Any, number: float) -> Any:
    return tf.fill((1, layer.input_spec.axes[-1]), tf.cast(number, layer.dtype or tf.float32))


def _sizes(layer: Any) -> tuple[int, int]:
    return layer.input_spec.axes[-1] * layer.units, layer.units if layer.use_bias else 0


def _split(layer: Any, values: Any) -> dict[str, Any]:
    kernel, bias = _sizes(layer)
    loc, scale = values.loc.ravel(), values.scale.ravel()
    shape = (-1, layer.units)
    parts = {"kernel": Values(loc[:kernel].reshape(shape), scale[:kernel].reshape(shape))}
    return parts | {"bias": Values(loc[kernel:], scale[kernel:]) if bias else None}
