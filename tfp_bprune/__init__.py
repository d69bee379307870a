"""Bayesian Keras networks on TensorFlow Probability: train them, prune them, serve what is left.

    import tfp_bprune as bp  # before tensorflow, so that tf.keras is Keras 2

    data = bp.load("digits")  # or bp.from_arrays((x, y), (x_test, y_test))
    model = bp.build("mlp", data.info)  # or bp.bayesianize(keras_model)
    bp.fit(model, data, settings=bp.Settings(epochs=60), out="runs/mine")
    pruned, report = bp.prune(model, sparsity=0.9)
    print(bp.evaluate(pruned, data, predictive="moments"))
    bp.export(pruned, "served/mine", predictive="moments")
    answer = bp.predict("served/mine", x)  # answer.labels, answer.confidence, answer.epistemic, answer.aleatoric

A request that cannot be met raises a `BpruneError`, whose message is one line. On the command line: `tfp-bprune --help`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfp_bprune import _keras as _keras  # settles Keras 2 before TensorFlow loads

if TYPE_CHECKING:
    from tfp_bprune.claims.budget import Budget as Budget
    from tfp_bprune.data.datasets import dataset as dataset
    from tfp_bprune.data.info import Info as Info
    from tfp_bprune.data.info import info_of as info_of
    from tfp_bprune.data.splits import from_arrays as from_arrays
    from tfp_bprune.data.splits import load as load
    from tfp_bprune.evaluation.evaluate import Evaluation as Evaluation
    from tfp_bprune.evaluation.evaluate import evaluate as evaluate
    from tfp_bprune.evaluation.fresh import reload as reload
    from tfp_bprune.evaluation.predict import predict as predict
    from tfp_bprune.evaluation.prediction import Prediction as Prediction
    from tfp_bprune.evaluation.sweep import sweep as sweep
    from tfp_bprune.exports import Form as Form
    from tfp_bprune.exports import export as export
    from tfp_bprune.exports import register_form as register_form
    from tfp_bprune.graphs.convert import adopt as adopt
    from tfp_bprune.graphs.convert import strip as strip
    from tfp_bprune.graphs.inline import inline as inline
    from tfp_bprune.layers.ard import ARDPrior as ARDPrior
    from tfp_bprune.layers.distribution import Posterior as Posterior
    from tfp_bprune.layers.distribution import register_posterior as register_posterior
    from tfp_bprune.layers.prior import CentredPrior as CentredPrior
    from tfp_bprune.layers.prior import NormalPrior as NormalPrior
    from tfp_bprune.layers.prior import Prior as Prior
    from tfp_bprune.layers.prior import ScaleMixturePrior as ScaleMixturePrior
    from tfp_bprune.layers.prior import register_prior as register_prior
    from tfp_bprune.layers.scales import HorseshoePrior as HorseshoePrior
    from tfp_bprune.layers.scales import NormalJeffreysPrior as NormalJeffreysPrior
    from tfp_bprune.networks.build import build as build
    from tfp_bprune.pruning.callback import GradualPruning as GradualPruning
    from tfp_bprune.pruning.prune import prune as prune
    from tfp_bprune.pruning.scores import criterion as criterion
    from tfp_bprune.pruning.shrink import Shrink as Shrink
    from tfp_bprune.searching.find import search as search
    from tfp_bprune.storage.keras3 import bayesianize as bayesianize
    from tfp_bprune.storage.saved import load_model as load_model
    from tfp_bprune.storage.saved import save_model as save_model
    from tfp_bprune.training.distribute import Horovod as Horovod
    from tfp_bprune.training.distribute import distribute as distribute
    from tfp_bprune.training.distribute import distributed_callbacks as distributed_callbacks
    from tfp_bprune.training.fit import Settings as Settings
    from tfp_bprune.training.fit import compile_model as compile_model
    from tfp_bprune.training.fit import fit as fit
    from tfp_bprune.training.loggers import MLflowLogger as MLflowLogger
    from tfp_bprune.training.loggers import TensorBoardLogger as TensorBoardLogger
    from tfp_bprune.training.loggers import log_export as log_export
    from tfp_bprune.training.metrics import BrierScore as BrierScore
    from tfp_bprune.training.metrics import ExpectedCalibrationError as ExpectedCalibrationError
    from tfp_bprune.training.metrics import NegativeLogLikelihood as NegativeLogLikelihood
    from tfp_bprune.training.recalibrate import recalibrate as recalibrate
    from tfp_bprune.training.strategy import Strategy as Strategy
    from tfp_bprune.tuning.tuner import hyper_model as hyper_model
    from tfp_bprune.tuning.tuner import tune as tune
    from tfp_bprune.types import BpruneError as BpruneError

# Public names by the room that they come from, loaded on first use. No name is that of a room.
_ROOMS = {
    "_progress": (),
    "_registry": (),
    "claims": (),
    "cli": (),
    "data": (),
    "data.datasets": ("dataset",),
    "data.info": ("Info", "info_of"),
    "data.splits": ("from_arrays", "load"),
    "evaluation": ("Evaluation", "Prediction", "evaluate", "predict", "reload", "sweep"),
    "exports": ("Form", "export", "register_form"),
    "files": (),
    "graphs": ("adopt", "inline", "strip"),
    "layers": (
        "ARDPrior",
        "CentredPrior",
        "HorseshoePrior",
        "NormalJeffreysPrior",
        "NormalPrior",
        "Posterior",
        "Prior",
        "ScaleMixturePrior",
        "register_posterior",
        "register_prior",
    ),
    "networks": ("build",),
    "plot": (),
    "prediction": (),
    "pruning": ("GradualPruning", "Shrink", "prune"),
    "pruning.scores": ("criterion",),
    "reports": (),
    "searching": ("Budget", "search"),
    "storage": ("bayesianize", "load_model", "save_model"),
    "studies": (),
    "training": (
        "Horovod",
        "Settings",
        "Strategy",
        "compile_model",
        "distribute",
        "distributed_callbacks",
        "fit",
        "recalibrate",
    ),
    "training.loggers": ("MLflowLogger", "TensorBoardLogger", "log_export"),
    "training.metrics": ("BrierScore", "ExpectedCalibrationError", "NegativeLogLikelihood"),
    "trials": (),
    "tuning": ("hyper_model", "tune"),
    "types": ("BpruneError",),
}
_PUBLIC = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and the rooms: what a notebook completes."""
    rooms = {room for room in _ROOMS if "." not in room and not room.startswith("_")}
    return sorted({*__all__, *rooms, *(name for name in globals() if name.startswith("__"))})
