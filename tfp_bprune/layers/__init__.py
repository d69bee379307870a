"""Layers whose weights are distributions, their priors, and the likelihood of regression."""

from tfp_bprune.layers.ard import ARDPrior
from tfp_bprune.layers.attention import Composed, MultiHeadAttentionFlipout, MultiHeadAttentionReparameterization
from tfp_bprune.layers.axes import Axes, Sides
from tfp_bprune.layers.convolution import (
    Conv1DFlipout,
    Conv1DReparameterization,
    Conv2DFlipout,
    Conv2DReparameterization,
    Conv3DFlipout,
    Conv3DReparameterization,
)
from tfp_bprune.layers.dense import DenseFlipout, DenseLocalReparameterization, DenseReparameterization
from tfp_bprune.layers.depthwise import (
    DepthwiseConv1DFlipout,
    DepthwiseConv1DReparameterization,
    DepthwiseConv2DFlipout,
    DepthwiseConv2DReparameterization,
)
from tfp_bprune.layers.distribution import POSTERIORS, Posterior, register_posterior
from tfp_bprune.layers.dropout import StatelessDropout
from tfp_bprune.layers.einsum import EinsumDenseFlipout, EinsumDenseReparameterization
from tfp_bprune.layers.embedding import EmbeddingFlipout, EmbeddingReparameterization
from tfp_bprune.layers.estimators import Flipout, Local, Reparameterization
from tfp_bprune.layers.kind import LAYERS, Kind, bayesian, kind_of, kinds, usual_estimator
from tfp_bprune.layers.likelihood import GaussianOutput
from tfp_bprune.layers.posterior import MaskedNormal
from tfp_bprune.layers.prior import (
    PRIORS,
    CentredPrior,
    NormalPrior,
    Prior,
    ScaleMixturePrior,
    prior_from,
    register_prior,
)
from tfp_bprune.layers.scaled import Scaled
from tfp_bprune.layers.scales import HorseshoePrior, NormalJeffreysPrior, ScalePrior
from tfp_bprune.layers.separable import (
    SeparableConv1DFlipout,
    SeparableConv1DReparameterization,
    SeparableConv2DFlipout,
    SeparableConv2DReparameterization,
)
from tfp_bprune.layers.transposed import (
    Conv1DTransposeFlipout,
    Conv1DTransposeReparameterization,
    Conv2DTransposeFlipout,
    Conv2DTransposeReparameterization,
    Conv3DTransposeFlipout,
    Conv3DTransposeReparameterization,
)
from tfp_bprune.layers.variational import OnKeras, OnTfp, Variational, set_train_size, variational_layers
from tfp_bprune.layers.weights import Weights, kernels_of, weights_of

__all__ = [
    "LAYERS",
    "POSTERIORS",
    "PRIORS",
    "ARDPrior",
    "Axes",
    "CentredPrior",
    "Composed",
    "Conv1DFlipout",
    "Conv1DReparameterization",
    "Conv1DTransposeFlipout",
    "Conv1DTransposeReparameterization",
    "Conv2DFlipout",
    "Conv2DReparameterization",
    "Conv2DTransposeFlipout",
    "Conv2DTransposeReparameterization",
    "Conv3DFlipout",
    "Conv3DReparameterization",
    "Conv3DTransposeFlipout",
    "Conv3DTransposeReparameterization",
    "DenseFlipout",
    "DenseLocalReparameterization",
    "DenseReparameterization",
    "DepthwiseConv1DFlipout",
    "DepthwiseConv1DReparameterization",
    "DepthwiseConv2DFlipout",
    "DepthwiseConv2DReparameterization",
    "EinsumDenseFlipout",
    "EinsumDenseReparameterization",
    "EmbeddingFlipout",
    "EmbeddingReparameterization",
    "Flipout",
    "GaussianOutput",
    "HorseshoePrior",
    "Kind",
    "Local",
    "MaskedNormal",
    "MultiHeadAttentionFlipout",
    "MultiHeadAttentionReparameterization",
    "NormalJeffreysPrior",
    "NormalPrior",
    "OnKeras",
    "OnTfp",
    "Posterior",
    "Prior",
    "Reparameterization",
    "ScaleMixturePrior",
    "ScalePrior",
    "Scaled",
    "SeparableConv1DFlipout",
    "SeparableConv1DReparameterization",
    "SeparableConv2DFlipout",
    "SeparableConv2DReparameterization",
    "Sides",
    "StatelessDropout",
    "Variational",
    "Weights",
    "bayesian",
    "kernels_of",
    "kind_of",
    "kinds",
    "prior_from",
    "register_posterior",
    "register_prior",
    "set_train_size",
    "usual_estimator",
    "variational_layers",
    "weights_of",
]
