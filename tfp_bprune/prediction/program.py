"""What is traced for an export: a lowered network run in one of three ways, and what is said of its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tfp_bprune._keras import tf
from tfp_bprune.graphs.walk import walk
from tfp_bprune.layers.rules.normals import erf_of_exp
from tfp_bprune.prediction import draws
from tfp_bprune.prediction.answers import Answer, Outputs, Targets
from tfp_bprune.prediction.calibration import Calibration
from tfp_bprune.prediction.checks import by_row
from tfp_bprune.prediction.lower import Linear, LoweredParts
from tfp_bprune.prediction.normal import of_moments
from tfp_bprune.prediction.passes import Draws, Mean, Moments
from tfp_bprune.prediction.unrolling import unrolled
from tfp_bprune.prediction.value import Value
from tfp_bprune.prediction.written import written_out

NETWORK = "network"  # the scope of what is computed before any answer, where a graph is to be converted


class Program:
    """What is traced for a lowered network: inputs [batch, ...] to named outputs, in three ways."""

    def __init__(
        self,
        network: Any,
        linears: dict[int, Linear | LoweredParts],
        answers: Sequence[Answer],
        samples: int,
        seed: int,
        error_rate: float | None,
        has_erf: bool,
        calibration: Calibration | None = None,
        unrolls: bool = False,
        lacks: Collection[str] = (),
    ) -> None:
        self._network, self._linears, self._answers = network, linears, answers
        self._samples, self._seed, self._error_rate = samples, seed, error_rate
        self._calibration, self._unrolls = calibration or Calibration(), unrolls
        self._lacks = lacks
        self._erf, self._scoped = (tf.math.erf if has_erf else erf_of_exp), not has_erf

    def mean(self, *inputs: Any) -> Outputs:
        """At the posterior mean."""
        walked = self._walked([Value(tensor) for tensor in inputs], Mean(self._linears))
        return self._merged(lambda answer, value: answer.of_mean(value.mean), walked)

    def sampled(self, *inputs: Any) -> Outputs:
        """The mean over draws."""
        rule = Draws(self._linears, self._seed, by_row(self._network, self._linears))

        def run(index: Any, count: Any, rows: Any) -> list[Any]:
            walked = self._walked(rule.start(list(inputs), index, count, rows), rule)
            return [_by_draw(rule.finished(value).mean, count) for value in walked]

        if self._error_rate is not None:
            return self._settled(run, rule, inputs)
        centres: list[Any] = [None] * len(self._answers)
        if any(isinstance(answer, Targets) for answer in self._answers):
            first = run(tf.constant(0), tf.constant(1), None)
            centres = [answer.centre(outputs[0]) for answer, outputs in zip(self._answers, first, strict=True)]
        parts = self._parts(centres)
        sums = draws.total(run, parts, self._samples, rule.batched, tf.shape(inputs[0])[0])
        each = zip(self._by_answer(sums), centres, strict=True)
        return self._merged(lambda answer, one: answer.of_sums(one[0], self._samples, one[1]), list(each))

    def _settled(self, run: draws.Run, rule: Draws, inputs: Sequence[Any]) -> Outputs:
        def rivals(outputs: Sequence[Any]) -> list[Any]:
            return [answer.rivals(one) for answer, one in zip(self._answers, outputs, strict=True)]

        assert self._error_rate is not None
        means = [value.mean for value in self._walked([Value(tensor) for tensor in inputs], Mean(self._linears))]
        sums, counts = draws.total_until_settled(
            run, self._parts([None] * len(self._answers)), rivals, self._samples, rule.batched, self._error_rate,
            rivals(means),
        )  # fmt: skip
        number = tf.cast(counts, tf.float32)
        outputs = self._merged(lambda answer, one: answer.of_sums(one, number, None), self._by_answer(sums))
        return {**outputs, "draws": counts}

    def _parts(self, centres: list[Any]) -> draws.Parts:
        """Of the outputs of draws, all parts whose sums are wanted."""
        return lambda outputs: [
            part
            for answer, one, centre in zip(self._answers, outputs, centres, strict=True)
            for part in answer.parts(one, centre)
        ]

    def _by_answer(self, sums: list[Any]) -> list[list[Any]]:
        """The sums of the parts of each answer."""
        ends = np.cumsum([0, *(answer.count for answer in self._answers)])
        return [sums[start:end] for start, end in itertools.pairwise(ends)]

    def moments(self, *inputs: Any) -> Outputs:
        """From means and variances."""
        rule = Moments(self._linears, self._erf)
        walked = self._walked([Value(tensor) for tensor in inputs], rule)
        return self._merged(lambda answer, value: of_moments(answer, value, rule.sources, self._seed), walked)

    def _walked(self, inputs: list[Value], rule: Any) -> list[Value]:
        tensors = zip(self._network.inputs, inputs, strict=True)
        inputs = [
            value if value.mean.dtype == tensor.dtype else value.each(_cast_to(tensor)) for tensor, value in tensors
        ]
        with (
            tf.name_scope(NETWORK) if self._scoped else nullcontext(),
            unrolled(self._network) if self._unrolls else nullcontext(),
            written_out(self._network, self._lacks),
        ):
            outputs = [value.as_rows().as_float() for value in walk(self._network, inputs, rule)]
        return [self._calibration.cooled(value) for value in outputs]

    def _merged(self, say: Callable[[Answer, Any], Outputs], of: Sequence[Any]) -> Outputs:
        """What is said of each output, together."""
        merged: Outputs = {}
        for answer, one in zip(self._answers, of, strict=True):
            merged |= answer.named(say(answer, one))
        return merged


def _cast_to(tensor: Any) -> Callable[[Any], Any]:
    return lambda value: tf.cast(value, tensor.dtype)


def _by_draw(outputs: Any, count: Any) -> Any:
    """Outputs [draws x batch, ...] as [draws, batch, ...]."""
    return tf.reshape(outputs, tf.concat([[count, -1], tf.shape(outputs)[1:]], 0))
