"""`recalibrate`: batch normalization's statistics and a regression's noise measured anew, for the weights as they now are.

While a Bayesian network trains, batch normalization sees activations made by drawn weights, and its moving averages
describe those. They are inaccurate for any other weights: for the posterior mean, whose activations vary less, and after
pruning. What is measured anew is what the network will be used with: its mean, or its draws. The noise of a
`GaussianOutput` was that of the network before pruning; after it the residuals are larger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.batches import Inputs, batches_of
from tfp_bprune.graphs.convert import adopt, strip
from tfp_bprune.graphs.rebuild import rebuild
from tfp_bprune.training.residuals import DRAWS, Batch, measure_noise, noisy_outputs
from tfp_bprune.types import BpruneError, Calibrated, check_number


def recalibrate(model: Any, data: Any, *, predictive: Calibrated = "mean", batches: int = 100) -> Any:
    """A copy of `model` with batch normalization and Gaussian noise measured anew on `data`.

    Batch normalization: each layer is normalized by the statistics of the batch while they are measured, as in training, so one
    pass measures all layers (Izmailov et al. 2018, arXiv 1803.05407, section 3.2). The variance is that of all batches
    together: the mean of their variances plus the variance of their means. Dropout is off.

    Noise: if `data` has targets, the learned noise of a `GaussianOutput` becomes the root mean square residual of the mean
    prediction. For draws it is that of the mean over the draws, minus the variance of the draws, which they add by themselves
    (at least a tenth is kept). A noise that was fixed, or that depends on the inputs, is not changed.

    Args:
      model: functional or sequential, pruned or not. If there is nothing to measure, an unchanged copy is returned.
      data: training examples, alone or as (x, y): an array or tensor [n, ...]; for several inputs a list of these or a dictionary by
        name; or batches, such as `load(...).train`, a tf.data dataset, a generator, a list or a Keras Sequence.
      predictive: how the copy will predict: "mean", with the posterior mean, or "sampled", with draws.
      batches: largest number of batches to use.

    Raises:
      BpruneError: there are no data, the model does not take them, their meaning is unknown, a statistic is not finite, or the
        model is subclassed or not built.

    Example:
      network = bp.recalibrate(pruned, data.examples("train").x)
    """
    if predictive not in ("mean", "sampled"):
        raise BpruneError(f"predictive must be 'mean' or 'sampled', got {predictive!r}")
    check_number("batches", batches, whole=True)
    if batches < 1:
        raise BpruneError(f"batches must be at least 1, got {batches}")
    model = adopt(model)
    pairs: Iterable[Batch] = islice(_batches(model, data), batches)
    if noisy_outputs(model):
        pairs = list(pairs)  # they are gone through twice
    measured = _measure(strip(model) if predictive == "mean" else model, (x for x, _ in pairs))
    copy = rebuild(model, lambda layer: None, lambda old, new: None)
    for layer, (mean, variance) in zip(_normalizations(copy), measured, strict=True):
        if not (np.isfinite(mean).all() and np.isfinite(variance).all()):
            raise BpruneError(
                f"layer {layer.name!r} gets activations that are NaN or infinite: expected finite weights and data; train it anew"
            )
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
    if noisy_outputs(model):
        measure_noise(copy, pairs, 1 if predictive == "mean" else DRAWS)
    return copy


@keras.saving.register_keras_serializable("tfp_bprune")
class _OfBatch(keras.layers.BatchNormalization):
    """Batch normalization that uses the batch's statistics whatever it is told, and keeps just those."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return super().call(inputs, training=True)


def _batches(model: Any, data: Any) -> Iterator[Batch]:
    """Batches in the structure in which the model takes its inputs, with their targets."""
    wanted = getattr(model, "_nested_inputs", None)
    wanted = model.inputs if wanted is None or isinstance(model, keras.Sequential) else wanted
    named = wanted if isinstance(wanted, Mapping) else dict(zip(model.input_names, model.inputs, strict=True))
    specs = {str(key): tf.TensorSpec(tensor.shape, tensor.dtype) for key, tensor in named.items()}
    for x, y in batches_of(Inputs("recalibrate", model.name, specs), data, endless=True):
        if isinstance(wanted, Mapping):
            yield dict(zip(wanted, x.values(), strict=True)), y
        else:
            flat = list(x.values())
            yield flat[0] if len(flat) == 1 else tf.nest.pack_sequence_as(wanted, flat), y


def _measure(model: Any, batches: Iterable[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of the input of each batch normalization of `model`, in their order."""
    measuring = rebuild(model, _measuring_layer, lambda old, new: new.set_weights(old.get_weights()))
    layers = list(_normalizations(measuring))
    step = tf.function(lambda x: measuring(x, training=False), reduce_retracing=True)
    sums = [[np.zeros(layer.moving_mean.shape) for _ in range(3)] for layer in layers]
    total = 0
    for x in batches:
        step(x)
        n = len(x) if not isinstance(x, list | tuple | dict) else len(tf.nest.flatten(x)[0])
        total += n
        for held, layer in zip(sums, layers, strict=True):
            mean, variance = (v.numpy().astype(np.float64) for v in (layer.moving_mean, layer.moving_variance))
            held[0], held[1], held[2] = held[0] + n * mean, held[1] + n * mean**2, held[2] + n * variance
    if not total:
        raise BpruneError("recalibrate got no data: expected at least one batch of training examples")
    return [(mean / total, within / total + squares / total - (mean / total) ** 2) for mean, squares, within in sums]


def _measuring_layer(layer: Any) -> Any:
    if not isinstance(layer, keras.layers.BatchNormalization):
        return None
    return _OfBatch.from_config(layer.get_config() | {"momentum": 0.0, "trainable": True})


def _normalizations(model: Any) -> Iterable[Any]:
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
