"""What the outputs of a network mean: said, kept from training, or certain from the model; never guessed.

A softmax or sigmoid at the end, followed through layers that change nothing, says so by itself. A linear end does not:
its numbers may be logits or the targets of a regression. Then the loss that the model was compiled with decides, or what
`fit` and `build` noted, or the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tfp_bprune._keras import keras, library_of, tf
from tfp_bprune.data.info import Info
from tfp_bprune.data.targets import Target
from tfp_bprune.graphs.names import input_names as input_names
from tfp_bprune.graphs.names import output_names as output_names
from tfp_bprune.graphs.names import targets_of
from tfp_bprune.graphs.rebuild import note, noted
from tfp_bprune.layers import GaussianOutput, kind_of
from tfp_bprune.layers.rules import activation_name, rule_of
from tfp_bprune.types import BpruneError, DataError, Json, OutputTask

_L = keras.layers
End = Literal["softmax", "sigmoid", "gaussian", "linear", "other"]

_SYMBOLS: dict[str, End] = {"nn.softmax": "softmax", "math.sigmoid": "sigmoid", "nn.sigmoid": "sigmoid"}


@dataclass(frozen=True)
class Head:
    """What one output of a network means.

    Attributes:
      task: "classification", one class each [..., classes]; "binary", the second of two classes [..., 1]; "multilabel",
        each of several labels by itself [..., labels]; "regression", means [..., targets]; "gaussian", means and then
        standard deviations [..., 2 targets].
      logits: whether the first three are logits, and not probabilities yet.
    """

    task: OutputTask
    logits: bool = False

    @property
    def classifies(self) -> bool:
        """Whether the output, finished, is probabilities."""
        return self.task in ("classification", "binary", "multilabel")

    def finished(self, outputs: Any) -> Any:
        """Probabilities of a network's `outputs`, of their shape; those of a regression as they are."""
        if not self.logits:
            return outputs
        return tf.nn.softmax(outputs) if self.task == "classification" else tf.math.sigmoid(outputs)

    def to_json(self) -> Json:
        """The head as plain data; `Head(**...)` reads it."""
        return {"task": self.task, "logits": self.logits}


Said = OutputTask | Mapping[str, OutputTask] | None


def heads_of(model: Any, task: Said = None, from_logits: bool | None = None) -> dict[str, Head]:
    """What each output of `model` means, by its name (see `output_names`).

    Args:
      model: functional or sequential.
      task: what the caller says, for all outputs or by name; else what was noted, or what is certain.
      from_logits: whether class outputs are logits; by default as the model's end says: a softmax or sigmoid gives
        probabilities, a linear layer logits.

    Raises:
      BpruneError: what an output means is not certain and nobody said it, or what was said contradicts the model.
    """
    names = output_names(model)
    said = _by_name(task, names)
    known = noted_heads(model) or {}
    return {
        name: _head(model, name, tensor, said.get(name), from_logits, known.get(name))
        for name, tensor in zip(names, model.outputs, strict=True)
    }


def heads_for(model: Any, info: Info, from_logits: bool | None = None) -> dict[str, Head]:
    """What each output of `model` means when it is trained on data that `info` describes, by its name.

    A network for two classes may have two outputs or one, a regression one for each target or as many deviations besides; an
    output that has labels for each pixel or step has a number, or numbers, at each.

    Args:
      from_logits: as in `heads_of`.

    Raises:
      DataError: the model's outputs do not suit the data.
      BpruneError: whether an output is logits or probabilities is not certain.
    """
    targets = targets_of(model, info)
    return {
        name: _head_for(model, name, tensor, targets[name], info.name, from_logits)
        for name, tensor in zip(output_names(model), model.outputs, strict=True)
    }


def _head_for(model: Any, name: str, tensor: Any, target: Target, data: str, from_logits: bool | None) -> Head:
    shape, end = tuple(tensor.shape[1:]), end_of(tensor)
    task = _task_for(target, shape, end)
    if task is None:
        at = f" at each of {target.positions} positions" if target.positions else ""
        given = (
            f"{shape[-1] if shape else 1} outputs" if len(shape) < 2 and not target.positions else f"outputs {shape}"
        )
        several = f", output {name!r}," if len(model.outputs) > 1 else ""
        raise DataError(
            f"model {model.name!r}{several} has {given} ending in {_described(end)}: {data} is a {target.task} that needs "
            f"{_needed(target)}{at}"
        )
    classes = task in ("classification", "binary", "multilabel")
    return _checked(model, name, tensor, task, from_logits if classes else None)


def note_heads(model: Any, heads: Mapping[str, Head] | None) -> Any:
    """Notes on `model` what its outputs mean, for whatever is made of it; returns the model."""
    if heads is not None:
        note(model, "heads", dict(heads))
    return model


def noted_heads(model: Any) -> dict[str, Head] | None:
    """What was noted of `model`, or else what the loss says that it was compiled with; None where neither does."""
    heads = noted(model, "heads")
    return dict(heads) if heads is not None else _heads_of_loss(model)


def check_widths(model: Any, heads: Mapping[str, Head]) -> None:
    """Refuses meanings, by name, that outputs of so many numbers cannot have.

    Raises:
      BpruneError: naming the output.
    """
    for name, tensor in zip(output_names(model), model.outputs, strict=True):
        if name in heads:
            _check_width(model, name, tensor, heads[name].task)


def end_of(tensor: Any) -> End:
    """What the last layers that change anything make of an output: followed through identities and nested models."""
    layer, node_index, tensor_index = tensor._keras_history
    if isinstance(layer, keras.Model):
        return end_of(layer.outputs[tensor_index])
    inputs = tf.nest.flatten(layer._inbound_nodes[node_index].keras_inputs)
    inner = layer.layer if isinstance(layer, _L.TimeDistributed) else layer
    if isinstance(inner, GaussianOutput):
        return "gaussian"
    if isinstance(inner, _L.Softmax):
        return "softmax" if inner.axis in (-1, len(tensor.shape) - 1) else "other"
    symbol = _SYMBOLS.get(str(getattr(inner, "symbol", "")))
    if symbol is not None:
        return symbol
    activation = getattr(inner, "activation", None)
    if isinstance(activation, _L.Softmax) and activation.axis in (-1, len(tensor.shape) - 1):
        return "softmax"
    name = activation_name(activation if isinstance(activation, _L.Activation) else inner)
    if name in ("softmax", "sigmoid"):
        return name  # type: ignore[return-value]
    if name != "linear":
        return "other"
    meaning = rule_of(inner).meaning
    if meaning == "same" or isinstance(inner, _L.Activation):
        end = end_of(inputs[0])
        moved = inputs[0].shape[-1] != tensor.shape[-1]
        return "other" if moved and end in ("softmax", "gaussian") else end
    if meaning == "linear":
        return "linear" if all(end_of(one) == "linear" for one in inputs) else "other"
    return "linear" if kind_of(inner) or hasattr(inner, "kernel") or hasattr(inner, "depthwise_kernel") else "other"


def _by_name(task: Said, names: list[str]) -> Mapping[str, OutputTask | None]:
    said: Mapping[str, Any] = task if isinstance(task, Mapping) else dict.fromkeys(names, task)
    unknown = sorted(set(said) - set(names))
    if unknown:
        raise BpruneError(
            f"task names {', '.join(map(repr, unknown))}: expected outputs among {', '.join(map(repr, names))}"
        )
    for one in said.values():
        if one is not None and one not in get_args(OutputTask):
            raise BpruneError(f"unknown task {one!r}: expected one of {', '.join(map(repr, get_args(OutputTask)))}")
    return said


def _head(
    model: Any, name: str, tensor: Any, task: OutputTask | None, from_logits: bool | None, known: Head | None
) -> Head:
    if task is not None:
        return _checked(model, name, tensor, task, from_logits)
    if known is not None:
        return known if from_logits is None else _checked(model, name, tensor, known.task, from_logits)
    width, end = tensor.shape[-1], end_of(tensor)
    certain: dict[End, OutputTask] = {
        "softmax": "classification", "sigmoid": "binary" if width == 1 else "multilabel", "gaussian": "gaussian",
    }  # fmt: skip
    if end in certain:
        return _checked(model, name, tensor, certain[end], from_logits)
    raise BpruneError(
        f"it is unclear what output {name!r} of model {model.name!r} means, since it ends in {_described(end)}: give "
        "task='classification', 'binary', 'multilabel', 'regression' or 'gaussian' (mean and standard deviation), or compile "
        "the model with its loss"
    )


def _checked(model: Any, name: str, tensor: Any, task: OutputTask, from_logits: bool | None) -> Head:
    """The head of an output of which the task is known.

    Raises:
      BpruneError: the output cannot be of that task, or whether it is logits is not certain.
    """
    _check_width(model, name, tensor, task)
    if task in ("regression", "gaussian"):
        return Head(task)
    end = end_of(tensor)
    fits: End = "softmax" if task == "classification" else "sigmoid"
    if end in ("softmax", "sigmoid", "gaussian") and end != fits:
        raise _contradicted(model, name, tensor, task, f"a {fits} or logits")
    if from_logits is None and end == "other":
        raise BpruneError(
            f"it is unclear whether output {name!r} of model {model.name!r} is logits or probabilities, since it ends in "
            f"{_described(end)}: give from_logits=True or False"
        )
    if from_logits and end == fits:
        expected = f"probabilities, which a {fits} makes, not logits: leave out from_logits"
        raise _contradicted(model, name, tensor, task, expected)
    return Head(task, end == "linear" if from_logits is None else from_logits)


def _check_width(model: Any, name: str, tensor: Any, task: OutputTask) -> None:
    width, wrong = tensor.shape[-1], None
    if task == "gaussian" and width is not None and width % 2:
        wrong = "as many standard deviations as means, 'regression' has means alone"
    if task == "classification" and width == 1:
        wrong = "an output for each class; one probability is 'binary'"
    if task == "binary" and width != 1:
        wrong = "one output; several are 'classification' or 'multilabel'"
    if wrong is not None:
        raise _contradicted(model, name, tensor, task, wrong)


def _contradicted(model: Any, name: str, tensor: Any, task: OutputTask, expected: str) -> BpruneError:
    return BpruneError(
        f"output {name!r} of model {model.name!r} has {tensor.shape[-1]} numbers and ends in {_described(end_of(tensor))}: "
        f"for the task {task!r} expected {expected}"
    )


def _described(end: End) -> str:
    words = {"linear": "a linear layer", "other": "a layer of another kind", "gaussian": "a GaussianOutput"}
    return words.get(end, f"a {end}")


def _task_for(target: Target, shape: tuple[int | None, ...], end: End) -> OutputTask | None:
    """The task of an output of `shape` an example for the target; None where it does not suit."""
    if target.task == "regression":
        return _regression_for(target, shape, end)
    before, width = shape[:-1], shape[-1] if shape else None
    if not _same(before, target.positions):
        return None
    if target.task == "multilabel":
        return "multilabel" if width == target.classes else None
    if width == 1 and target.classes == 2:
        return "binary"
    return "classification" if width == target.classes else None


def _regression_for(target: Target, shape: tuple[int | None, ...], end: End) -> OutputTask | None:
    """Means of the targets' shape, with or without a last axis of one; or twice as many numbers on the last axis."""
    numbers = target.positions or ((target.classes,) if target.classes > 1 else ())
    means = [numbers, (*numbers, 1)]
    if end != "gaussian" and any(_same(shape, one) for one in means):
        return "regression"
    return "gaussian" if any(one and _same(shape, (*one[:-1], 2 * one[-1])) for one in means) else None


def _same(shape: tuple[int | None, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(s in (None, e) for s, e in zip(shape, expected, strict=True))


def _needed(target: Target) -> str:
    if target.task == "regression":
        return f"{target.classes}, or {2 * target.classes} with standard deviations"
    if target.task == "multilabel":
        return f"{target.classes}, logits or by a sigmoid"
    return f"{target.classes}, logits or by a softmax" + (", or 1 by a sigmoid" if target.classes == 2 else "")


def _heads_of_loss(model: Any) -> dict[str, Head] | None:
    """What the loss that a model was compiled with says of its outputs."""
    loss = getattr(model, "loss", None) or noted(model, "loss")
    if loss is None:
        return None
    names = output_names(model)
    losses: Mapping[str, Any] = dict.fromkeys(names, loss)
    if isinstance(loss, Mapping):
        losses = loss
    elif isinstance(loss, list | tuple):
        losses = dict(zip(names, loss, strict=False))
    tensors = dict(zip(names, model.outputs, strict=True))
    found = {name: _head_of_loss(losses.get(name), tensors[name]) for name in names}
    return {name: head for name, head in found.items() if head is not None} or None


_REGRESSIONS = {
    "mse", "mae", "mape", "msle", "mean_squared_error", "mean_absolute_error", "mean_absolute_percentage_error",
    "mean_squared_logarithmic_error", "huber", "huber_loss", "log_cosh", "logcosh",
}  # fmt: skip
_CROSS_ENTROPIES = {"categorical_crossentropy", "sparse_categorical_crossentropy"}
_BINARY_CROSS_ENTROPIES = {"binary_crossentropy", "binary_focal_crossentropy", "bce"}


def _head_of_loss(loss: Any, tensor: Any) -> Head | None:
    if isinstance(said := getattr(loss, "head", None), Head):
        return said  # a loss of `fit`
    end, width = end_of(tensor), tensor.shape[-1]
    name = _loss_name(loss)
    if name == "gaussian_nll":
        return Head("gaussian")
    if end in ("softmax", "sigmoid", "gaussian"):
        return None  # the model says it by itself
    if name in _REGRESSIONS:
        return Head("regression")
    logits = bool(_from_logits(loss))
    if end == "linear" and not logits:
        return None  # a cross entropy of probabilities, on what are none
    if name in _CROSS_ENTROPIES and width != 1:
        return Head("classification", logits)
    if name in _BINARY_CROSS_ENTROPIES:
        return Head("binary" if width == 1 else "multilabel", logits)
    return None


def _loss_name(loss: Any) -> str:
    """The Keras name of a loss given as a string, a function or an object; "" of a loss that is none of Keras's or of this
    package, whatever it is called."""
    if isinstance(loss, str):
        text = loss
    else:
        kinds = [type(loss)] if isinstance(loss, keras.losses.Loss) else []
        function: Any = getattr(loss, "fn", None) or (kinds or [loss])[0]
        text = str(function.__name__) if all(map(library_of, [*kinds, function])) else ""
    return text if text.islower() else _snake(text)


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _from_logits(loss: Any) -> bool:
    return bool(getattr(loss, "_fn_kwargs", {}).get("from_logits", getattr(loss, "from_logits", False)))
