"""Between kinds of layers: raw tfp.layers into this package's, and Bayesian models into ordinary ones.

`strip` gives the posterior mean as an ordinary Keras model. `adopt` takes a model made of tfp.layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tfp_bprune._keras import keras, tfp
from tfp_bprune.graphs.compact import compact as without_dead
from tfp_bprune.graphs.copying import copy_activation, copy_activation_state, is_keras, is_raw
from tfp_bprune.graphs.raw import adopted, copy_posterior, refuse_own_computation
from tfp_bprune.graphs.rebuild import calls_of, check_graph, rebuild
from tfp_bprune.layers import LAYERS, Composed, Variational, kind_of, weights_of
from tfp_bprune.types import BpruneError, Json


def strip(model: Any, *, compact: bool = False) -> Any:
    """The posterior mean as an ordinary Keras model: pruned weights are 0, all others are bit-identical to the means.

    Args:
      model: Bayesian or plain, pruned or not.
      compact: remove the units that pruning left dead, as exports do: a smaller model, whose outputs are equal to within float32
        rounding.

    Returns:
      A model of tf_keras, not compiled, without TensorFlow Probability. `model` itself is not changed.

    Raises:
      BpruneError: the model is subclassed or not built, gives distributions instead of numbers (`DistributionLambda`), or has a
        layer whose mean is unknown.
    """
    model = adopt(model)
    refuse_distributions(model)
    ordinary = rebuild(model, _plain_layer, _copy_mean)
    return without_dead(ordinary) if compact else ordinary


def adopt(model: Any) -> Any:
    """Replaces every layer of tfp.layers by the one of this package; returns the model itself if there is none.

    Posteriors are kept, and so are priors that are normals of one scale; other priors become the default. The posterior of a
    `DenseVariational` is over kernel and bias together: it has to be a product of normals, and a trainable prior is fixed at
    its present value.

    Args:
      model: functional or sequential.

    Raises:
      BpruneError: the model is subclassed or not built, or a layer's posterior is not a product of normals.
    """
    check_graph(model)
    if not any(is_raw(layer) for layer in model._flatten_layers(include_self=False)):
        return model
    return rebuild(model, _adopted_layer, _copy_raw_posterior)


def weighted_layers(model: Any) -> Iterator[Any]:
    """The layers of `model` that are of some kind, nested models followed, each once; raw ones of tfp.layers aside."""
    hidden = _parts_of_plain(model)
    for layer in model._flatten_layers(include_self=False):
        kind = kind_of(layer)
        if kind is not None and kind.kernels and id(layer) not in hidden and not is_raw(layer):
            yield layer


def _parts_of_plain(model: Any) -> set[int]:
    """Parts of plain layers, by id, which have names that are not theirs alone, and are not looked into."""
    layers = [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, Composed)]
    parts = {id(layer): kind.parts for layer in layers if (kind := kind_of(layer)) is not None}
    return {id(getattr(layer, part, None)) for layer in layers for part in parts.get(id(layer), ())}


def refuse_equal_names(model: Any) -> None:
    """Refuses weighted layers of one name, which Keras allows in models nested side by side.

    Noise, masks and reports go by the layer's name.

    Raises:
      BpruneError: naming them.
    """
    hidden = _parts_of_plain(model)
    flat = [layer for layer in model._flatten_layers(include_self=False) if id(layer) not in hidden]
    layers = {id(layer): layer for layer in flat if kind_of(layer)}
    counts = Counter(layer.name for layer in layers.values())
    repeated = [repr(name) for name, count in counts.items() if count > 1]
    if repeated:
        raise BpruneError(
            f"model {model.name!r} has several layers named {', '.join(repeated)}: expected a name of its own for each"
        )


def shared_config(layer: Any) -> Json:
    """The arguments that a layer, plain, raw or ours, has in common with its other kinds.

    Taken from the layer and not from its config: that has names in the place of functions, and a raw layer's marshals them.
    """
    kind = kind_of(layer)
    assert kind is not None
    found = {key: _again(value) for key, value in kind.shared(layer).items()}
    common = {"name": layer.name, "dtype": layer.dtype_policy, "trainable": layer.trainable}
    activation = {"activation": copy_activation(layer)} if hasattr(layer, "activation") else {}
    bias = {"use_bias": layer.use_bias} if hasattr(layer, "use_bias") else {}
    return common | activation | bias | found


def _again(value: Any) -> Any:
    """An argument for a second layer: of Keras's initializers a new one, since they complain if they are used twice."""
    keras_initializer = isinstance(value, keras.initializers.Initializer) and is_keras(value)
    return type(value).from_config(value.get_config()) if keras_initializer else value


def _plain_layer(layer: Any) -> Any:
    if not isinstance(layer, Variational | Composed):
        return None
    refuse_own_computation(layer, next(owner for owner in type(layer).__mro__ if owner in LAYERS.values()))
    return layer.kind.plain(**shared_config(layer))


def _copy_mean(old: Any, new: Any) -> None:
    for part in old.kind.parts:
        _copy_mean(getattr(old, part), getattr(new, part))
    for name, weights in weights_of(old).items():
        getattr(new, name).assign(weights.loc)
    copy_activation_state(old, new)


def _adopted_layer(layer: Any) -> Any:
    return adopted(layer, shared_config(layer)) if is_raw(layer) else None


def _copy_raw_posterior(old: Any, new: Any) -> None:
    copy_posterior(old, new)
    copy_activation_state(old, new)


def refuse_distributions(model: Any) -> None:
    """Refuses layers that give distributions in the place of tensors.

    Raises:
      BpruneError: naming the first of them.
    """
    for layer in calls_of(model):
        if isinstance(layer, tfp.layers.DistributionLambda):
            raise BpruneError(
                f"layer {layer.name!r} ({type(layer).__name__}) gives a distribution, which an ordinary model cannot: "
                "expected outputs that are numbers; end the model at the layer before it, which gives the distribution's "
                "parameters: keras.Model(model.input, model.layers[-2].output)"
            )
