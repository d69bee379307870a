"""Networks that nobody thought of, pruned by unit and exported in every form: each answers as TensorFlow does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfp_bprune as bp
from tests.random_networks import drawn, examples_for
from tfp_bprune._keras import keras, tf
from tfp_bprune.graphs.heads import input_names, output_names
from tfp_bprune.types import ExportError

FORMS = ("savedmodel", "onnx", "litert")
SEEDS = [0, 5, 21, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(300, 340))]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_form_answers_as_tensorflow_does(seed: int, tmp_path: Path) -> None:
    rng, plain = np.random.default_rng(seed), drawn(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stays as it is, and sparsities that were missed
        model, _ = bp.prune(bp.bayesianize(plain, rho_init=-6.0), sparsity=0.4, granularity="unit", scope="layer")
    x = examples_for(model, rng, 5)
    expected = [np.asarray(one) for one in tf.nest.flatten(bp.strip(model)(x if len(x) > 1 else x[0]))]
    tasks: Any = {name: "regression" for name in output_names(model)}
    made, refused = [], dict[str, str]()
    for form in FORMS:
        try:
            bp.export(model, tmp_path / form, format=form, task=tasks if len(tasks) > 1 else "regression")  # type: ignore[arg-type]
            made.append(tmp_path / form)
        except ExportError as error:  # what a runtime lacks is said in one line
            refused[form] = str(error)
    assert "savedmodel" not in refused
    assert not any("\n" in message for message in refused.values())
    keras.backend.clear_session()
    given = dict(zip(input_names(model), x, strict=True)) if len(x) > 1 else x[0]
    for found in bp.reload(made, given, trust=True):
        for name, one in zip(tasks, expected, strict=True):
            answer = found.outputs["mean" if len(tasks) == 1 else f"{name}_mean"]
            np.testing.assert_allclose(answer.reshape(one.shape), one, rtol=1e-3, atol=2e-5 * max(1, np.abs(one).max()))
