"""Bayesian Keras networks on TensorFlow Probability: train them, prune them, serve what is left."""

from typing import TYPE_CHECKING

from tfp_bprune import _keras as _keras  # settles Keras 2 before TensorFlow loads
from tfp_bprune._lazy import attach as _attach

if TYPE_CHECKING:
    from tfp_bprune.data import from_arrays as from_arrays
    from tfp_bprune.data import load as load
    from tfp_bprune.evaluate.fresh import reload as reload
    from tfp_bprune.evaluate.sweep import sweep as sweep
    from tfp_bprune.export import export as export
    from tfp_bprune.info import Info as Info
    from tfp_bprune.info import info_of as info_of
    from tfp_bprune.layers import NormalPrior as NormalPrior
    from tfp_bprune.layers import ScaleMixturePrior as ScaleMixturePrior
    from tfp_bprune.models import load_model as load_model
    from tfp_bprune.models import save_model as save_model
    from tfp_bprune.models import strip as strip
    from tfp_bprune.models.bayesianize import bayesianize as bayesianize
    from tfp_bprune.models.build import build as build
    from tfp_bprune.models.recalibrate import recalibrate as recalibrate
    from tfp_bprune.prune.prune import prune as prune
    from tfp_bprune.search import Budget as Budget
    from tfp_bprune.search import hyper_model as hyper_model
    from tfp_bprune.search import search as search
    from tfp_bprune.search import tune as tune
    from tfp_bprune.train import Horovod as Horovod
    from tfp_bprune.train import Settings as Settings
    from tfp_bprune.train import compile_model as compile_model
    from tfp_bprune.train import distributed_callbacks as distributed_callbacks
    from tfp_bprune.train.distribute import distribute as distribute
    from tfp_bprune.train.fit import fit as fit
    from tfp_bprune.types import BpruneError as BpruneError

__all__ = _attach(
    __name__,
    {
        "data": ("from_arrays", "load"),
        "info": ("Info", "info_of"),
        "layers": ("NormalPrior", "ScaleMixturePrior"),
        "models": ("adopt", "bayesianize", "build", "load_model", "recalibrate", "save_model", "strip"),
        "train": ("Horovod", "Settings", "compile_model", "distribute", "distributed_callbacks", "fit"),
        "prune": ("GradualPruning", "prune"),
        "export": ("export",),
        "evaluate": ("reload", "sweep"),
        "search": ("Budget", "hyper_model", "search", "tune"),
        "types": ("BpruneError",),
    },
)
