"""`export`: a SavedModel that any process with TensorFlow alone can load and any TensorFlow Serving can serve, or
the same predictions in another form.

PATH/
  1/               the SavedModel, in a numbered version folder, with requests that warm up TensorFlow Serving,
  model.onnx       or the ONNX file,
  model.tflite     or the LiteRT file, or what another `Form` writes
  README.md        a model card
  manifest.json    what it is, and size and SHA-256 of every file
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.exports.calibrating import calibrator
from tfp_bprune.exports.card import CARD, card_of
from tfp_bprune.exports.forms import FORMS, MOST_IN_BATCH, Form, form_named
from tfp_bprune.exports.making import Making
from tfp_bprune.exports.manifest import describe, signature_of
from tfp_bprune.exports.precision import Asked, planned, wider
from tfp_bprune.exports.rounding import inputs_of
from tfp_bprune.files.aside import beside, check_room
from tfp_bprune.files.runs import Run
from tfp_bprune.graphs.convert import adopt
from tfp_bprune.graphs.heads import Said
from tfp_bprune.graphs.rebuild import check_graph
from tfp_bprune.prediction.calibration import Calibration
from tfp_bprune.prediction.cost import Costs
from tfp_bprune.prediction.distance import DRAWS, check_validation, distance_to_draws
from tfp_bprune.prediction.kernels import FOR_CONVERTERS, Lowering
from tfp_bprune.prediction.predict import DEFAULT_SAMPLES, Predictor
from tfp_bprune.types import Calibrate, ExportError, Json, Kernels, Predictive, RunError


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    predictive: Predictive = "mean",
    samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
    kernels: Kernels = "auto",
    format: str = "savedmodel",
    float16: bool = False,
    precision: Asked | None = None,
    rounding_loss: float | None = None,
    representative: Any = None,
    calibrate: Calibrate | None = None,
    conformal: float | None = None,
    error_rate: float | None = None,
    batch: int | None = None,
    task: Said = None,
    from_logits: bool | None = None,
    costs: Costs | None = None,
    validation: Any = None,
    facts: Json | None = None,
    finish: Callable[[Path], Any] = lambda folder: None,
) -> Json:
    """Writes `model` as a SavedModel, an ONNX or a LiteRT file that needs neither TensorFlow Probability nor this package.

    The signature `serving_default` takes `inputs` [batch, ...] in their raw units. Its outputs depend on the task and the
    predictive: `probabilities` [batch, classes], `entropy`, `epistemic` and `aleatoric` [batch] in nats; or, for a regression,
    `mean`, `noise_std` and `weights_std` in target units (`prediction.answers`). Several inputs have their own names, and
    several outputs have theirs as a prefix: `NAME_probabilities`. Units that pruning left dead are removed; outputs stay equal
    to within float32 rounding.

    Args:
      model: pruned or not; functional or sequential.
      path: a folder that does not exist yet.
      predictive: "mean", the posterior mean; "sampled", the mean over draws of the weights; or "moments", which carries a mean
        and a variance for each activation through the network in one pass.
      samples: number of draws, for "sampled".
      seed: seed of the draws.
      kernels: how dense layers are multiplied: "dense", "sparse" (a list of the nonzero weights), "csr" (compressed sparse rows,
        not with "moments"), or "auto", the fastest by `costs`. Sparse products are for SavedModels, and for registered forms
        that support them. Pruned kernels are stored in few bytes in any case.
      format: "savedmodel", "onnx", "litert", "openvino", or the name of a form given to `register_form`. ONNX and LiteRT need
        the extra `formats`, OpenVINO the extra `openvino`; all three hold "mean" and "moments", but no draws.
      float16: the same as precision="float16".
      precision: how the weights are stored: "float32", "float16", "int8" or "int4" (in a SavedModel any of "int2" to "int8"), with
        a scale for each output channel; or "auto", the fewest bits whose rounding error stays within the posterior's width,
        and more where `validation` shows that they cost too much. Either one for all layers, or a dictionary by layer name, in
        which layers that are not named stay in float32. A SavedModel computes in float32. LiteRT multiplies int8 and int4
        weights with activations that it rounds to 8 bits as they come.
      rounding_loss: how many nats of the evidence lower bound "auto" may lose for each weight. The default, 1/24, gives steps as
        wide as the posterior. 1/2 gives the shortest description of network and data together.
      representative: examples of the training data, an array or one for each input. They fix the ranges of the activations, so
        that LiteRT and ONNX Runtime compute in integers throughout.
      calibrate: "temperature" divides the logits by the temperature that minimizes the NLL on `validation` (with "sampled", the
        logits of each draw). The manifest's `calibration` holds it, with NLL and ECE before and after.
      conformal: a level such as 0.9. For classes it adds the output `prediction_set` [batch, classes], a set that contains the
        right class of a further example with at least this probability. For a regression it adds `interval` [batch, 2], the
        lower and upper end (for several targets [batch, targets, 2], each with this probability). If a temperature or
        `precision="auto"` also depends on `validation`, one half of the examples is used for these and the other half for the
        threshold. The guarantee is for examples from the same source, which must not have been used in training.
      error_rate: for "sampled": stops sampling an example once its predicted class is statistically certain. The chance that
        infinitely many draws would predict another class is at most this.
      batch: a fixed batch size for an ONNX or LiteRT file, as LiteRT.js requires; by default any size. `predict` and `reload` fill
        up the last batch.
      task: what the outputs mean, for all outputs or by output name: "classification", "binary", "multilabel", "regression", or
        "gaussian" (means followed by standard deviations). By default what `fit` or the loss of `compile` said, or what
        follows from the last layer: a softmax, a sigmoid or a `GaussianOutput`.
      from_logits: whether class outputs are logits; by default they are if a linear layer computes them.
      costs: timings of products for `kernels="auto"`; by default those that come with the package.
      validation: examples, an array or one for each input; with targets as a `Split` or a pair (x, y). With "moments", up to 500
        of them are compared with draws of the weights (`moments_vs_draws` in the manifest). With weights in fewer bits, up to
        2000 are compared with float32 (`precision_cost` in the manifest).
      facts: further entries of the manifest, such as the data's fingerprint.
      finish: called with the folder of the complete export before it is moved to `path`; if it raises an error, no export is left.

    Returns:
      The manifest, a dictionary. `bytes` is the size on disk, `bytes_gzip` the compressed size, `payload_bytes` that of the
      weights alone. `layers` has for each layer its `precision` and `elbo_loss`, the expected loss in nats for each weight. A
      SavedModel also has `costs`, and in `layers` the form of each dense layer and the sparsity from which on sparse products
      are faster; ONNX and LiteRT have `taken`, the number of inputs that a layer reads.

    Raises:
      ExportError: `path` exists or cannot be written, or the model cannot be exported as asked.
      BpruneError: what an output means is unknown, or `task` contradicts the model.

    Example:
      manifest = bp.export(pruned, "served/digits", predictive="moments")
      manifest["bytes"], manifest["nonzeros"]
    """
    path = Path(path)
    check_new(path)
    form, asked = form_named(format), _asked(precision, float16)
    _check_form(form, predictive, kernels)
    _check_batch(form, batch)
    check_graph(model)
    plan = planned(model, asked, form, predictive, rounding_loss)
    if conformal is not None and form.tolerance is not None and not plan.whole:
        raise ExportError(
            f"conformal holds for the answers that it was fitted to, and {form.title} rounds those of weights in fewer bits "
            "by itself: use precision 'float32', or the format 'savedmodel'"
        )
    fitting = calibrator(model, calibrate, conformal, validation, bool(plan.choices))
    if plan.whole and fitting is None:
        check_validation(validation, predictive)

    def plain_of(lowering: Lowering, way: Predictive, draws: int, calibration: Calibration | None = None) -> Predictor:
        rate = error_rate if way == predictive else None
        said = partial(Predictor, task=task, from_logits=from_logits, calibration=calibration)
        return said(model, way, draws, seed, lowering, rate)

    def predictor_of(lowering: Lowering) -> Predictor:
        build = partial(plain_of, lowering, predictive, samples)
        return build() if fitting is None else fitting.predictor(build)

    lowering = (
        Lowering(kernels, costs=costs or Costs())
        if form.sparse
        else replace(FOR_CONVERTERS, pixel_columns=form.pixel_columns, unrolls=form.unrolls, lacks=form.lacks)
    )
    making = Making(
        form,
        lambda plan: predictor_of(replace(lowering, by_layer=plan.storages, steps=plan.steps)),
        plan,
        representative,
        batch,
    )
    if validation is not None and not plan.whole:
        whole = plain_of(Lowering("dense"), predictive, samples, making.predictor.calibration)
        making.compare(whole, validation if fitting is None else fitting.fitted_on)
    about: Json = {"export_format": format, **(facts or {})}
    if predictive == "sampled":
        about |= {"samples": samples, "draw_seed": seed}  # `seed` is the training's
    if rounding_loss is not None:
        about["rounding_loss"] = float(rounding_loss)
    if error_rate is not None:
        about["error_rate"] = error_rate
    if batch is not None:
        about["batch"] = int(batch)
    if validation is not None and predictive == "moments":
        drawn = plain_of(Lowering(), "sampled", DRAWS, making.predictor.calibration)
        about["moments_vs_draws"] = distance_to_draws(
            making.predictor, drawn, inputs_of(validation, making.predictor, not plan.whole or fitting is not None)
        )
    with _aside(path) as folder:
        place = folder / form.file
        making.write(place, lambda plan: wider(plan, model, predictive))
        said = {"precision": asked if isinstance(asked, str) else dict(asked)}
        about = _about(model, making, predictive, lowering) | said | about | ({} if fitting is None else fitting.about)
        about |= {"bytes": bytes_of(place), "bytes_gzip": bytes_of(place, compressed=True)}
        (folder / CARD).write_bytes(card_of(about))
        run = Run(folder)
        run.record(**about)
        finish(folder)
        return run.manifest


def _asked(precision: Asked | None, float16: bool) -> Asked:
    """The precision that is asked for, by either argument."""
    if precision is not None and float16 and precision != "float16":
        raise ExportError(f"float16 and precision {precision!r} contradict each other: leave float16 out")
    return precision or ("float16" if float16 else "float32")


def _about(model: Any, making: Making, predictive: Predictive, lowering: Lowering) -> Json:
    """What a manifest says of the network, how many inputs each dense layer takes, in how many bits its weights are, and of a
    SavedModel how it is multiplied."""
    predictor, plan = making.predictor, making.plan
    about: Json = {"kind": "export", "network": model.name, "predictive": predictive, **signature_of(predictor)}
    about |= describe(adopt(model))
    if plan.uniform == "float16":
        about["float16"] = True
    if lowering.at_load:
        about["costs"] = asdict(lowering.costs)
    for name, product in predictor.products().items():
        if name in about["layers"]:
            about["layers"][name] |= product if lowering.at_load else {"taken": product["taken"]}
    for name, storage in plan.storages.items():
        about["layers"][name]["precision"] = storage
    for name, step in plan.steps.items():
        about["layers"][name]["step"] = step
    for name, loss in ({} if plan.whole else plan.losses).items():
        about["layers"][name]["elbo_loss"] = loss
    return about | making.about


def check_new(path: Path) -> None:
    """Refuses a place where something is already, or that cannot be written.

    Raises:
      ExportError: `path` exists, or may not be written.
    """
    if path.exists():
        raise ExportError(f"{path} already exists: choose another folder, an export never overwrites")
    try:
        check_room(path)
    except RunError as error:
        raise ExportError(str(error)) from error


def bytes_of(path: Path, compressed: bool = False) -> int:
    """Size on disk of a file or of all files below a folder, in bytes; `compressed` each by gzip."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(len(gzip.compress(f.read_bytes(), 6)) if compressed else f.stat().st_size for f in files)


def _check_form(form: Form, predictive: Predictive, kernels: Kernels) -> None:
    if predictive not in form.predictives:
        expected = " or ".join(map(repr, form.predictives))
        raise ExportError(f"{form.title} has no predictive {predictive!r}: expected {expected}")
    if kernels not in get_args(Kernels):
        raise ExportError(f"unknown kernels {kernels!r}: expected one of {', '.join(map(repr, get_args(Kernels)))}")
    if kernels not in ("auto", "dense") and not form.sparse:
        raise ExportError(f"{form.title} has no sparse products: expected kernels 'auto' or 'dense', got {kernels!r}")


def _check_batch(form: Form, batch: Any) -> None:
    if batch is None:
        return
    if not form.batch:
        holders = " and ".join(repr(one.name) for one in FORMS.values() if one.batch)
        raise ExportError(f"a fixed batch is for the formats {holders}, got {form.name!r}: leave batch out")
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or not 1 <= batch <= MOST_IN_BATCH:
        raise ExportError(f"batch must be a whole number from 1 to {MOST_IN_BATCH}, got {batch!r}")


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when all went well and vanishes when it did not."""
    try:
        with beside(path) as folder:
            yield folder
            folder.rename(path)
    except (OSError, tf.errors.OpError, RunError) as error:  # TensorFlow has errors of its own for a full disk
        if path.exists():
            check_new(path)  # another process was faster
        said = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, RunError):
            raise ExportError(said[0]) from error
        raise ExportError(f"cannot write {path}: {said[0]}; choose a folder that can be written") from error
