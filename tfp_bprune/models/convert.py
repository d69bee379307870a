"""Between kinds of layers: raw tfp.layers into this package's, and Bayesian models into ordinary ones.

`strip` gives the posterior mean as an ordinary Keras model. `adopt` takes a model made of tfp.layers.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tfp_bprune._keras import keras, tfp
from tfp_bprune.layers import LAYERS, NormalPrior, Variational
from tfp_bprune.layers.posterior import rho_of
from tfp_bprune.models.copying import copy_activation, copy_activation_state, is_keras, is_raw
from tfp_bprune.models.rebuild import check_graph, rebuild
from tfp_bprune.types import BpruneError, Json

_SHARED = (
    "units",
    "filters",
    "kernel_size",
    "strides",
    "padding",
    "data_format",
    "dilation_rate",
    "activity_regularizer",
    "kernel_initializer",
    "kernel_regularizer",
    "kernel_constraint",
    "bias_initializer",
    "bias_regularizer",
    "bias_constraint",
)
_RAW = {
    (kind, estimator): getattr(tfp.layers, name)
    for kind, stem in (
        ("Dense", "Dense"),
        ("Conv1D", "Convolution1D"),
        ("Conv2D", "Convolution2D"),
        ("Conv3D", "Convolution3D"),
    )
    for estimator, name in (("flipout", stem + "Flipout"), ("reparameterization", stem + "Reparameterization"))
} | {("Dense", "local"): tfp.layers.DenseLocalReparameterization}


def strip(model: Any) -> Any:
    """The posterior mean as an ordinary Keras model: pruned weights 0, all others equal to the last bit.

    Raises:
      BpruneError: the model is subclassed or not built.
    """
    return rebuild(adopt(model), _plain_layer, _copy_mean)


def adopt(model: Any) -> Any:
    """The model with every raw tfp.layers layer replaced by this package's; the model itself if there is none.

    Raises:
      BpruneError: the model is subclassed or not built, or a layer's posterior is not a product of normals.
    """
    check_graph(model)
    if not any(is_raw(layer) for layer in model._flatten_layers(include_self=False)):
        return model
    return rebuild(model, _adopted_layer, _copy_raw_posterior)


def kind_of(layer: Any) -> str | None:
    """ "Dense", "Conv1D", "Conv2D" or "Conv3D" for the layers that can be Bayesian, plain or not; else None."""
    if isinstance(layer, Variational) or is_raw(layer):
        return "Dense" if hasattr(layer, "units") else f"Conv{layer.rank}D"
    exact = {
        keras.layers.Dense: "Dense",
        keras.layers.Conv1D: "Conv1D",
        keras.layers.Conv2D: "Conv2D",
        keras.layers.Conv3D: "Conv3D",
    }
    return exact.get(type(layer))


def refuse_equal_names(model: Any) -> None:
    """Refuses weighted layers of one name, which Keras allows in models nested side by side.

    Noise, masks and reports go by the layer's name.

    Raises:
      BpruneError: naming them.
    """
    layers = {id(layer): layer for layer in model._flatten_layers(include_self=False) if kind_of(layer)}
    counts = Counter(layer.name for layer in layers.values())
    repeated = [repr(name) for name, count in counts.items() if count > 1]
    if repeated:
        raise BpruneError(
            f"model {model.name!r} has several layers named {', '.join(repeated)}: expected a name of its own for each"
        )


def activation_name(layer: Any) -> str:
    """Name of a layer's activation as Keras has it; "linear" where there is none."""
    function = getattr(layer, "activation", None)
    return "linear" if function is None else getattr(function, "__name__", "unknown").removesuffix("_v2")


def shared_config(layer: Any) -> Json:
    """The arguments that a layer, plain, raw or ours, has in common with its other kinds.

    Taken from the layer and not from its config: that has names in the place of functions, and a raw layer's marshals them.
    """
    found = {key: _again(getattr(layer, key)) for key in _SHARED if getattr(layer, key, None) is not None}
    common = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
    return common | {"activation": copy_activation(layer)} | found


def _again(value: Any) -> Any:
    """An argument for a second layer: of Keras's initializers a new one, since they complain if they are used twice."""
    keras_initializer = isinstance(value, keras.initializers.Initializer) and is_keras(value)
    return type(value).from_config(value.get_config()) if keras_initializer else value


def _plain_layer(layer: Any) -> Any:
    if not isinstance(layer, Variational):
        return None
    return getattr(keras.layers, kind_of(layer) or "")(use_bias=layer.use_bias, **shared_config(layer))


def _copy_mean(old: Any, new: Any) -> None:
    new.kernel.assign(old.kernel_posterior.loc)
    if new.use_bias:
        new.bias.assign(old.bias if old.bias_posterior is None else old.bias_posterior.loc)
    copy_activation_state(old, new)


def _adopted_layer(layer: Any) -> Any:
    if not is_raw(layer):
        return None
    kind, estimator = next(key for key, raw in _RAW.items() if isinstance(layer, raw))
    return LAYERS[kind, estimator](
        prior=_raw_prior(layer),
        use_bias=layer.bias_posterior is not None,
        bayesian_bias=_has_scale(layer.bias_posterior),
        **shared_config(layer),
    )


def _raw_prior(layer: Any) -> NormalPrior | None:
    """The raw layer's prior where it is one normal for all weights, else the default."""
    prior = getattr(layer.kernel_prior, "distribution", None)
    if not isinstance(prior, tfp.distributions.Normal):
        return None
    loc, scale = np.unique(prior.loc), np.unique(prior.scale)
    return NormalPrior(float(scale[0]), float(loc[0])) if loc.size == scale.size == 1 else None


def _has_scale(posterior: Any) -> bool:
    return isinstance(getattr(posterior, "distribution", None), tfp.distributions.Normal)


def _copy_raw_posterior(old: Any, new: Any) -> None:
    _copy_normal(old, old.kernel_posterior, new.kernel_posterior)
    if new.bias_posterior is not None:
        _copy_normal(old, old.bias_posterior, new.bias_posterior)
    elif new.bias is not None:
        new.bias.assign(old.bias_posterior.mean())
    copy_activation_state(old, new)


def _copy_normal(layer: Any, raw: Any, ours: Any) -> None:
    if not _has_scale(raw):
        raise BpruneError(f"layer {layer.name!r} has the posterior {raw.name!r}: expected independent normals")
    ours.loc_variable.assign(raw.distribution.mean())
    ours.rho_variable.assign(rho_of(raw.distribution.stddev().numpy()))
