"""What an export computes: named outputs for a batch, from plain TensorFlow operations; see `prediction.answers` for their names.

Of several outputs, each name begins with that of its output. A prediction that is sampled until settled also gives `draws`,
their number for each example [batch].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from tfp_bprune._keras import keras, tf
from tfp_bprune.data.names import input_name
from tfp_bprune.graphs.compact import compact
from tfp_bprune.graphs.convert import adopt, refuse_distributions, refuse_equal_names, strip
from tfp_bprune.graphs.copying import within
from tfp_bprune.graphs.heads import Head, Said, heads_of, input_names
from tfp_bprune.graphs.rebuild import calls_of, check_graph
from tfp_bprune.layers import kind_of
from tfp_bprune.prediction.answers import Outputs, answers_for, entropy, refuse_repeated
from tfp_bprune.prediction.block import Block
from tfp_bprune.prediction.calibration import Calibration
from tfp_bprune.prediction.checks import explained, refuse_hidden, refuse_moments, refuse_ragged, tables_of
from tfp_bprune.prediction.dropped import drawn_layers
from tfp_bprune.prediction.ends import without_ends
from tfp_bprune.prediction.kernels import Lowering
from tfp_bprune.prediction.lower import LoweredDense, lowered, variables_of
from tfp_bprune.prediction.precision import in_float32, policy_of
from tfp_bprune.prediction.program import Program
from tfp_bprune.prediction.stored import Decoded
from tfp_bprune.types import ExportError, Json, Predictive, if_percent

__all__ = ["DEFAULT_SAMPLES", "PREDICTIVES", "Predictor", "entropy"]

DEFAULT_SAMPLES = 30
PREDICTIVES = get_args(Predictive)
BREAK_EVEN_BATCHES = (1, 256)


class Predictor(tf.Module):
    """One exported network: a batch-polymorphic `predict` and what it reads.

    Args:
      model: Bayesian or plain, functional or sequential.
      predictive: "mean" for the network at its posterior mean, "sampled" for the mean over draws of its weights,
        "moments" for means and variances carried through it and draws of its logits alone.
      samples: draws of "sampled".
      seed: of the draws; the same batch always gets the same answer.
      lowering: how kernels are stored and multiplied.
      error_rate: of "sampled" classes, binary or more: an example gets no further draws once its class is settled, which is wrong
        with this probability at most (`prediction.draws`); None for all draws for all. Where an output gives classes of many
        positions, all of them have to be settled.
      task, from_logits: what the outputs mean, where the model does not say it (`graphs.heads`).
      calibration: of a network with one output: a temperature, and the reach of sets or intervals.

    Attributes:
      heads: what each output means, by its name.
      inputs: `tf.TensorSpec` [batch, ...] of each input, by its name in the signature, in the order of `predict`'s
        arguments.
      dropout: names of the layers of which Monte-Carlo dropout was asked, by a call with training=True: drawn by
        "sampled", carried as variances by "moments", off in "mean".
      policy: what the network computed in, if not float32, as the export does.
      calibration: as given.

    Raises:
      BpruneError: what an output means is not certain, or the model is none whose graph is known.
      ExportError: the request is none that can be served.
    """

    def __init__(
        self,
        model: Any,
        predictive: Predictive,
        samples: int = DEFAULT_SAMPLES,
        seed: int = 0,
        lowering: Lowering | None = None,
        error_rate: float | None = None,
        *,
        task: Said = None,
        from_logits: bool | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(name="predictor")
        _check(model, predictive, samples)
        heads = heads_of(model, task, from_logits)
        self.heads, self.inputs, self.predictive = heads, _inputs_of(model), predictive
        self.network_name = model.name
        _check_error_rate(error_rate, predictive, heads)
        with explained(model.name):
            network = in_float32(strip(model) if predictive == "mean" else adopt(model))
            self.policy, self.dropout = policy_of(model), drawn_layers(network)
            if predictive == "mean" or not self.dropout:  # what is constant is not, behind dropout
                network = compact(network)
        whole = network
        self._network = lambda: whole  # a module that it held would go into SavedModels
        block = Block()
        lowering = replace(lowering or Lowering(), block=block)
        self.calibration = calibration = calibration or Calibration()
        if predictive == "moments":  # both forms and their slopes would be more graph than they save time
            lowering = replace(lowering, by_batch=False, followed=True, pixel_columns=False)
            if lowering.kernels not in ("auto", *lowering.forms):
                raise ExportError(
                    f"predictive 'moments' has no {lowering.kernels} products: expected kernels 'auto', 'dense' or 'sparse'"
                )
        if predictive == "moments" or calibration.temperature is not None:
            network, heads = without_ends(network, heads, predictive == "moments")
        linears = lowered(network, lowering)
        block.close()
        refuse_hidden(network, linears)
        if predictive == "moments":
            refuse_moments(linears)
        # All that a file has to hold of the network; the network itself is not among it.
        self._linears = list(dict.fromkeys(linears.values()))
        self._costs, self._sparse = lowering.costs, lowering.forms[1:]
        self._read = [*variables_of(network, linears), *tables_of(network)]
        answers = answers_for(heads, plain=not lowering.at_load)
        self._prefixes = [answer.prefix for answer in answers]
        program = Program(
            network,
            linears,
            answers,
            samples,
            seed,
            error_rate,
            lowering.at_load,
            calibration,
            lowering.unrolls,
            lowering.lacks,
        )
        bodies: dict[Predictive, Callable[..., Outputs]] = {
            "mean": program.mean, "sampled": program.sampled, "moments": program.moments,
        }  # fmt: skip
        body, specs = calibration.around(bodies[predictive], next(iter(heads.values()))), list(self.inputs.values())
        if lowering.at_load and any(hasattr(layer, "kernel_size") for layer in calls_of(network)):
            body = never_empty(body)
        if lowering.at_load:
            body = shape_held(body, [spec.shape for spec in specs])
        self._body = body
        self.predict = tf.function(body, input_signature=specs)
        self._read.extend(self._traced(model.name))

    def for_batches_of(self, size: int | None) -> Any:
        """`predict`, which takes any number of examples, or the same function for `size` of them alone."""
        if size is None:
            return self.predict
        specs = [tf.TensorSpec([size, *spec.shape[1:]], spec.dtype, spec.name) for spec in self.inputs.values()]
        return tf.function(self._body, input_signature=specs)

    @property
    def network(self) -> Any:
        """The Keras model behind `predict`, in float32: plain at the posterior mean, Bayesian for other predictives; without
        dead units, where nothing is drawn of them."""
        return self._network()

    @property
    def ends(self) -> dict[str, set[str]]:
        """The layers with kernels, by their names, of whose outputs answers are made without any other such layer between: by
        the prefix of the answers' names."""
        outputs = zip(self._prefixes, self.network.outputs, strict=True)
        return {prefix: _kernels_behind(tensor) for prefix, tensor in outputs}

    @property
    def last(self) -> set[str]:
        """The same of all answers together."""
        return set().union(*self.ends.values())

    @property
    def payload(self) -> int:
        """Bytes of the weights as files hold them, biases and places among them, without the rest of the graph."""
        decoded = self._flatten(predicate=lambda value: isinstance(value, Decoded))
        held = [value for one in decoded for value in getattr(one.stored, "variables", [one.stored])]
        variables = {id(variable): variable for variable in (*self.variables, *held)}
        biases = [bias for linear in self._linears for bias in linear.biases]
        taken = sum(linear.kernel.constants for linear in self._linears if isinstance(linear, LoweredDense))
        return sum(map(_bytes_of, variables.values())) + sum(bias.nbytes for bias in biases) + taken

    def _traced(self, name: str) -> list[Any]:
        """Traces `predict`, and gives the variables that it reads and that no layer was known to have."""
        with explained(name):
            variables = self.predict.get_concrete_function().variables
        known = {id(variable) for variable in self.variables}
        return [variable for variable in variables if id(variable) not in known]

    def products(self) -> dict[str, Json]:
        """How each dense layer on vectors is multiplied, by the layer's name.

        Returns:
          `form`: "dense", "sparse" (entries and their places), "csr" (compressed rows), or several, such as "sparse below
          batch N, then csr", where the batch counts the examples of all draws that are computed together; `shape` [in, out]
          of the kernel without dead units, and without inputs that are not read, where it takes the others alone; `taken`:
          how many it takes then, None for all; `stored`: its entries that are left; `break_even`: by batch, the sparsity
          from which on a sparse form is faster, above 1 where none ever is.
        """
        kernels = {linear.stream: linear.kernel for linear in self._linears if isinstance(linear, LoweredDense)}
        return {
            name: {
                "form": kernel.choice.form,
                "shape": list(kernel.shape),
                "taken": None if kernel.read is None else len(kernel.read),
                "stored": kernel.stored,
                "break_even": {
                    str(batch): self._costs.break_even(kernel.shape, batch, self._sparse)
                    for batch in BREAK_EVEN_BATCHES
                },
            }
            for name, kernel in kernels.items()
        }


def _kernels_behind(tensor: Any) -> set[str]:
    """The layers with kernels behind a tensor of a Keras model, back to the first on every way."""
    found, waiting = set(), [tensor]
    while waiting:
        history = waiting.pop()._keras_history
        layer = within(history.layer)
        if kind_of(layer) is not None:
            found.add(layer.name)
        elif isinstance(layer, keras.Model):
            waiting += layer.outputs
        else:
            waiting += tf.nest.flatten(history.layer.inbound_nodes[history.node_index].keras_inputs)
    return found


def shape_held(body: Callable[..., Outputs], shapes: list[Any]) -> Callable[..., Outputs]:
    """`body`, which refuses inputs of another shape: a loaded signature would let a Flatten cut them into other rows."""
    return lambda *inputs: body(*(tf.ensure_shape(one, shape) for one, shape in zip(inputs, shapes, strict=True)))


def never_empty(body: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """`body`, which is given one row of zeros in the place of no rows at all, and whose answer to it is dropped.

    TensorFlow's convolutions by oneDNN give outputs of the wrong shape for an empty batch, and the next layer fails.
    """

    def filled(inputs: Any, batch: Any) -> Any:
        paddings = [[0, tf.cast(batch < 1, tf.int32)], *[[0, 0]] * (len(inputs.shape) - 1)]
        return tf.ensure_shape(tf.pad(inputs, paddings), inputs.shape)

    def served(*inputs: Any) -> Outputs:
        batch = tf.shape(inputs[0])[0]
        outputs = body(*(filled(one, batch) if one.dtype != tf.string else one for one in inputs))
        return {name: value[:batch] for name, value in outputs.items()}

    return served


def _bytes_of(variable: Any) -> int:
    if variable.dtype == tf.string:
        return len(variable.numpy())
    return int(variable.shape.num_elements()) * int(variable.dtype.size)


def _inputs_of(model: Any) -> dict[str, Any]:
    names = [input_name(name) for name in input_names(model)]
    refuse_repeated(names, "inputs")
    return {
        name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name=name)
        for name, tensor in zip(names, model.inputs, strict=True)
    }


def _check(model: Any, predictive: Predictive, samples: int) -> None:
    check_graph(model)
    refuse_distributions(model)
    refuse_equal_names(model)
    refuse_ragged(model)
    if predictive not in PREDICTIVES:
        raise ExportError(f"unknown predictive {predictive!r}: expected one of {', '.join(map(repr, PREDICTIVES))}")
    if predictive == "sampled" and samples < 2:
        raise ExportError(f"samples must be at least 2 for a sampled prediction, got {samples}")


def _check_error_rate(error_rate: float | None, predictive: Predictive, heads: Mapping[str, Head]) -> None:
    if error_rate is None:
        return
    others = [head.task for head in heads.values() if head.task not in ("classification", "binary")]
    if predictive != "sampled" or others:
        raise ExportError(
            f"error_rate is for sampled classification, got it for {predictive} {(others or ['classification'])[0]}: "
            "leave it out"
        )
    if not 0 < error_rate < 1:
        raise ExportError(f"error_rate must be in (0, 1), got {error_rate}{if_percent(error_rate)}")
