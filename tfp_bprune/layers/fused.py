"""All that a training step needs of one weight tensor, with a gradient of its own.

A Bayesian layer needs, for every weight, its mean, its scale, noise, and the KL with its gradient. Written one operation
after another, and differentiated by TensorFlow, these cost more than the products with the data. Here all of it has one
gradient, written by hand, that touches each weight as few times as it can; large tensors go through XLA, which makes one
pass over memory of what TensorFlow makes a dozen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from tfp_bprune._keras import quietly, tf
from tfp_bprune.layers import noise
from tfp_bprune.layers.axes import Sides
from tfp_bprune.layers.distribution import Moment, Terms
from tfp_bprune.layers.posterior import MaskedNormal, compiled_scale_of, log_scale_of, log_scale_slope, scale_of
from tfp_bprune.layers.prior import Normals, Prior, prior_from

# Compiling takes tenths of a second for each shape; smaller tensors do not win it back.
_LEAST_COMPILED = 2**16
_BLOCK = 2**12


def terms(
    posterior: MaskedNormal, prior: Prior, moment: Moment, seeds: Callable[[str], Any], every_value: bool = True
) -> Terms:
    """The terms of one step.

    Args:
      seeds: gives a stateless seed [2] by the name of a stream.
      every_value: whether the KL's value is summed over all weights. Otherwise, and where it takes a draw, it is that of
        a random block of 4,096 of them, scaled up: unbiased, within about a hundredth, and enough for a loss that is
        only looked at. Its gradient is that of all weights in either case.
    """
    shape = tuple(posterior.shape)
    mask = posterior.mask.read_value()
    fixed, trained = _prior_values(posterior)
    passes = _passes(prior, moment, shape, posterior.sides)
    drawn = [] if prior.exact and moment == "variance" else passes.draw(seeds("draw"))
    whole = every_value or prior.exact or any(v.shape != posterior.shape for v in (fixed | trained).values())

    @tf.custom_gradient
    def compute(loc: Any, rho: Any, *values: Any) -> Any:
        learned = dict(zip(trained, values, strict=True))
        own = fixed | learned
        kept, scale, epsilon, second, found, kls = passes.forward(loc, rho, mask, drawn, own)
        weights = (kept, rho, mask, scale, epsilon)
        if kls is None:
            kls = _kls(prior, *weights, own) if whole else _kls_of_block(prior, seeds("block"), weights, own)

        def backward(*upstream: Any) -> tuple[Any, ...]:
            d_loc, d_rho, d_values = passes.backward(*weights, fixed | found, learned, *upstream)
            return d_loc, d_rho, *(d_values[name] for name in learned)

        return (kept, second, tf.reduce_sum(kls)), backward

    loc, rho = (variable.read_value() for variable in (posterior.loc_variable, posterior.rho_variable))
    if loc.dtype == tf.float32:
        return Terms(*compute(loc, rho, *trained.values()))
    # Noise and KL are float32's; the mean keeps what more its type holds.
    single = Terms(*compute(tf.cast(loc, tf.float32), tf.cast(rho, tf.float32), *trained.values()))
    return Terms(posterior.loc, tf.cast(single.second, loc.dtype), single.kl)


def _prior_values(posterior: MaskedNormal) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values of the prior's own variables: of those that are not trained, and of those that are."""
    own = posterior.prior_variables.items()
    values = {name: tf.cast(tf.convert_to_tensor(variable), tf.float32) for name, variable in own}
    learned = [name for name, variable in own if getattr(variable, "trainable", False)]
    return {n: v for n, v in values.items() if n not in learned}, {n: values[n] for n in learned}


def _forward(
    prior: Prior,
    moment: Moment,
    sides: Sides,
    shape: tuple[int, ...],
    scale_of: Callable[[Any], Any],
    loc: Any,
    rho: Any,
    mask: Any,
    drawn: list[Any],
    own: dict[str, Any],
) -> tuple[Any, Any, Any, Any, dict[str, Any], Any]:
    """Mean, scale, noise, and the second term of a weight tensor; of an exact prior what it finds, and the KL in parts."""
    epsilon = noise.from_windows(drawn, shape) if len(drawn) > 1 else drawn[0] if drawn else None
    scale = tf.where(mask, scale_of(rho), 0.0)
    second = scale * epsilon if moment == "deviation" else tf.square(scale)
    kept = tf.where(mask, loc, 0.0)
    if not prior.exact:
        return kept, scale, epsilon, second, {}, None
    q = Normals(kept, scale, tf.where(mask, log_scale_of(rho, scale), 0.0), mask, sides)
    found = prior.found(q, own)
    # XLA adds one number after another, in which few of them lose little: it adds parts, and TensorFlow these.
    return kept, scale, epsilon, second, found, prior.kl_parts(q, _sample(kept, scale, epsilon), {**own, **found})


def _backward(
    prior: Prior,
    moment: Moment,
    sides: Sides,
    kept: Any,
    rho: Any,
    mask: Any,
    scale: Any,
    epsilon: Any,
    fixed: dict[str, Any],
    trained: dict[str, Any],
    d_loc: Any,
    d_second: Any,
    d_kl: Any,
) -> tuple[Any, Any, dict[str, Any]]:
    """Gradients by mean, rho and the prior's trained values of a weight tensor, from those by its `Terms`."""
    own = fixed | trained
    q = Normals(kept, scale, _log_scale(rho, mask), mask, sides)
    loc_pull, scale_pull = prior.pulls(q, epsilon, own)
    d_scale = d_second * (epsilon if moment == "deviation" else 2 * scale) + d_kl * scale_pull
    d_rho = d_scale * tf.math.sigmoid(rho) - d_kl * log_scale_slope(rho, scale)  # sigmoid: the slope of softplus
    slopes = prior.slopes(q, _sample(kept, scale, epsilon), own, trained)
    return (
        tf.where(mask, d_loc + d_kl * loc_pull, 0.0),
        tf.where(mask, d_rho, 0.0),
        {name: d_kl * slope for name, slope in slopes.items()},
    )


def _sample(kept: Any, scale: Any, epsilon: Any) -> Any:
    return kept if epsilon is None else kept + scale * epsilon


def _log_scale(rho: Any, mask: Any) -> Any:
    return tf.where(mask, log_scale_of(rho), 0.0)


def _kls(prior: Prior, kept: Any, rho: Any, mask: Any, scale: Any, epsilon: Any, own: dict[str, Any]) -> Any:
    """The KL of each weight at a draw."""
    # The scale anew, as the compiled pass rounds it otherwise than TensorFlow.
    q = Normals(kept, tf.where(mask, scale_of(rho), 0.0), _log_scale(rho, mask), mask)
    return tf.where(mask, prior.kl(q, _sample(kept, scale, epsilon), own), 0.0)


def _kls_of_block(prior: Prior, seed: Any, weights: tuple[Any, ...], own: dict[str, Any]) -> Any:
    """`_kls` of one of the blocks that the weights fall into, each as likely as the others, times their number."""
    count = weights[0].shape.num_elements()
    size, blocks = min(_BLOCK, count), -(-count // _BLOCK)
    begin = size * tf.random.stateless_uniform([1], seed, 0, blocks, dtype=tf.int32)
    start = tf.minimum(begin, count - size)  # the last block is filled up from the one before, which does not count

    def block(w: Any) -> Any:
        return tf.slice(tf.reshape(w, [-1]), start, [size])

    kept, rho, mask, scale, epsilon = (block(w) for w in weights)
    counts = mask & (tf.range(size) >= begin - start)
    return blocks * _kls(prior, kept, rho, counts, scale, epsilon, {name: block(v) for name, v in own.items()})


@dataclass(frozen=True)
class _Passes:
    """How the tensors of one shape are drawn for, computed, and differentiated."""

    draw: Callable[[Any], list[Any]]
    forward: Callable[..., Any]
    backward: Callable[..., Any]


def _passes(prior: Prior, moment: Moment, shape: tuple[int, ...], sides: Sides) -> _Passes:
    if noise.pool_pays() and math.prod(shape) >= _LEAST_COMPILED:
        return _compiled(json.dumps(prior.get_config()), moment, shape, sides)
    parts = partial(_forward, prior, moment, sides, shape, scale_of), partial(_backward, prior, moment, sides)
    return _Passes(lambda seed: [noise.normal(list(shape), seed)], *parts)


@cache
def _compiled(prior: str, moment: Moment, shape: tuple[int, ...], sides: Sides) -> _Passes:
    """Through XLA; kept, so that equal tensors of all layers and graphs are compiled once."""
    with tf.init_scope():
        _start_xla()
        given = prior_from(json.loads(prior))
    parts = (
        partial(_forward, given, moment, sides, shape, compiled_scale_of),
        partial(_backward, given, moment, sides),
    )
    compiled = (tf.function(part, jit_compile=True, autograph=False) for part in parts)
    return _Passes(partial(_drawn_for, shape), *compiled)


def _drawn_for(shape: tuple[int, ...], seed: Any) -> list[Any]:
    """Windows of the pool, or, of so many numbers that several pairs are needed, the normals: XLA joins pairs slowly."""
    views = noise.windows(math.prod(shape), seed)
    return views if len(views) == 2 else [noise.from_windows(views, shape)]


@cache
def _start_xla() -> None:
    """Has XLA say now, where nobody hears it, what it says of itself when first used."""
    with quietly():
        tf.function(lambda x: x + x, jit_compile=True)(tf.constant(1.0))
