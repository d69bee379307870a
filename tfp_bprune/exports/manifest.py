"""What an export says of itself, beside its files: `manifest.json`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_bprune.graphs.convert import weighted_layers
from tfp_bprune.layers import kernels_of, variational_layers
from tfp_bprune.layers.names import is_state
from tfp_bprune.types import Json, Predictive

_DROPOUT: dict[Predictive, str] = {"mean": "off", "moments": "carried", "sampled": "drawn"}


def describe(model: Any) -> Json:
    """Counts of a model's weights, pruned ones told apart.

    Returns:
      `parameters`, trainable and not, of the network at its mean; `prunable`: kernel weights; `nonzeros`: those left;
      `sparsity`: pruned / prunable; `layers`: the same by layer.
    """
    layers = {}
    for layer in weighted_layers(model):
        masks = [weights.mask for weights in kernels_of(layer).values()]
        size, left = sum(mask.size for mask in masks), sum(int(np.count_nonzero(mask)) for mask in masks)
        layers[layer.name] = {"prunable": size, "nonzeros": left, "sparsity": 1 - left / size}
    prunable = sum(entry["prunable"] for entry in layers.values())
    nonzeros = sum(entry["nonzeros"] for entry in layers.values())
    return {
        "parameters": parameters_of(model),
        "prunable": prunable,
        "nonzeros": nonzeros,
        "sparsity": 1 - nonzeros / prunable if prunable else 0.0,
        "layers": layers,
    }


def signature_of(predictor: Any) -> Json:
    """What a `Predictor` takes and gives.

    Returns:
      `task` of the data, by output where they differ; `outputs`: what each output of the network means; `inputs`: shape,
      without the batch, and type of each, None for sizes that are not fixed; `input_shape`, where there is one input;
      `dropout`: the layers of which Monte-Carlo dropout was asked, and whether it is "drawn", "carried", as in
      "moments", or "off", as in "mean";
      `trained_in`, where the network computed in another type than float32, as the export does.
    """
    tasks = {name: "regression" if h.task == "gaussian" else h.task for name, h in predictor.heads.items()}
    same = len(set(tasks.values())) == 1
    inputs = {
        name: {"shape": spec.shape.as_list()[1:], "dtype": spec.dtype.name} for name, spec in predictor.inputs.items()
    }
    about: Json = {"task": next(iter(tasks.values())) if same else tasks, "inputs": inputs}
    about["outputs"] = {name: head.to_json() for name, head in predictor.heads.items()}
    if predictor.dropout:
        about["dropout"] = dict.fromkeys(predictor.dropout, _DROPOUT[predictor.predictive])
    if predictor.policy is not None:
        about["trained_in"] = predictor.policy
    if len(inputs) == 1:
        about["input_shape"] = next(iter(inputs.values()))["shape"]
    return about


def parameters_of(model: Any) -> int:
    """Parameters of the network at its mean: one for each weight, Bayesian or not; no scales, masks or counters."""
    posteriors = [q for layer in variational_layers(model) for q in layer.posteriors.values()]
    owned = {id(variable) for q in posteriors for variable in q.variables.values()}
    others = sum(int(np.prod(w.shape)) for w in model.weights if id(w) not in owned and not is_state(w.name))
    return others + sum(int(np.prod(q.shape)) for q in posteriors)
