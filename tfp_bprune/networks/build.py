"""Networks by name, fitted to the data they will see."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

from tfp_bprune._keras import keras
from tfp_bprune.data.splits import Info
from tfp_bprune.graphs.heads import heads_for, note_heads
from tfp_bprune.layers import GaussianOutput, usual_estimator
from tfp_bprune.networks.factory import KindsOf, LayerFactory
from tfp_bprune.networks.lenet import convnet, lenet5, lenet300
from tfp_bprune.networks.mlp import mlp
from tfp_bprune.networks.resnet import resnet18
from tfp_bprune.networks.vgg import vgg16
from tfp_bprune.types import BpruneError, Estimator, Layers, Policy, suggestion

NETWORKS: dict[str, Callable[..., Any]] = {
    "mlp": mlp,
    "lenet300": lenet300,
    "lenet5": lenet5,
    "convnet": convnet,
    "vgg16": vgg16,
    "resnet18": resnet18,
}


def build(
    name: str,
    info: Info,
    *,
    layers: Layers | None = None,
    policy: Policy | None = None,
    noise: float | None = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """Builds a network by name, with Bayesian or plain layers, for a dataset.

    Args:
      name: "mlp", "lenet300", "lenet5", "convnet", "vgg16" or "resnet18".
      info: what the network needs to know of the data: `load(...).info`.
      layers: estimator of the gradient, that is, how weights are drawn in training: "flipout" (pseudo-independently for each
        example), "reparameterization" (once for a batch) or "local" (local reparameterization in dense layers, Flipout in
        convolutions); or plain weights: "deterministic" or "dropout". By default "reparameterization" for a network with
        convolutions and "flipout" for others.
      policy: numbers that the layers compute in during training: "float32"; or "mixed_bfloat16" or "mixed_float16", 16 bits with
        weights, standard deviations, KL and likelihood in float32. By default Keras's global policy, which is not changed.
      noise: fixed standard deviation of the noise of a regression, in target units; by default it is learned.
      options: arguments of the architecture, such as `{"hidden": (500, 500)}`.
      **more: arguments of the layers: `prior`, `rho_init`, `bayesian_bias`, `train_size`, `dropout_rate`, `seed`; see
        `networks.factory.LayerFactory`.

    Returns:
      A functional Keras model, not compiled. It takes examples [batch, ...] in their raw units and gives logits
      [batch, classes]; for a binary task [batch, 1]; for a regression means followed by noise standard deviations
      [batch, 2 * targets].

    Raises:
      BpruneError: the name, the layers, the policy or an option is unknown, or the data have several inputs or outputs.

    Example:
      model = bp.build("mlp", data.info, layers="flipout", options={"hidden": (64, 64)})
    """
    layers = usual_layers(name, info, options) if layers is None else layers
    with _computing_in(policy):
        inputs, outputs = _graph(name, info, partial(LayerFactory, layers=layers, **more), options)
        if info.task == "regression":
            outputs = GaussianOutput(info.target_loc, info.target_scale, noise, name="likelihood")(outputs)
        model = keras.Model(inputs, outputs, name=name)
    return note_heads(model, heads_for(model, info))


def usual_layers(name: str, info: Info, options: dict[str, Any] | None = None) -> Estimator:
    """How `build` infers the weights of a network where nothing is said: as suits its layers (`Kind.prefers`).

    Args:
      name, info, options: as in `build`.

    Raises:
      BpruneError: as in `build`.
    """
    kinds = KindsOf()
    _graph(name, info, lambda: kinds, options)
    return usual_estimator(kinds.found)


def usual_policy() -> str:
    """What `build` has networks compute in where nothing is said: Keras's global policy, "float32" unless it was set."""
    return str(keras.mixed_precision.global_policy().name)


def check_policy(policy: str | None) -> None:
    """Refuses what is no policy that `build` knows.

    Raises:
      BpruneError: naming those that it knows.
    """
    known = get_args(Policy)
    if policy is not None and policy not in known:
        raise BpruneError(f"unknown policy {policy!r}{suggestion(policy, known)}: expected one of {', '.join(known)}")


def _computing_in(policy: str | None) -> contextlib.AbstractContextManager[None]:
    """Where layers are made that compute as `policy` says."""
    check_policy(policy)
    return contextlib.nullcontext() if policy is None else keras.src.mixed_precision.policy.policy_scope(policy)


def _graph(name: str, info: Info, make: Callable[[], LayerFactory], options: dict[str, Any] | None) -> tuple[Any, Any]:
    """Inputs of a network, and outputs that are logits or standardized predictions.

    Raises:
      BpruneError: as in `build`.
    """
    if name not in NETWORKS:
        raise BpruneError(
            f"unknown network {name!r}{suggestion(name, NETWORKS)}: expected one of {', '.join(NETWORKS)}"
        )
    if info.inputs is not None or info.outputs is not None or info.positions:
        raise BpruneError(
            f"network {name!r} has one input and one output per example: {info.name} has others; make a Keras model of your own "
            "and call bayesianize"
        )
    inputs = keras.Input(info.input_shape, name="inputs")
    # What comes in raw units, and may lie far from 0, is narrowed to 16 bits once it is about 0 and of unit size.
    wide = keras.mixed_precision.global_policy().variable_dtype
    x = keras.layers.Rescaling(info.scale, info.offset, dtype=wide, name="rescaling")(inputs)
    try:
        width = 1 if info.task == "binary" else info.classes
        return inputs, NETWORKS[name](x, width, make(), **(options or {}))
    except BpruneError:
        raise
    except TypeError as error:
        raise BpruneError(f"network {name!r} cannot be built with {options or {}}: {error}") from error
    except ValueError as error:  # examples that are no images, or too small ones
        raise BpruneError(
            f"network {name!r} cannot be built for examples of shape {list(info.input_shape)}: {_cause(error)}; take other "
            "examples or another network"
        ) from error


def _cause(error: ValueError) -> str:
    """What Keras says of a layer that cannot be called, without the layer's call and TensorFlow's node."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Exception encountered")]
    return (said or lines or [type(error).__name__])[0].partition(" for '{{node")[0].rstrip(".")
