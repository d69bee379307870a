"""The predictive distribution as a TensorFlow function with named outputs, free of this package's Python.

Classification: `probabilities` [batch, classes], the mean over draws of softmax; `entropy` [batch] of that mean, in
nats; and when sampled `aleatoric`, the mean entropy of the draws, and `epistemic`, the difference (mutual information
of prediction and weights; Depeweg et al. 2018, arXiv 1710.07283). Regression: `mean`, `noise_std` and, when sampled,
`weights_std` [batch], in target units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfp_bprune._keras import keras, tf
from tfp_bprune.export.compact import compact
from tfp_bprune.export.lower import Draw, Kernels, lower_drawn, lower_mean
from tfp_bprune.layers import GaussianOutput
from tfp_bprune.models.convert import activation_name, adopt, refuse_equal_names, strip
from tfp_bprune.models.rebuild import check_graph
from tfp_bprune.types import ExportError, Predictive, Task

DEFAULT_SAMPLES = 30
Outputs = dict[str, Any]


class Predictor(tf.Module):
    """One exported network: a batch-polymorphic `predict` and the variables that it reads.

    Args:
      model: Bayesian or plain, functional or sequential, one input and one output.
      predictive: "mean" for the network at its posterior mean, "sampled" for the mean over draws.
      samples: draws of "sampled".
      seed: of the draws; the same batch always gets the same answer.
      kernels: "dense", "sparse" or whichever suits each layer.
    """

    def __init__(
        self,
        model: Any,
        predictive: Predictive,
        samples: int = DEFAULT_SAMPLES,
        seed: int = 0,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__(name="predictor")
        _check(model, predictive, samples)
        self.task = task_of(model)
        gives_logits = self.task == "classification" and not _ends_in_softmax(model)
        finish = tf.nn.softmax if gives_logits else tf.identity
        if predictive == "mean":
            network = lower_mean(compact(strip(model)), kernels)
            body = _mean_outputs(self.task, lambda x: finish(network(x, training=False)))
        else:
            draw = Draw(seed)
            network = lower_drawn(compact(adopt(model)), draw, kernels)
            body = _sampled_outputs(self.task, lambda x: finish(network(x, training=False)), draw, samples)
        self._variables = [v for layer in network._flatten_layers(include_self=False) for v in _variables_of(layer)]
        spec = tf.TensorSpec([None, *model.input_shape[1:]], model.inputs[0].dtype, name="inputs")
        self.predict = tf.function(body, input_signature=[spec])


def task_of(model: Any) -> Task:
    """What the model was made for, by its last layer."""
    has_noise = any(isinstance(layer, GaussianOutput) for layer in model._flatten_layers(include_self=False))
    return "regression" if has_noise else "classification"


def _check(model: Any, predictive: Predictive, samples: int) -> None:
    check_graph(model)
    refuse_equal_names(model)
    if predictive not in ("mean", "sampled"):
        raise ExportError(f"unknown predictive {predictive!r}: expected 'mean' or 'sampled'")
    if predictive == "sampled" and samples < 2:
        raise ExportError(f"samples must be at least 2 for a sampled prediction, got {samples}")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ExportError(
            f"model {model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs: expected one of each"
        )


def _ends_in_softmax(model: Any) -> bool:
    last = model.outputs[0]._keras_history.layer
    if isinstance(last, keras.Model):
        return _ends_in_softmax(last)
    return isinstance(last, keras.layers.Softmax) or activation_name(last) == "softmax"


def _variables_of(layer: Any) -> list[Any]:
    held = [value for value in vars(layer).values() if isinstance(value, tf.Variable)]
    return list(layer.weights) + [v for v in held if not any(v is w for w in layer.weights)]


def entropy(probabilities: Any) -> Any:
    """Entropy in nats over the last axis, with 0 log 0 = 0."""
    return -tf.reduce_sum(tf.math.xlogy(probabilities, probabilities), axis=-1)


def _mean_outputs(task: Task, network: Callable[[Any], Any]) -> Callable[[Any], Outputs]:
    def classify(inputs: Any) -> Outputs:
        probabilities = network(inputs)
        return {"probabilities": probabilities, "entropy": entropy(probabilities)}

    def regress(inputs: Any) -> Outputs:
        prediction = network(inputs)
        return {"mean": prediction[..., 0], "noise_std": prediction[..., 1]}

    return classify if task == "classification" else regress


def _sampled_outputs(task: Task, network: Callable[[Any], Any], draw: Draw, samples: int) -> Callable[[Any], Outputs]:
    def averaged(inputs: Any, parts: Callable[[Any], tuple[Any, ...]]) -> list[Any]:
        """The mean over draws of each of `parts` of the network's output."""

        def add_draw(index: Any, *sums: Any) -> tuple[Any, ...]:
            draw.index = index
            new = parts(network(inputs))
            draw.index = 0
            return (index + 1, *[s + n for s, n in zip(sums, new, strict=True)])

        sums = add_draw(tf.constant(0), *[0.0] * count)
        sums = tf.while_loop(lambda index, *_: index < samples, add_draw, sums, parallel_iterations=1)
        return [s / samples for s in sums[1:]]

    def classify(inputs: Any) -> Outputs:
        probabilities, aleatoric = averaged(inputs, lambda p: (p, entropy(p)))
        total = entropy(probabilities)
        # The mutual information is not negative; rounding of two nearly equal entropies can be.
        return {
            "probabilities": probabilities,
            "entropy": total,
            "aleatoric": aleatoric,
            "epistemic": tf.maximum(total - aleatoric, 0.0),
        }

    def regress(inputs: Any) -> Outputs:
        centre = network(inputs)[..., 0]  # draw 0: deviations from it keep the variance free of cancellation
        moved, square, noise_std = averaged(
            inputs, lambda p: (p[..., 0] - centre, tf.square(p[..., 0] - centre), p[..., 1])
        )
        variance = tf.maximum(square - tf.square(moved), 0.0) * (samples / (samples - 1))
        return {"mean": centre + moved, "noise_std": noise_std, "weights_std": tf.sqrt(variance)}

    count = 2 if task == "classification" else 3
    return classify if task == "classification" else regress
