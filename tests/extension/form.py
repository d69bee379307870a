"""An export format: the weights of a network of dense layers in one `.npz`, which runs on NumPy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import tfp_bprune as bp
from tfp_bprune.types import ExportError


def convert(predictor: Any, path: Path) -> None:
    """Writes kernels, biases and the rescaling of the inputs, layer by layer."""
    [head] = predictor.heads.values()
    if head.task != "classification" or not head.logits:
        raise ExportError(f"npz holds classifiers that end in logits: this one is a {head.task}")
    arrays: dict[str, Any] = {}
    for number, layer in enumerate(predictor.network.layers):
        arrays |= {f"{number:03d}/{name}": value for name, value in _stored(layer).items()}
    np.savez(path, **arrays)


def _stored(layer: Any) -> dict[str, Any]:
    kind, activation = type(layer).__name__, getattr(getattr(layer, "activation", None), "__name__", "linear")
    if kind == "Rescaling":
        return {"scale": np.float32(layer.scale), "offset": np.float32(layer.offset)}
    if kind == "Dense" and activation in ("linear", "relu"):
        return dict(zip(("kernel", "bias"), layer.get_weights(), strict=True)) | {"relu": activation == "relu"}
    if kind in ("InputLayer", "Flatten"):
        return {}
    raise ExportError(f"npz holds Rescaling, Flatten and Dense with or without relu: {layer.name!r} is a {kind}")


NPZ = bp.register_form(
    bp.Form("npz", "model.npz", "numpy", convert, Path(__file__).with_name("form_loader.py"), predictives=("mean",))
)
