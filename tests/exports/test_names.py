"""Names of inputs and outputs that no signature takes as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tfp_bprune as bp
from tfp_bprune._keras import keras
from tfp_bprune.data.names import input_name

L = keras.layers
NAMES = ("Größe", "class", "_a", "输入", "left image", "", "1/2:0")
PACKAGES = {"savedmodel": "tensorflow", "litert": "ai_edge_litert", "onnx": "onnxruntime", "openvino": "openvino"}


@pytest.mark.parametrize("format", PACKAGES)
def test_any_key_of_a_dictionary_will_do(format: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[format])
    inputs = {name: keras.Input((2,)) for name in NAMES}
    outputs = {name: L.Dense(3, activation="softmax")(x) for name, x in inputs.items()}
    model = keras.Model(inputs, outputs)
    x = {name: np.full((4, 2), i, np.float32) for i, name in enumerate(NAMES, 1)}
    manifest = bp.export(model, tmp_path / "out", format=format)
    assert sorted(manifest["inputs"]) == [
        "1_2_0",
        "Gru00f6u00dfe",
        "a",
        "class_",
        "left_image",
        "u8f93u5165",
        "unnamed",
    ]
    expected, found = model(x), bp.predict(tmp_path / "out", x)
    for name in NAMES:
        np.testing.assert_allclose(found[name].outputs["probabilities"], expected[name], atol=1e-6)
    again = bp.predict(tmp_path / "out", {input_name(name): one for name, one in x.items()})
    for name, value in found.outputs.items():
        np.testing.assert_array_equal(again.outputs[name], value)
