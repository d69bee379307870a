"""Layers whose weights are distributions, their priors, and the likelihood of regression."""

from tfp_bprune.layers.dropout import StatelessDropout
from tfp_bprune.layers.likelihood import GaussianOutput
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.layers.prior import NormalPrior, Prior, ScaleMixturePrior, prior_from
from tfp_bprune.layers.variational import (
    LAYERS,
    Conv1DFlipout,
    Conv1DReparameterization,
    Conv2DFlipout,
    Conv2DReparameterization,
    Conv3DFlipout,
    Conv3DReparameterization,
    DenseFlipout,
    DenseLocalReparameterization,
    DenseReparameterization,
    Variational,
    set_train_size,
    variational_layers,
)

__all__ = [
    "LAYERS",
    "Conv1DFlipout",
    "Conv1DReparameterization",
    "Conv2DFlipout",
    "Conv2DReparameterization",
    "Conv3DFlipout",
    "Conv3DReparameterization",
    "DenseFlipout",
    "DenseLocalReparameterization",
    "DenseReparameterization",
    "GaussianOutput",
    "MaskedNormal",
    "NormalPrior",
    "Prior",
    "ScaleMixturePrior",
    "StatelessDropout",
    "Variational",
    "prior_from",
    "set_train_size",
    "variational_layers",
]
