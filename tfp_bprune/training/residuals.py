"""The noise of a regression measured anew, from what its predictions leave of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.graphs.convert import strip
from tfp_bprune.layers import GaussianOutput
from tfp_bprune.layers.posterior import rho_of
from tfp_bprune.types import BpruneError

DRAWS = 20
Batch = tuple[Any, Any]  # inputs as the model takes them, and targets or None
_LEAST = 0.1  # of the root mean square residual


def noisy_outputs(model: Any) -> dict[int, Any]:
    """The layers of learned noise at which outputs end, by the number of the output."""
    ends = {i: tensor._keras_history.layer for i, tensor in enumerate(model.outputs)}
    return {i: layer for i, layer in ends.items() if isinstance(layer, GaussianOutput) and layer.noise is None}


def measure_noise(model: Any, batches: Iterable[Batch], draws: int) -> None:
    """Gives the noisy outputs of `model` itself the noise that (inputs, targets) show; without targets, nothing.

    Args:
      draws: of the weights for each batch; 1 for the posterior mean.

    With D draws of f, their mean m and variance s^2, E (y - m)^2 = noise^2 + Var f / D + ..., so that
    noise^2 = mean (y - m)^2 - (1 + 1 / D) mean s^2 makes the variance of the predictive, noise^2 + Var f, that of the
    residuals.

    Raises:
      BpruneError: targets do not fit the output, or residuals are not finite.
    """
    network = strip(model) if draws == 1 else model
    step = tf.function(lambda x: tf.nest.flatten(network(x, training=False)), reduce_retracing=True)
    layers = noisy_outputs(model)
    sums = {i: np.zeros(3) for i in layers}  # squares of residuals, variances of draws, numbers
    for x, y in batches:
        if y is None:
            continue
        drawn = [[part.numpy() for part in step(x)] for _ in range(draws)]
        for i, total in sums.items():
            means = np.stack([_means(one[i]) for one in drawn]).astype(np.float64)
            target = _target(model, y, i, means[0])
            spread = means.var(0, ddof=1) if draws > 1 else np.zeros_like(target)
            total += [np.square(target - means.mean(0)).sum(), spread.sum(), target.size]
    for i, (squares, spread, count) in sums.items():
        if count:
            _assign(layers[i], squares / count, (1 + 1 / draws) * spread / count)


def _means(output: np.ndarray) -> np.ndarray:
    return output[..., : output.shape[-1] // 2]


def _assign(layer: Any, square: float, spread: float) -> None:
    if not np.isfinite(square):
        raise BpruneError(f"the residuals of {layer.name!r} are not finite: expected finite weights, data and targets")
    noise = np.sqrt(max(square - spread, _LEAST**2 * square, (1e-6 * layer.scale) ** 2))
    layer.noise_rho.assign(rho_of(noise / layer.scale))


def _target(model: Any, y: Any, i: int, means: np.ndarray) -> np.ndarray:
    """The targets of output `i`, in the shape of its means."""
    if isinstance(y, Mapping):
        name = model.output_names[i]
        if name not in y:
            raise BpruneError(f"recalibrate got targets for {sorted(map(str, y))}: expected some for output {name!r}")
        y = y[name]
    elif len(model.outputs) > 1:
        y = y[i]
    target = np.asarray(y, np.float64)
    if target.size != means.size:
        raise BpruneError(
            f"recalibrate got targets of shape {target.shape} for means of shape {means.shape}: expected one for each"
        )
    return target.reshape(means.shape)
