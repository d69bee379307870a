"""Errors and small value types that every room shares."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

Task = Literal["classification", "binary", "multilabel", "regression"]  # of data
OutputTask = Literal["classification", "binary", "multilabel", "regression", "gaussian"]  # of a network's output
Layers = Literal["flipout", "reparameterization", "local", "deterministic", "dropout"]
Estimator = Literal["flipout", "reparameterization", "local"]
Policy = Literal["float32", "mixed_bfloat16", "mixed_float16"]  # of numbers in training, as Keras names them
Predictive = Literal["mean", "sampled", "moments"]
Format = Literal["savedmodel", "onnx", "litert", "openvino"]
Criterion = Literal["snr", "magnitude", "evidence", "log_alpha"]
Granularity = Literal["weight", "unit"]
Scope = Literal["global", "layer"]
Aggregate = Literal["norm", "mean", "max"]
Counts = Literal["weights", "multiplications"]
Augmentation = Literal["none", "shift", "shift_flip"]
PriorName = Literal["scale_mixture", "normal", "ard", "normal_jeffreys", "horseshoe"]
Groups = Literal["input", "output", "both"]  # of the weights of a tensor, by what they read or make
KLWeighting = Literal["warmup", "constant", "blundell"]
Scaling = Literal["none", "root", "linear"]  # of the learning rate, with the number of workers
Compression = Literal["none", "fp16"]  # of the gradients that workers send
Distribution = Literal["mirrored", "multiworker"]  # of a training, by tf.distribute
Calibrated = Literal["mean", "sampled"]  # what batch normalization is measured for
Product = Literal["dense", "sparse", "csr"]  # in which a kernel is multiplied; "sparse" is COO
Kernels = Literal["auto", Product]
Calibrate = Literal["temperature"]  # of an export's probabilities
Storage = Literal["float32", "float16", "int8", "int7", "int6", "int5", "int4", "int3", "int2"]  # of weights in files
Precision = Literal["auto", Storage]  # what an export is asked for
HeldOut = Literal["test", "valid"]
Target = Literal["nonzeros", "bytes", "latency"]
Order = Literal["refined", "score"]
TuningMethod = Literal["random", "hyperband", "bayesian"]
Objective = Literal["val_nll", "val_loss", "val_accuracy", "val_mse"]
Logger = Literal["tensorboard", "mlflow"]
Shell = Literal["bash", "zsh", "tcsh"]
Json = dict[str, Any]


class BpruneError(ValueError):
    """A request that cannot be met. The message is one line: what was expected, what came, and what to do.

    All errors of the package are of this class or of a subclass of it.
    """

    # AutoGraph hands on an error raised while a function is traced as its own type only if it is built like this;
    # else `model.fit` would raise a StagingError in its place.
    __init__ = Exception.__init__

    def __str__(self) -> str:
        """The message alone, without the places that AutoGraph and Keras put around it."""
        text = super().__str__().split("\n\nCall arguments received by layer")[0]
        if "in user code:" not in text and "Exception encountered when calling layer" not in text:
            return text
        last = text.rstrip().splitlines()[-1].strip()
        return re.sub(r"^\w+Error: ", "", last)


class DataError(BpruneError):
    """A dataset is absent, empty or of a shape that the model does not take."""


class RunError(BpruneError):
    """A run directory is missing, damaged, locked by another process, or not of the kind expected."""


class PruneError(BpruneError):
    """A pruning request that is contradictory, or a model that holds nothing to prune."""


class ExportError(BpruneError):
    """A model that cannot be exported as asked, or a place that cannot take it."""


class TrainingError(BpruneError):
    """Training cannot start, or had to stop: a non-finite loss, an unknown number of training examples."""


def suggestion(word: object, known: Iterable[object]) -> str:
    """What an error adds to a word that is nearly one of those known; nothing for others.

    >>> suggestion("trian", ["train", "tune"])
    "; did you mean 'train'?"
    """
    near = difflib.get_close_matches(str(word), [str(one) for one in known], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def if_percent(value: float) -> str:
    """What an error about a fraction adds to a number that was meant as a percentage; nothing for others.

    >>> if_percent(90), if_percent(-1)
    (': use 0.9 for 90 %', '')
    """
    return f": use {value / 100:.6g} for {value:.6g} %" if 1 < value < 100 else ""


def check_number(name: str, value: Any, error: type[BpruneError] = BpruneError, *, whole: bool = False) -> None:
    """Refuses what is no number, or no whole number of 64 bits; NaN is left to the check of its range.

    >>> check_number("epochs", 2.5, whole=True)
    Traceback (most recent call last):
    ...
    tfp_bprune.types.BpruneError: epochs must be a whole number, got 2.5

    Raises:
      BpruneError: or the `error` that is given: it is not.
    """
    scalar = not isinstance(value, str | bytes | None) and np.ndim(value) == 0
    number = scalar and np.asarray(value).dtype.kind in "iuf"
    if not number or (whole and not (abs(value) < 2**63 and value == int(value))):
        raise error(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}")


def names_of(given: Any, what: str) -> tuple[str, ...]:
    """The names in `given`; a string is one name, not its letters.

    >>> names_of("logits", "exclude"), names_of(["conv*", "logits"], "include")
    (('logits',), ('conv*', 'logits'))

    Raises:
      BpruneError: something else than names is among them.
    """
    names = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise BpruneError(f"{what} holds {name!r}: expected names")
    return names


def class_names_of(given: Any, classes: int) -> list[Any]:
    """A name for each class: those in `given`, a list or a dictionary by class number, or the numbers.

    Raises:
      DataError: there is not one for each, or `given` is one string, whose letters they would be.
    """
    if isinstance(given, str | bytes):
        raise DataError(f"class_names is the string {given!r}: expected a list of {classes} names")
    if isinstance(given, Mapping):
        given = [given.get(i, i) for i in range(classes)]
    names = list(range(classes)) if given is None else list(given)
    if len(names) != classes:
        raise DataError(f"{len(names)} class names for {classes} classes: expected one for each")
    return names
