"""What an export computes: named outputs for a batch, from plain TensorFlow operations.

Classification gives `probabilities` [batch, classes] and `entropy` [batch] in nats; sampled or from moments also its two
parts, `aleatoric`, the mean entropy over draws, and `epistemic`, the mutual information between class and weights (Houlsby
et al. 2011, arXiv 1112.5745; Depeweg et al. 2018, arXiv 1710.07283, eq. 12); sampled until settled also `draws` [batch].
Regression gives `mean` and `noise_std` [batch] and, sampled or from moments, `weights_std` [batch], in target units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tf
from tfp_bprune.export import covariance, draws
from tfp_bprune.export.compact import compact
from tfp_bprune.export.kernels import Lowering
from tfp_bprune.export.lower import Linear, LoweredDense, lowered, variables_of
from tfp_bprune.export.moments import erf_of_exp
from tfp_bprune.export.passes import Draws, Mean, Moments, is_softmax
from tfp_bprune.export.value import Value
from tfp_bprune.export.walk import walk
from tfp_bprune.layers import GaussianOutput
from tfp_bprune.models.convert import adopt, refuse_equal_names, strip
from tfp_bprune.models.rebuild import calls_of, check_graph
from tfp_bprune.types import ExportError, Json, Predictive, Task

DEFAULT_SAMPLES = 30
PREDICTIVES = ("mean", "sampled", "moments")
BREAK_EVEN_BATCHES = (1, 256)
_LOGIT_DRAWS = 64
_LEADING = 3
Outputs = dict[str, Any]


class Predictor(tf.Module):
    """One exported network: a batch-polymorphic `predict` and what it reads.

    Args:
      model: Bayesian or plain, functional or sequential, one input and one output.
      predictive: "mean" for the network at its posterior mean, "sampled" for the mean over draws of its weights,
        "moments" for means and variances carried through it and draws of its logits alone.
      samples: draws of "sampled".
      seed: of the draws; the same batch always gets the same answer.
      lowering: how kernels are stored and multiplied.
      error_rate: of "sampled" classification: an example gets no further draws once its class is settled, which is wrong
        with this probability at most (`export.draws`); None for all draws for all.

    Raises:
      ExportError: the model or the request is none that can be served.
    """

    def __init__(
        self,
        model: Any,
        predictive: Predictive,
        samples: int = DEFAULT_SAMPLES,
        seed: int = 0,
        lowering: Lowering | None = None,
        error_rate: float | None = None,
    ) -> None:
        super().__init__(name="predictor")
        _check(model, predictive, samples)
        self.task = task_of(model)
        _check_error_rate(error_rate, predictive, self.task)
        network = compact(strip(model)) if predictive == "mean" else compact(adopt(model))
        lowering = lowering or Lowering()
        if predictive == "moments":  # both forms and their slopes would be more graph than they save time
            lowering = replace(lowering, by_batch=False)
        linears = lowered(network, lowering)
        # All that a file has to hold of the network; the network itself is not among it.
        self._linears = list(linears.values())
        self._costs = lowering.costs
        self._variables = list(variables_of(network, linears))
        program = Program(network, linears, self.task, samples, seed, error_rate, lowering.at_load)
        bodies: dict[Predictive, Callable[[Any], Outputs]] = {
            "mean": program.mean, "sampled": program.sampled, "moments": program.moments,
        }  # fmt: skip
        body = bodies[predictive]
        if lowering.at_load and any(hasattr(layer, "kernel_size") for layer in calls_of(network)):
            body = never_empty(body)
        spec = tf.TensorSpec([None, *model.input_shape[1:]], model.inputs[0].dtype, name="inputs")
        if lowering.at_load:
            body = shape_held(body, spec.shape)
        self.predict = tf.function(body, input_signature=[spec])

    def products(self) -> dict[str, Json]:
        """How each dense layer on vectors is multiplied, by the layer's name.

        Returns:
          `form`: "dense", "sparse", or "sparse below batch N" or "dense below batch N", where the batch counts the examples
          of all draws that are computed together; `shape` [in, out] of the kernel without dead units; `stored`: its entries
          that are left; `break_even`: by batch, the sparsity from which on sparse is faster, above 1 where it never is.
        """
        kernels = {linear.stream: linear.kernel for linear in self._linears if isinstance(linear, LoweredDense)}
        return {
            name: {
                "form": kernel.choice.form,
                "shape": list(kernel.shape),
                "stored": kernel.stored,
                "break_even": {str(batch): self._costs.break_even(kernel.shape, batch) for batch in BREAK_EVEN_BATCHES},
            }
            for name, kernel in kernels.items()
        }


class Program:
    """What is traced for a lowered network: inputs [batch, ...] to named outputs, in three ways."""

    def __init__(
        self,
        network: Any,
        linears: dict[int, Linear],
        task: Task,
        samples: int,
        seed: int,
        error_rate: float | None,
        has_erf: bool,
    ) -> None:
        self._network, self._linears, self._task = network, linears, task
        self._samples, self._seed, self._error_rate = samples, seed, error_rate
        self._last = last_layer(network)
        self._erf = tf.math.erf if has_erf else erf_of_exp
        gives_logits = task == "classification" and not is_softmax(self._last)
        self._finish = tf.nn.softmax if gives_logits else tf.identity

    def mean(self, inputs: Any) -> Outputs:
        """At the posterior mean."""
        outputs = self._finish(self._walked(Value(inputs), Mean(self._linears)).mean)
        if self._task == "regression":
            return {"mean": outputs[..., 0], "noise_std": outputs[..., 1]}
        return {"probabilities": outputs, "entropy": entropy(outputs)}

    def sampled(self, inputs: Any) -> Outputs:
        """The mean over draws."""
        rule = Draws(self._linears, self._seed)

        def run(index: Any, count: Any, rows: Any) -> Any:
            walked = self._walked(rule.start(inputs, index, count, rows), rule)
            outputs = self._finish(rule.finished(walked).mean)
            return tf.reshape(outputs, tf.concat([[count, -1], tf.shape(outputs)[1:]], 0))

        if self._task == "regression":
            return self._sampled_regression(run, rule, inputs)
        return self._sampled_classes(run, rule, inputs)

    def _sampled_classes(self, run: draws.Run, rule: Draws, inputs: Any) -> Outputs:
        def parts(outputs: Any) -> list[Any]:
            return [outputs, entropy(outputs)]

        if self._error_rate is None:
            sums = draws.total(run, parts, self._samples, rule.batched, tf.shape(inputs)[0])
            return of_draws(sums[0] / self._samples, sums[1] / self._samples)
        classes = self._network.output_shape[-1]
        sums, counts = draws.total_until_settled(run, parts, self._samples, rule.batched, self._error_rate, classes)
        number = tf.cast(counts, tf.float32)
        return {**of_draws(sums[0] / number[:, None], sums[1] / number), "draws": counts}

    def _sampled_regression(self, run: draws.Run, rule: Draws, inputs: Any) -> Outputs:
        # Deviations from one draw keep the variance free of cancellation.
        centre = run(tf.constant(0), tf.constant(1), None)[0, ..., 0]

        def parts(outputs: Any) -> list[Any]:
            moved = outputs[..., 0] - centre
            return [moved, tf.square(moved), outputs[..., 1]]

        sums = draws.total(run, parts, self._samples, rule.batched, tf.shape(inputs)[0])
        moved, square, noise_std = (value / self._samples for value in sums)
        variance = tf.maximum(square - tf.square(moved), 0.0) * (self._samples / (self._samples - 1))
        return {"mean": centre + moved, "noise_std": noise_std, "weights_std": tf.sqrt(variance)}

    def moments(self, inputs: Any) -> Outputs:
        """From means and variances."""
        rule = Moments(self._linears, self._last, self._erf)
        value = self._walked(Value(inputs), rule)
        if value.certain:
            value = Value(value.mean, tf.zeros_like(value.mean))
        if self._task == "regression":
            deviation = tf.sqrt(self._variance_of_first(value, rule))
            return {"mean": value.mean[..., 0], "noise_std": value.mean[..., 1], "weights_std": deviation}
        points = normal_points(_LOGIT_DRAWS, value.mean.shape[-1], self._seed)
        return of_logits(self._logits(value, rule, points))

    def _logits(self, value: Value, rule: Moments, points: np.ndarray) -> Any:
        """Logits [classes, draws, batch] drawn with the covariance of those that could lead."""
        if not rule.sources.points + rule.sources.shared:
            return tf.transpose(value.mean)[:, None]
        chosen = covariance.leading(value, min(_LEADING, value.mean.shape[-1]))
        lower = covariance.covariance(value, chosen, rule.sources)
        return covariance.drawn(value, chosen, covariance.factor(lower), points)

    def _variance_of_first(self, value: Value, rule: Moments) -> Any:
        """The variance [batch] of the first output, from what activations have in common too."""
        if not rule.sources.points + rule.sources.shared:
            return tf.zeros_like(value.mean[..., 0])
        first = tf.one_hot(tf.zeros_like(value.mean[..., :1], tf.int32), value.mean.shape[-1])
        return covariance.covariance(value, first, rule.sources)[0][0]

    def _walked(self, inputs: Value, rule: Any) -> Value:
        [outputs] = walk(self._network, [inputs], rule)
        return outputs.as_rows()


def shape_held(body: Callable[[Any], Outputs], shape: Any) -> Callable[[Any], Outputs]:
    """`body`, which refuses inputs of another shape: a loaded signature would let a Flatten cut them into other rows."""
    return lambda inputs: body(tf.ensure_shape(inputs, shape))


def never_empty(body: Callable[[Any], Outputs]) -> Callable[[Any], Outputs]:
    """`body`, which is given one row of zeros in the place of no rows at all, and whose answer to it is dropped.

    TensorFlow's convolutions by oneDNN give outputs of the wrong shape for an empty batch, and the next layer fails.
    """

    def served(inputs: Any) -> Outputs:
        batch = tf.shape(inputs)[0]
        paddings = [[0, tf.cast(batch < 1, tf.int32)], *[[0, 0]] * (len(inputs.shape) - 1)]
        filled = tf.ensure_shape(tf.pad(inputs, paddings), inputs.shape)
        return {name: value[:batch] for name, value in body(filled).items()}

    return served


def normal_points(count: int, classes: int, seed: int) -> np.ndarray:
    """Standard normal points [count, leading + classes] that fill their space evenly: Sobol's, scrambled by `seed`."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    width = min(_LEADING, classes) + classes
    uniform = qmc.Sobol(min(width, qmc.Sobol.MAXDIM), seed=seed).random(count)
    uniform = uniform[:, np.arange(width) % uniform.shape[1]]
    points = ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))
    return ((points - points.mean(0)) / points.std(0)).astype(np.float32)


def of_logits(logits: Any) -> Outputs:
    """The outputs of classification from draws of the logits [classes, draws, batch]."""
    shifted = logits - tf.reduce_max(logits, 0)
    weights = tf.exp(shifted)
    total = tf.reduce_sum(weights, 0)
    probabilities = weights / total
    aleatoric = tf.math.log(total) - tf.reduce_sum(probabilities * shifted, 0)
    return of_draws(tf.transpose(tf.reduce_mean(probabilities, 1)), tf.reduce_mean(aleatoric, 0))


def of_draws(probabilities: Any, aleatoric: Any) -> Outputs:
    """The outputs of classification from mean probabilities and mean entropy."""
    total = entropy(probabilities)
    # The mutual information is not negative; rounding of two nearly equal entropies can be.
    epistemic = tf.maximum(total - aleatoric, 0.0)
    return {"probabilities": probabilities, "entropy": total, "aleatoric": aleatoric, "epistemic": epistemic}


def last_layer(model: Any) -> Any:
    """The layer that makes the output of `model`, found in nested models too."""
    last = model.outputs[0]._keras_history.layer
    return last_layer(last) if isinstance(last, keras.Model) else last


def task_of(model: Any) -> Task:
    """What the model was made for, by its last layer."""
    has_noise = any(isinstance(layer, GaussianOutput) for layer in model._flatten_layers(include_self=False))
    return "regression" if has_noise else "classification"


def _check(model: Any, predictive: Predictive, samples: int) -> None:
    check_graph(model)
    refuse_equal_names(model)
    if predictive not in PREDICTIVES:
        raise ExportError(f"unknown predictive {predictive!r}: expected one of {', '.join(map(repr, PREDICTIVES))}")
    if predictive == "sampled" and samples < 2:
        raise ExportError(f"samples must be at least 2 for a sampled prediction, got {samples}")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ExportError(
            f"model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: expected one of each"
        )


def _check_error_rate(error_rate: float | None, predictive: Predictive, task: Task) -> None:
    if error_rate is None:
        return
    if predictive != "sampled" or task != "classification":
        raise ExportError(f"error_rate is for sampled classification, got it for {predictive} {task}: leave it out")
    if not 0 < error_rate < 1:
        raise ExportError(f"error_rate must be in (0, 1), got {error_rate}")


def entropy(probabilities: Any) -> Any:
    """Entropy in nats over the last axis, with 0 log 0 = 0."""
    return -tf.reduce_sum(tf.math.xlogy(probabilities, probabilities), axis=-1)
