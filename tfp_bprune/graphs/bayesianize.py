"""`bayesianize`: an ordinary Keras model, trained or not, with distributions over its weights."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args

import numpy as np

from tfp_bprune._keras import keras
from tfp_bprune.graphs.convert import adopt, refuse_equal_names, shared_config
from tfp_bprune.graphs.copying import copy_activation_state, within
from tfp_bprune.graphs.rebuild import calls_of, rebuild
from tfp_bprune.layers import (
    LAYERS,
    Composed,
    NormalPrior,
    Prior,
    Variational,
    kind_of,
    kinds,
    usual_estimator,
    weights_of,
)
from tfp_bprune.layers.posterior import DEFAULT_RHO
from tfp_bprune.types import BpruneError, Estimator, Json, check_number, names_of

_SMALLEST_SCALE = 1e-8  # where |w| is 0, sigma = delta |w| would be too, and rho infinite
_NEVER_BAYESIAN = (keras.layers.BatchNormalization, keras.layers.LayerNormalization, keras.layers.GroupNormalization)


def bayesianize(
    model: Any,
    *,
    layers: Estimator | None = None,
    prior: Prior | Json | str | None = None,
    rho_init: float | None = None,
    moped: float | None = None,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    bayesian_bias: bool = False,
    train_size: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Any:
    """Copies `model` with Bayesian layers in place of its dense, convolutional, attention and embedding layers.

    All other layers, and all weights, are kept: the posterior means are the weights of the model. Layers of tfp.layers keep
    their posteriors (`adopt`). Constraints and regularizers apply to the means. A layer that the model calls several times
    draws its weights, and counts its KL, once per pass.

    Args:
      model: a model of tf_keras or Keras 3, or the path of a `.keras` file; functional or sequential, nested or not, trained or
        not.
      layers: estimator of the gradient: "flipout", "reparameterization" or "local"; see `build`. By default "reparameterization"
        if convolutions become Bayesian, otherwise "flipout".
      prior: prior of every weight, an object or a name; by default the scale mixture, with `moped` N(w, 1).
      rho_init: initial rho; sigma = softplus(rho). -5 by default, which gives 0.0067.
      moped: start with sigma = moped * |w|, and centre the prior at the trained w (Krishnan et al. 2020, "Specifying weight priors
        in Bayesian deep neural networks with empirical Bayes", eq. 5).
      include, exclude: patterns of layer names, one ("conv*") or several; excluded layers stay as they are. A layer inside a
        TimeDistributed can be named by itself or by the TimeDistributed.
      bayesian_bias: whether biases get a distribution too.
      train_size: N, the number of training examples by which the KL is divided; `bp.fit` sets it.
      seed: determines all noise, together with the layers' names.
      strict: raise an error if a layer with weights cannot become Bayesian; otherwise a warning names it.

    Returns:
      A model of tf_keras, not compiled. `model` itself is not changed.

    Raises:
      BpruneError: there is nothing to convert; two layers have one name; both `rho_init` and `moped` are given; `moped` is combined
        with a prior that cannot be centred at a weight, as those over groups; or, if `strict`, a layer is not supported.

    Example:
      bayesian = bp.bayesianize(keras_model, layers="flipout")
    """
    if rho_init is not None and moped is not None:
        raise BpruneError(f"give either rho_init or moped, got {rho_init} and {moped}: moped decides sigma by itself")
    for name, value in (("rho_init", rho_init), ("moped", moped)):
        if value is not None:
            check_number(name, value)
    if moped is not None and not 0 < moped < float("inf"):
        raise BpruneError(f"moped must be a positive factor on |w|, got {moped}")
    model = adopt(model)
    refuse_equal_names(model)
    chosen = _choose(model, names_of(include, "include"), names_of(exclude, "exclude"), strict)
    asked = usual_estimator(filter(None, map(kind_of, chosen.values()))) if layers is None else layers
    if asked not in get_args(Estimator):
        raise BpruneError(f"unknown estimator {asked!r}: expected 'flipout', 'reparameterization' or 'local'")
    calls = Counter(map(id, calls_of(model)))
    options: Json = {"rho_init": DEFAULT_RHO if rho_init is None else rho_init, "own_prior_loc": moped is not None}
    options |= {"prior": NormalPrior() if prior is None and moped is not None else prior}
    options |= {"bayesian_bias": bayesian_bias, "train_size": train_size, "seed": seed}

    def replace(layer: Any) -> Any:
        if id(layer) not in chosen:
            return None
        kind = kind_of(layer)
        assert kind is not None
        bias = {"bayesian_bias": bayesian_bias and kind.has_bias(layer)}
        # Local noise on the outputs of one call would not be that of another.
        estimator = "flipout" if asked == "local" and calls[id(layer)] > 1 else asked
        return LAYERS[kind.name, estimator](**shared_config(layer), **(options | bias))

    return rebuild(model, replace, lambda old, new: _copy_weights(old, new, moped))


def _choose(model: Any, include: Sequence[str], exclude: Sequence[str], strict: bool) -> dict[int, Any]:
    """The layers to convert, by id.

    Raises:
      BpruneError: as `bayesianize` says.
    """
    chosen, left = {}, []
    outer = {
        id(within(layer)): layer.name
        for layer in model._flatten_layers(include_self=False)
        if within(layer) is not layer
    }
    for layer in {id(layer): layer for layer in calls_of(model)}.values():
        if not _matches((layer.name, outer.get(id(layer), layer.name)), include, exclude):
            continue
        if _convertible(layer):
            chosen[id(layer)] = layer
        elif layer.trainable_weights and not isinstance(layer, (*_NEVER_BAYESIAN, Variational, Composed)):
            left.append(f"{layer.name} ({type(layer).__name__})")
    if not chosen:
        present = [layer.name for layer in calls_of(model) if isinstance(layer, Variational | Composed)]
        if present:
            raise BpruneError(
                f"model {model.name!r} is Bayesian already, by {', '.join(dict.fromkeys(present))}: train, prune or export it as it "
                "is; bayesianize is for ordinary Keras models"
            )
        names = ", ".join(kind.name for kind in kinds())
        raise BpruneError(
            f"model {model.name!r} has no layer to make Bayesian: expected one of {names} among {list(include)}"
        )
    if left and strict:
        raise BpruneError(
            f"layers that cannot be Bayesian: {', '.join(left)}; exclude them, or pass strict=False to leave them as they are"
        )
    if left:
        warnings.warn(f"left as they are, for they cannot be Bayesian: {', '.join(left)}", stacklevel=3)
    return chosen


def _matches(names: tuple[str, str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    def hit(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)

    return hit(include) and not hit(exclude)


def _convertible(layer: Any) -> bool:
    kind = kind_of(layer)
    return kind is not None and not isinstance(layer, Variational | Composed) and not kind.refusal(layer)


def _copy_weights(old: Any, new: Any, moped: float | None) -> None:
    copy_activation_state(old, new)
    for part in new.kind.parts:
        _copy_weights(getattr(old, part), getattr(new, part), moped)
    for name, weights in weights_of(old).items():
        posterior = new.posteriors.get(name)
        if posterior is None:
            getattr(new, name).assign(weights.loc)
            continue
        scale = None if moped is None else np.maximum(moped * np.abs(weights.loc), _SMALLEST_SCALE)
        posterior.assign(weights.loc, scale)
        if moped is not None:
            posterior.prior.around(weights.loc, posterior.prior_variables)
