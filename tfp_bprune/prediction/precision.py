"""Networks in float32, in which exports compute, whatever they were trained in."""

from __future__ import annotations

from typing import Any

from tfp_bprune._keras import tf
from tfp_bprune.graphs.copying import config_of, made_from
from tfp_bprune.graphs.rebuild import rebuild

_POLICIES = ("float64", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")


def policy_of(model: Any) -> str | None:
    """The first policy of a layer that is not float32, or None: "float64", "mixed_float16", ..."""
    for layer in model._flatten_layers(include_self=False):
        policy = layer.dtype_policy
        name = policy if isinstance(policy, str) else policy.name
        if layer.weights and name in _POLICIES:
            return name
    return None


def in_float32(model: Any) -> Any:
    """The model with every layer in float32; the model itself if they are."""
    if policy_of(model) is None:
        return model

    def replaced(layer: Any) -> Any:
        config = config_of(layer)
        changed = _changed(config)
        return made_from(layer, changed) if changed != config else None

    return rebuild(model, replaced, lambda old, new: new.set_weights([_narrow(w) for w in old.get_weights()]))


def _changed(config: Any) -> Any:
    """A layer's config, and those of the layers in it, with every type of numbers float32."""
    if isinstance(config, dict):
        return {
            key: "float32" if key == "dtype" and _is_float(value) else _changed(value) for key, value in config.items()
        }
    return [_changed(item) for item in config] if isinstance(config, list) else config


def _is_float(dtype: Any) -> bool:
    name = dtype.get("config", {}).get("name") if isinstance(dtype, dict) else dtype
    return name in _POLICIES


def _narrow(weight: Any) -> Any:
    return weight.astype("float32") if tf.as_dtype(weight.dtype).is_floating else weight
