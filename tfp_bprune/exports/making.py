"""From a plan of precisions to a file that was run: held to TensorFlow's answers, and given more bits where few cost too much."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tfp_bprune._keras import errors_alone, tf
from tfp_bprune.exports.converting import answers, check_agreement, failure, hushed, require
from tfp_bprune.exports.forms import Form
from tfp_bprune.exports.manifest import signature_of
from tfp_bprune.exports.precision import Plan
from tfp_bprune.exports.rounding import Examples, Run, check_finite, is_little, measured, typed
from tfp_bprune.prediction.distance import ordered
from tfp_bprune.prediction.predict import Predictor
from tfp_bprune.types import BpruneError, ExportError, Json


class Making:
    """One export on its way.

    Args:
      form: of the file.
      predictor_of: the predictor whose weights are held as a plan says.
      plan: the first.
      representative: examples by which a form may settle ranges of activations, or None.
      batch: the one size of batches that the file is for, or None.

    Attributes:
      plan: as it was written.
      predictor: of this plan.
      about: for the manifest: `payload_bytes`; `difference` of the written file's answers from TensorFlow's, where it was
        converted; `precision_cost`, where it was measured.
    """

    def __init__(
        self,
        form: Form,
        predictor_of: Callable[[Plan], Predictor],
        plan: Plan,
        representative: Any,
        batch: int | None = None,
    ) -> None:
        self.form, self.plan, self._predictor_of, self._batch = form, plan, predictor_of, batch
        self.predictor, self.about = predictor_of(plan), Json()
        self._representative = self._by_name(representative)
        self._examples: Examples | None = None
        self._expected: dict[str, Any] = {}

    def compare(self, whole: Predictor, validation: Any) -> None:
        """Measures what the bits cost beside the predictor `whole` in float32, on examples as in `rounding.Examples`."""
        self._examples = Examples(validation, whole, signature_of(whole))
        self._expected = self._examples.answers(partial(answers, whole))

    def write(self, place: Path, wider: Callable[[Plan], Plan | None]) -> None:
        """Writes the file; again and with more bits, as `wider` gives them, while few that nobody asked for cost too much.

        Raises:
          ExportError: it cannot be written, or what was written answers otherwise.
        """
        while True:
            run = self._written(place)
            cost = self._cost(run)
            more = None if cost is None or is_little(cost) else wider(self.plan)
            if more is None:
                break
            shutil.rmtree(place) if place.is_dir() else place.unlink()
            self.plan, self.predictor = more, self._predictor_of(more)
        if cost is not None:
            self.about["precision_cost"] = cost
        if self.form.payload is not None:
            self.about["payload_bytes"] = self.form.payload(self.predictor, place)

    def _cost(self, run: Run) -> Json | None:
        if self._examples is None:
            return None
        found = self._examples.answers(run)
        check_finite(found, self.form.title)
        return measured(self._examples, self._expected, found)

    def _written(self, place: Path) -> Run:
        """Writes the predictor in the form, and runs what was written against TensorFlow."""
        form = self.form
        with errors_alone(tf.get_logger(), logging.getLogger("absl")):  # converters save a SavedModel in between
            form.convert(self.predictor, place, **self._options())
        if not place.exists():
            raise ExportError(f"the conversion to {form.title} wrote no {place.name}: expected what its form says")
        if form.tolerance is None:
            return partial(answers, self.predictor)
        require(form.name, form.runtime.split(".")[0], extra=form.extra)
        with hushed():
            try:
                run = form.runner(place, batch=self._batch)
                tolerance = self._tolerance(form.tolerance)
                self.about["difference"] = check_agreement(form.title, self.predictor, run, tolerance)
            except BpruneError:
                raise
            except Exception as error:
                raise failure(form.runtime, error, self.predictor.predictive) from error
        return run

    def _options(self) -> Json:
        batch = {"batch": self._batch} if self.form.batch else {}
        if self.form.by_layer:
            return {"precision": self.plan.storages, "representative": self._representative, **batch}
        return batch | ({"float16": self.plan.uniform == "float16"} if self.form.float16 else {})

    def _tolerance(self, tolerance: float) -> float:
        """What answers may differ by; rounding activations to few bits is measured, and refuses nothing by itself."""
        if self.plan.few:
            return float("inf")
        return tolerance if self.plan.whole else self.form.tolerance_float16

    def _by_name(self, examples: Any) -> dict[str, Any] | None:
        if examples is None:
            return None
        if not self.form.by_layer or self.form.tolerance is None or not self.plan.few:
            raise ExportError(
                "representative examples are for LiteRT and ONNX files with weights in few bits, got them for "
                f"{self.form.title} with {self.plan.uniform or 'several precisions'}: leave them out"
            )
        found = typed(self.predictor, ordered(self.predictor, examples, "representative"))
        for name, values in found.items():
            if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
                odd = values[~np.isfinite(values)].flat[0]
                raise ExportError(
                    f"representative examples settle the ranges of activations: expected finite numbers for {name!r}, got {odd}"
                )
        return found
